"""The fields of an autoencoder's training run, with the paper's values (section 4.1)."""

from __future__ import annotations

import ml_collections

from odvae_jax.config import ODVAEConfig, without_scale
from odvae_jax.data import READ_TIMEOUT
from odvae_jax.inflation import METHODS
from odvae_jax.training.fields import check, check_continues, flat, loop_config

__all__ = [
    "METHODS",
    "PHASES",
    "check",
    "check_continues",
    "default_config",
    "flat",
    "model_config",
    "paper_config",
]

PHASES = {"phase1": 200_000, "phase2": 450_000}
"""Steps of the paper's two phases; the second starts from the first one's EMA weights."""


def default_config() -> ml_collections.ConfigDict:
    """Variant 4 as in the paper; what each field means stands beside it.

    The fields that every run has, such as `seed` and `mesh`, are those of
    `odvae_jax.training.fields.loop_config`.
    """
    config = loop_config()
    config.update(
        {
            # "v1" to "v4" or "image", and any other field of ODVAEConfig.
            "model": ODVAEConfig.variant(4, dtype="bfloat16", remat="convolutions").to_dict(),
            # Start from a saved model: whatever ODVAE.from_pretrained takes (docs/weights.md). An
            # image model is inflated by `method` ("tail", "average" or "random"), one of the same
            # structure is taken as it is. Empty: random parameters.
            "init": {
                "from_pretrained": "",
                "revision": "",
                "subfolder": "",
                "method": "tail",
                # Train a model of the same kind as the saved one, whatever that is: of
                # `config.model` only dtype, precision and remat count.
                "same_model": False,
            },
            "data": {
                # A folder of videos, "sample-clips", or any source, or several with their shares
                # (docs/data.md).
                "path": "",
                "frames": 25,  # T = 4k + 1
                "size": 256,  # side of the square clips, a multiple of 8
                "short_side": 256,  # videos are scaled to this before a random square is cut out
                # The greatest side to scale to: each clip has one of its own (0: not used).
                "short_side_max": 0,
                "holdout": 0,  # frames at the end of each video that training never sees
                "in_memory": False,  # keep all videos decoded; for a few short ones
                "stride": 1,  # distance of a clip's frames, in frames of the video; the least if
                "stride_max": 1,  # this is larger, and then one is drawn for each clip
                "fps": 0.0,  # frames per second of clips, instead of a stride (0: not used)
                "crop": "random",  # or "centre"
                "flip": True,  # mirror each clip with a probability of one half
                "max_unusable": 0.2,  # share of unusable videos that ends the run
                # Seconds that one read of a video may take (0: no limit).
                "read_timeout": READ_TIMEOUT,
                # Batches of pictures (such as "images:DIR") instead of clips, in this share of
                # the steps.
                "image_path": "",
                "image_rate": 0.0,
                "image_batch_size": 8,
                "workers": 0,  # processes that decode; 0 decodes in threads of the training process
                "threads": 4,  # threads that decode, per process
            },
            "loss": {
                "reconstruction": "l1",  # or "l2"
                "perceptual_weight": 1.0,  # weight of LPIPS with VGG-16; 0 leaves it out
                "kl_weight": 1e-6,
                "logvar": 0.0,  # logarithm of the reconstruction loss's scale
                "train_logvar": False,
                # Terms of your own, as (("package.module:function", weight), ...): each function
                # is given (video, reconstruction, posterior, key) and returns a scalar
                # (docs/training.md).
                "terms": (),
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
            "optimizer": {  # the same for both networks
                "learning_rate": 1e-5,
                "b1": 0.9,
                "b2": 0.999,
                "clip_norm": 0.0,  # gradients longer than this are shortened to it (0: never)
                "warmup_steps": 0,
                "decay": "constant",  # or "cosine", to zero at the last step
            },
            "freeze": "",  # or "encoder": only decoder and discriminator are trained
            "ema_decay": 0.999,
            # A lower decay in the first steps, so that a short run's average is not its beginning
            # (odvae_jax.training.state.ema_step).
            "ema_warmup": False,
            "batch_size": 8,  # clips per step, over all devices
            "accumulate": 1,  # parts of the batch that are computed one after another
            "steps": PHASES["phase1"],
            "validation_clips": 3,  # fixed clips that validation measures
            # The most clips that the scale of the latents is measured on at the end: held-out ones
            # if data.holdout leaves some, else training clips (0: it is not measured).
            "scale_clips": 256,
        }
    )
    return config


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

    A scale of latents that was measured on another model is none of this one's, unless this one has
    the other's encoder and does not train it.

    Raises:
      ValueError: if a field is unknown or impossible.
    """
    fields = config.model.to_dict()
    keeps_encoder = config.init.same_model and config.freeze == "encoder"
    return ODVAEConfig.from_dict(fields if keeps_encoder else without_scale(fields))
