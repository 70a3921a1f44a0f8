"""Which encoder made latents."""

from __future__ import annotations

from typing import Any

import numpy as np

from odvae_jax.checkpoints.native import ENCODER, digest
from odvae_jax.config import ODVAEConfig
from odvae_jax.parameters import Autoencoder, Config, named_parameters

_OF_ENCODER = ("structure", "width", "latent_channels", "groups", "norm")
_OF_DECODER = {"decoder", "post_quant_conv"}  # parts of the names of a baseline's parameters


def described(config: Config) -> dict[str, Any]:
    """Returns the fields of a config as latents hold them; a baseline's name is one of them."""
    fields = config.to_dict()
    return fields if isinstance(config, ODVAEConfig) else {"model": config.model, **fields}


def encoder_fields(config: Config) -> dict[str, Any]:
    """Returns the fields of `described` that decide what latents mean."""
    fields = described(config)
    if isinstance(config, ODVAEConfig):
        return {name: fields[name] for name in _OF_ENCODER}
    return {name: v for name, v in fields.items() if name not in config.without_influence}


def encoder_digest(vae: Autoencoder) -> str:
    """Returns a digest of all that decides what latents mean: the encoder's parameters and config.

    The decoder does not count: one that was trained on while its encoder was frozen decodes the
    same latents.
    """
    own = isinstance(vae.config, ODVAEConfig)
    parameters = {
        name: np.asarray(value, np.float32)
        for name, value in named_parameters(vae).items()
        if (name.startswith(ENCODER) if own else _OF_DECODER.isdisjoint(name.split(".")))
    }
    return digest(encoder_fields(vae.config), parameters)
