"""The fields of a training run, with the paper's values (section 4.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from odvae_jax.config import SPACE_COMPRESSION, ODVAEConfig
from odvae_jax.inflation import METHODS
from odvae_jax.metrics.lpips import SMALLEST
from odvae_jax.sharding import LEAST_ROWS, clip_shards, make_mesh

PHASES = {"phase1": 200_000, "phase2": 450_000}
"""Steps of the paper's two phases; the second starts from the first one's EMA weights."""
CHOICES = {
    "loss.reconstruction": ("l1", "l2"),
    "discriminator.loss": ("hinge", "vanilla"),
    "discriminator.turns": ("together", "alternate"),
    "optimizer.decay": ("constant", "cosine"),
    "init.method": METHODS,
    "data.crop": ("random", "centre"),
    "freeze": ("", "encoder"),
}
_AT_LEAST = {
    "batch_size": 1,
    "accumulate": 1,
    "steps": 1,
    "seed": 0,
    "log_every": 1,
    "validate_every": 0,
    "validation_clips": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "keep_every": 0,
    "max_skipped_in_a_row": 1,
    "data.holdout": 0,
    "data.threads": 1,
    "data.workers": 0,
    "data.stride": 1,
    "data.stride_max": 1,
    "data.fps": 0,
    "data.max_unusable": 0,
    "data.image_rate": 0,
    "data.image_batch_size": 1,
    "discriminator.start": 0,
    "discriminator.weight": 0,
    "discriminator.width": 1,
    "loss.kl_weight": 0,
    "loss.perceptual_weight": 0,
    "optimizer.learning_rate": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": 0,
}
# What a run may be continued with though it was begun otherwise: how, how long and how often.
_FREE = ("log_every", "validate_every", "validation_clips", "checkpoint_every", "mesh")
_FREE += ("keep_checkpoints", "keep_every", "max_skipped_in_a_row", "continue_with_changes")
_FREE += ("data.threads", "data.workers", "data.in_memory", "data.max_unusable")
_FREE += ("model.remat", "init")
# What it must agree in, changes asked for or not: its arrays, and the order of its data.
_FIXED = ("model", "seed", "batch_size", "freeze", "loss.train_logvar", "loss.logvar")
_FIXED += ("data.frames", "data.size", "data.short_side", "data.holdout")
_FIXED += ("discriminator.weight", "discriminator.width")


def default_config() -> ml_collections.ConfigDict:
    """Variant 4 as in the paper; what each field means stands beside it."""
    d = ml_collections.ConfigDict
    return d(
        {
            # "v1" to "v4" or "image", and any other field of ODVAEConfig.
            "model": ODVAEConfig.variant(4, dtype="bfloat16", remat="convolutions").to_dict(),
            # Start from a saved model: whatever ODVAE.from_pretrained takes (docs/weights.md). An
            # image model is inflated by `method` ("tail", "average" or "random"), one of the same
            # structure is taken as it is. Empty: random parameters.
            "init": {"from_pretrained": "", "revision": "", "subfolder": "", "method": "tail"},
            "data": {
                # A folder of videos, "sample-clips", or any source, or several with their shares
                # (odvae_jax/data/sources.py).
                "path": "",
                "frames": 25,  # T = 4k + 1
                "size": 256,  # side of the square clips, a multiple of 8
                "short_side": 256,  # videos are scaled to this before a random square is cut out
                "holdout": 0,  # frames at the end of each video that training never sees
                "in_memory": False,  # keep all videos decoded; for a few short ones
                "stride": 1,  # distance of a clip's frames, in frames; the least, if
                "stride_max": 1,  # this is larger: then it is drawn for each clip
                "fps": 0.0,  # a clip's frames a second, instead of a stride (0: as they come)
                "crop": "random",  # or "centre"
                "flip": True,  # mirror every other clip, by chance
                "max_unusable": 0.2,  # share of unusable videos that ends the run
                # Batches of pictures (such as "images:DIR") instead of clips, in this share of
                # the steps.
                "image_path": "",
                "image_rate": 0.0,
                "image_batch_size": 8,
                "workers": 0,  # processes that decode; 0 for threads of the training's own
                "threads": 4,  # that decode, in each of them
            },
            "loss": {
                "reconstruction": "l1",  # or "l2"
                "perceptual_weight": 1.0,  # of LPIPS with VGG-16; 0 leaves it out
                "kl_weight": 1e-6,
                "logvar": 0.0,  # logarithm of the reconstruction loss's scale
                "train_logvar": False,
            },
            "discriminator": {
                "weight": 0.5,  # times the adaptive weight; 0 leaves the adversarial term out
                "start": 2000,  # steps before both sides' adversarial terms begin
                "width": 64,  # channels of its first convolution
                "loss": "hinge",  # or "vanilla"
                # "together": both networks in every step, on the same reconstruction; "alternate":
                # once it has started, the discriminator in odd steps and the autoencoder in even.
                "turns": "together",
            },
            "optimizer": {  # of both networks
                "learning_rate": 1e-5,
                "b1": 0.9,
                "b2": 0.999,
                "clip_norm": 0.0,  # gradients longer than this are shortened to it (0: never)
                "warmup_steps": 0,
                "decay": "constant",  # or "cosine", to zero at the last step
            },
            "freeze": "",  # or "encoder": decoder and discriminator alone are trained
            "ema_decay": 0.999,
            "batch_size": 8,  # clips a step, over all devices
            "accumulate": 1,  # parts of the batch that are computed one after another
            "steps": PHASES["phase1"],
            "seed": 0,
            # Devices that share the clips of a batch (-1: all the others leave), that share clips
            # and keep a part of the parameters each, and that share the rows of a clip.
            "mesh": {"data": -1, "fsdp": 1, "height": 1},
            "max_skipped_in_a_row": 100,  # steps without finite loss and gradient that end the run
            "log_every": 50,  # steps between lines of metrics
            "validate_every": 1000,  # steps between measurements on fixed clips (0: never)
            "validation_clips": 3,  # of them
            "checkpoint_every": 1000,
            "keep_checkpoints": 3,  # the last ones
            "keep_every": 0,  # and for ever those of steps that this divides (0: none)
            # Continue a run with other losses or another optimizer than it was begun with.
            "continue_with_changes": False,
        }
    )


def paper_config(variant: int, phase: str = "phase1") -> ml_collections.ConfigDict:
    """A variant trained as in the paper (section 4.1).

    Raises:
      ValueError: for another variant than 1 to 4, or a phase that is not in `PHASES`.
    """
    if phase not in PHASES:
        raise ValueError(f"phase {phase!r} is not known; there are {list(PHASES)}.")
    config = default_config()
    model = ODVAEConfig.variant(variant, dtype="bfloat16", remat="convolutions")
    config.model = model.to_dict()
    config.steps = PHASES[phase]
    return config


def model_config(config: ml_collections.ConfigDict) -> ODVAEConfig:
    """The model that a run trains.

    Raises:
      ValueError: if a field is unknown or impossible.
    """
    return ODVAEConfig.from_dict(config.model.to_dict())


def check(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The run's mesh, if the run could work.

    Raises:
      ValueError: naming the field and what would do.
    """
    for name, choices in CHOICES.items():
        if _get(config, name) not in choices:
            raise ValueError(
                f"config.{name}={_get(config, name)!r} is not known; there are {list(choices)}."
            )
    for name, bound in _AT_LEAST.items():
        if not bound <= _get(config, name) < math.inf:
            raise ValueError(
                f"config.{name}={_get(config, name)} must be finite and at least {bound}."
            )
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"config.ema_decay={config.ema_decay} must be at least 0 and less than 1.")
    for name in ("b1", "b2"):
        if not 0 <= config.optimizer[name] < 1:
            raise ValueError(
                f"config.optimizer.{name}={config.optimizer[name]} must be at least 0 and less "
                "than 1."
            )
    model = model_config(config)
    if model.param_dtype != "float32":
        raise ValueError(
            f"config.model.param_dtype={model.param_dtype!r}: training keeps parameters in "
            "float32, for small steps are lost in fewer bits; config.model.dtype is what is "
            "computed in."
        )
    _check_data(config, model.time_compression)
    try:
        mesh = make_mesh(**config.mesh, devices=devices)
    except ValueError as error:
        raise ValueError(f"config.mesh: {error}") from error
    shards, parts = clip_shards(mesh), config.accumulate
    sizes = {"batch_size": config.batch_size}
    if config.data.image_rate:
        sizes["data.image_batch_size"] = config.data.image_batch_size
    for name, size in sizes.items():
        if size % (shards * parts):
            near = shards * parts * max(round(size / (shards * parts)), 1)
            raise ValueError(
                f"config.{name}={size} does not divide over {shards} devices"
                + (f" in {parts} parts" if parts > 1 else "")
                + f"; the nearest that does is {near}."
            )
    rows, height = SPACE_COMPRESSION * mesh.shape["height"], mesh.shape["height"]
    least = rows * LEAST_ROWS if height > 1 else rows
    if config.data.size % rows or config.data.size < least:
        near = max(rows * round(config.data.size / rows), least)
        raise ValueError(
            f"config.data.size={config.data.size} does not divide over "
            f"mesh.height={height} devices; the nearest that does is {near}."
        )
    return mesh


def _check_data(config, step):
    data = config.data
    if not data.path:
        raise ValueError(
            "config.data.path is empty: give a folder of videos (--config.data.path=DIR), "
            'or "sample-clips".'
        )
    if bool(data.image_path) != bool(data.image_rate) or not data.image_rate <= 1:
        raise ValueError(
            f"config.data.image_rate={data.image_rate} and image_path={data.image_path!r}: for "
            "pictures among the clips give both, the rate between 0 and 1."
        )
    if data.frames < 1 or (data.frames - 1) % step:
        near = step * max(round((data.frames - 1) / step), 0) + 1
        raise ValueError(
            f"config.data.frames={data.frames} is not {step}k + 1; the nearest is {near}."
        )
    if data.size < 8 or data.size % 8:
        near = 8 * max(round(data.size / 8), 1)
        raise ValueError(
            f"config.data.size={data.size} is not a multiple of 8; the nearest is {near}."
        )
    if config.loss.perceptual_weight and data.size < SMALLEST["vgg"]:
        raise ValueError(
            f"config.data.size={data.size} is too small for the perceptual term; it needs "
            f"{SMALLEST['vgg']}, or config.loss.perceptual_weight=0."
        )
    if data.short_side < data.size:
        raise ValueError(f"config.data.short_side={data.short_side} is less than size={data.size}.")


def check_continues(begun: dict[str, Any], config: ml_collections.ConfigDict, where: str) -> None:
    """Raises ValueError, listing the fields, if a run cannot be continued with this config.

    Args:
      begun: the config that it was begun with.
      config: the one that it is to be continued with.
      where: the run's folder, for the error.
    """
    before, now = flat(begun), flat(config.to_dict())
    free = _FREE if config.optimizer.decay == "cosine" else (*_FREE, "steps")

    def under(name, prefixes):
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)

    differing = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not under(name, free)
    ]
    fixed = [name for name in differing if under(name, _FIXED)]
    if not differing or (config.continue_with_changes and not fixed):
        return
    listed = "; ".join(f"{n}: {before.get(n)!r} there, {now.get(n)!r} now" for n in differing)
    advice = "continue it with its own, or choose another workdir"
    if not fixed:
        advice += ", or ask for it: --config.continue_with_changes"
    raise ValueError(f"{where} holds a run with another config ({listed}): {advice}.")


def _get(config, name):
    return functools.reduce(lambda section, field: section[field], name.split("."), config)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's fields by dotted name, such as "data.path"."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields
