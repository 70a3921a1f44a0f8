"""A variant and a loss term of one's own, in a file outside the repository."""

import json
import sys

import numpy as np
import pytest

import odvae_jax
from odvae_jax.cli import main

CONFIG = """
import jax.numpy as jnp

from odvae_jax import ODVAEConfig, Structure
from odvae_jax.training.config import default_config

ROW = Structure(
    encoder_in="2d",
    encoder_levels=("2d", "3d"),
    downsample=("3d",),
    middle="3d",
    decoder_levels=("2d", "3d"),
    upsample=("3d",),
    ends="3d",
    time_strides=(2,),
    space_strides=(2,),
    width_multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
)


def latents_near_one(video, reconstruction, posterior, key):
    return jnp.mean((posterior.mean - 1) ** 2)


def get_config():
    config = default_config()
    config.model = ODVAEConfig(structure=ROW, width=8, groups=4).to_dict()
    config.loss.terms = (("of_my_own:latents_near_one", 10.0),)
    config.loss.perceptual_weight = 0.0
    config.discriminator.weight = 0.0
    config.data.frames = 3
    config.data.size = config.data.short_side = 16
    config.data.threads = 1
    config.batch_size = 1
    config.steps = 2
    config.log_every = 1
    config.validate_every = 0
    return config
"""


@pytest.mark.usefixtures("unchecked_types")
def test_they_train_are_saved_and_loaded(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "elsewhere").mkdir()
    config = tmp_path / "elsewhere" / "of_my_own.py"
    config.write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    arguments = [f"--config={config}", "--workdir=run", f"--config.data.path={videos}"]
    arguments += ["--config.batch_size=8"]  # one clip per virtual device
    assert main(["train", *arguments]) == 0
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in metrics]
    terms = [line["term_latents_near_one"] for line in lines]
    assert len(terms) == 2 and terms[1] < terms[0]
    assert main(["train", *arguments, "--config.steps=3"]) == 0  # the same row goes on
    sys.modules.pop("of_my_own", None)
    config.unlink()
    vae = odvae_jax.from_pretrained("run")
    assert (vae.config.time_compression, vae.config.space_compression) == (2, 2)
    video = np.zeros((1, 3, 16, 16, 3), np.float32)
    assert vae.encode(video).mean.shape == (1, 2, 8, 8, 4)
    assert vae.reconstruct(video).shape == video.shape


def test_a_row_put_into_a_config_field_is_told_how(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = tmp_path / "wrong.py"
    config.write_text(CONFIG.replace("config.model = ", "config.model.structure = ROW  # "))
    arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", *arguments]) == 2
    said = capsys.readouterr().err
    assert "config.model = ODVAEConfig(structure=Structure(...)).to_dict()" in said
