"""The fields of a training run, with the paper's values (section 4.1)."""

from __future__ import annotations

import math

import ml_collections

from odvae_jax.config import ODVAEConfig
from odvae_jax.inflation import METHODS

CHOICES = {
    "loss.reconstruction": ("l1", "l2"),
    "optimizer.decay": ("constant", "cosine"),
    "init.method": METHODS,
}


def default_config() -> ml_collections.ConfigDict:
    """Variant 4 as in the paper; what each field means stands beside it."""
    d = ml_collections.ConfigDict
    return d(
        {
            # "v1" to "v4" or "image", and any other field of ODVAEConfig.
            "model": ODVAEConfig.variant(4, dtype="bfloat16").to_dict(),
            # Start from a saved model: whatever ODVAE.from_pretrained takes (docs/weights.md). An
            # image model is inflated by `method` ("tail", "average" or "random"), one of the same
            # structure is taken as it is. Empty: random parameters.
            "init": {"from_pretrained": "", "revision": "", "subfolder": "", "method": "tail"},
            "data": {
                "path": "",  # a folder of videos, a video, or "sample-clips"
                "frames": 25,  # T = 4k + 1
                "size": 256,  # side of the square clips, a multiple of 8
                "short_side": 256,  # videos are scaled to this before a random square is cut out
                "holdout": 0,  # frames at the end of each video that training never sees
                "in_memory": False,  # keep all videos decoded; for a few short ones
                "threads": 4,  # that decode
            },
            "loss": {
                "reconstruction": "l1",  # or "l2"
                "kl_weight": 1e-6,
            },
            "optimizer": {
                "learning_rate": 1e-5,
                "b1": 0.9,
                "b2": 0.999,
                "warmup_steps": 0,
                "decay": "constant",  # or "cosine", to zero at the last step
            },
            "ema_decay": 0.999,
            "batch_size": 8,  # clips a step, over all devices
            "steps": 650_000,
            "seed": 0,
            "log_every": 50,  # steps between lines of metrics
            "sample_every": 1000,  # steps between reconstructions of fixed clips (0: never)
            "sample_clips": 3,  # of them
            "checkpoint_every": 1000,
            "keep_checkpoints": 3,
        }
    )


def model_config(config: ml_collections.ConfigDict) -> ODVAEConfig:
    """The model that a run trains.

    Raises:
      ValueError: if a field is unknown or impossible.
    """
    return ODVAEConfig.from_dict(config.model.to_dict())


def check(config: ml_collections.ConfigDict, devices: int = 1) -> None:
    """Raises ValueError for a run that could not work, naming the field and what would do."""
    for name, choices in CHOICES.items():
        section, field = name.split(".")
        if config[section][field] not in choices:
            raise ValueError(
                f"config.{name}={config[section][field]!r} is not known; there are {list(choices)}."
            )
    model = model_config(config)
    data = config.data
    if not data.path:
        raise ValueError(
            "config.data.path is empty: give a folder of videos (--config.data.path=DIR), "
            'or "sample-clips".'
        )
    step = model.time_compression
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
    if data.short_side < data.size:
        raise ValueError(f"config.data.short_side={data.short_side} is less than size={data.size}.")
    least = dict.fromkeys(("batch_size", "steps", "log_every", "checkpoint_every"), 1)
    least |= {"keep_checkpoints": 1, "sample_clips": 1, "sample_every": 0, "seed": 0}
    for name, bound in least.items():
        if config[name] < bound:
            raise ValueError(f"config.{name}={config[name]} must be at least {bound}.")
    if data.holdout < 0:
        raise ValueError(f"config.data.holdout={data.holdout} must be at least 0.")
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"config.ema_decay={config.ema_decay} must be at least 0 and less than 1.")
    if not 0 <= config.optimizer.learning_rate < math.inf:
        rate = config.optimizer.learning_rate
        raise ValueError(
            f"config.optimizer.learning_rate={rate} must be a finite number from 0 up."
        )
    if config.batch_size % devices:
        near = devices * max(round(config.batch_size / devices), 1)
        raise ValueError(
            f"config.batch_size={config.batch_size} does not divide over {devices} devices; "
            f"the nearest that does is {near}."
        )
