"""Which encoder made latents."""

from __future__ import annotations

import numpy as np

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import ENCODER, digest
from odvae_jax.parameters import named_parameters

OF_ENCODER = ("structure", "width", "latent_channels", "groups", "norm")
"""The fields of a config that decide what latents mean."""


def encoder_digest(vae: ODVAE) -> str:
    """Returns a digest of all that decides what latents mean: the encoder's parameters and config.

    The decoder does not count: one that was trained on while its encoder was frozen decodes the
    same latents.
    """
    config = vae.config.to_dict()
    fields = {name: config[name] for name in OF_ENCODER}
    parameters = {
        name: np.asarray(value, np.float32)
        for name, value in named_parameters(vae).items()
        if name.startswith(ENCODER)
    }
    return digest(fields, parameters)
