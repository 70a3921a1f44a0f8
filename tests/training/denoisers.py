"""A tiny autoencoder, labelled latents of it, and a denoiser's config for them."""

import csv

import jax

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.diffusion import LatteConfig
from odvae_jax.latents.buckets import Size
from odvae_jax.training.denoising import denoiser_config
from odvae_jax.transcoding import Cut, DatasetSettings, encode_dataset
from tests.conftest import write_clip
from tests.two_levels import CAUSAL

CLASSES = ("cats", "dogs", "owls")


def save_autoencoder(folder, seed=0):
    vae = ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm="frame"), rngs=seed)
    vae.save_pretrained(folder)
    return vae


def write_manifest(folder, videos=6, frames=5):
    """Videos of 16×16 with a label and a name."""
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "animal"])
        writer.writeheader()
        for number in range(videos):
            path = write_clip(folder / f"v{number}.mp4", frames, 16, 16, seed=number)
            label = number % len(CLASSES)
            writer.writerow({"path": path.name, "label": label, "animal": CLASSES[label]})
    return folder / "list.csv"


def write_latents(folder, vae, name, source, content="moments"):
    """A dataset of latents [3, 8, 8, 4]."""
    settings = DatasetSettings(cut=Cut(buckets=(Size(5, 16, 16),)), content=content, batch=2)
    encode_dataset(
        vae, str(name), str(source), str(folder), settings, devices=jax.devices()[:1], bar=False
    )
    return folder


def tiny(latents, **fields):
    """A run that measures nothing and has no autoencoder, unless the fields say so."""
    config = denoiser_config()
    model = LatteConfig(
        depth=2, width=16, heads=2, frames=3, rows=8, columns=8, classes=3, precision="highest"
    )
    config.model = model.to_dict()
    config.update_from_flattened_dict(
        {
            "data.path": str(latents),
            "data.label": "label",
            "data.names": "animal",
            "data.scale": "channels",
            "data.threads": 1,
            "data.frames": 5,
            "data.size": 16,
            "data.short_side": 16,
            "data.stride": 1,
            "data.stride_max": 1,
            "data.flip": False,
            "batch_size": 8,
            "steps": 4,
            "log_every": 1,
            "checkpoint_every": 2,
            "validate_every": 0,
            "validation_clips": 8,
            "samples.steps": 2,
            "optimizer.learning_rate": 1e-3,
            "ema_decay": 0.5,
            **fields,
        }
    )
    return config
