"""Encoding and decoding as functions, and their uint8 forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from odvae_jax.autoencoder import ODVAE, check_array, check_latents, check_video_shape
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.types import AnyArray


def encode(vae: ODVAE, video: Float[AnyArray, "b t h w 3"]) -> DiagonalGaussian:
    """The posterior of a video in [-1, 1]; the same as `vae.encode(video)`."""
    return vae.encode(video)


def decode(vae: ODVAE, latents: Float[AnyArray, "b t h w c"]) -> Float[Array, "b u v x 3"]:
    """The float32 video of unscaled latents; the same as `vae.decode(latents)`."""
    return vae.decode(latents)


def encode_uint8(vae: ODVAE, video: UInt8[AnyArray, "b t h w 3"]) -> DiagonalGaussian:
    """The posterior of a uint8 video, 0 to 255, scaled to [-1, 1] on the device.

    Raises:
      ValueError: if `video` is not uint8, or has a shape that `ODVAE.encode` refuses.
    """
    check_array("video", video)
    shape, dtype = tuple(jnp.shape(video)), jnp.result_type(video)
    if dtype != jnp.uint8:
        raise ValueError(
            f"video has dtype {dtype}; encode_uint8 takes uint8. "
            "For floats in [-1, 1] there is encode."
        )
    if len(shape) != 5:
        raise ValueError(f"video has shape {shape}; expected five axes, [B, T, H, W, 3].")
    check_video_shape(shape, vae.config)
    return _encode_uint8(vae, video)


def decode_uint8(vae: ODVAE, latents: Float[AnyArray, "b t h w c"]) -> UInt8[Array, "b u v x 3"]:
    """The video of unscaled latents as uint8, rounded to the nearest and clipped on the device.

    Raises:
      ValueError: for latents that `ODVAE.decode` refuses.
    """
    check_latents(latents, vae.config)
    return _decode_uint8(vae, latents)


def to_unit_range(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to float32 in [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] to 0..255: rounded to the nearest, and clipped."""
    return jnp.clip(jnp.round((video.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


@jax.jit
def _encode_uint8(vae, video):
    return vae.encode(to_unit_range(video))


@jax.jit
def _decode_uint8(vae, latents):
    return to_uint8(vae.decode(latents))
