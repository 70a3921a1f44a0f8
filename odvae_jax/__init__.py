"""OD-VAE in JAX: a causal video autoencoder, 4× in time and 8×8 in space."""

from odvae_jax.autoencoder import ODVAE
from odvae_jax.config import ODVAEConfig
from odvae_jax.inference import decode, decode_uint8, encode, encode_uint8
from odvae_jax.posterior import DiagonalGaussian

__all__ = [
    "ODVAE",
    "DiagonalGaussian",
    "ODVAEConfig",
    "decode",
    "decode_uint8",
    "encode",
    "encode_uint8",
]
__version__ = "0.1.0"
