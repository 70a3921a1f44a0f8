"""OD-VAE in JAX: a causal video autoencoder, 4× in time and 8×8 in space."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odvae_jax.autoencoder import ODVAE
    from odvae_jax.checkpoints.pretrained import from_pretrained
    from odvae_jax.config import ODVAEConfig, Structure
    from odvae_jax.inference import decode, decode_uint8, encode, encode_uint8
    from odvae_jax.lowering import without_kernels
    from odvae_jax.pixels import VideoSize
    from odvae_jax.posterior import DiagonalGaussian
    from odvae_jax.sharding import make_mesh
    from odvae_jax.tiling import AutoTiling, SpatialTiling, Streaming, TemporalTiling

__all__ = [
    "ODVAE",
    "AutoTiling",
    "DiagonalGaussian",
    "ODVAEConfig",
    "SpatialTiling",
    "Streaming",
    "Structure",
    "TemporalTiling",
    "VideoSize",
    "decode",
    "decode_uint8",
    "encode",
    "encode_uint8",
    "from_pretrained",
    "make_mesh",
    "without_kernels",
]
__version__ = "0.1.0"

# Each is imported when it is first asked for: processes that read videos need no JAX.
_HOMES = {"ODVAE": "autoencoder", "DiagonalGaussian": "posterior", "ODVAEConfig": "config"}
_HOMES |= {"Structure": "config", "from_pretrained": "checkpoints.pretrained"}
_HOMES |= {"VideoSize": "pixels", "make_mesh": "sharding"}
_HOMES |= {"without_kernels": "lowering"}
_HOMES |= {"AutoTiling": "tiling"}
_HOMES |= dict.fromkeys(("SpatialTiling", "Streaming", "TemporalTiling"), "tiling")
_HOMES |= dict.fromkeys(("decode", "decode_uint8", "encode", "encode_uint8"), "inference")


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
