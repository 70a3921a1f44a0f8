"""Encoding and decoding as functions, and their uint8 forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from odvae_jax.autoencoder import (
    ODVAE,
    check_array,
    check_latents,
    check_streams,
    check_video,
    check_video_shape,
)
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.tiling import Streaming, TemporalTiling
from odvae_jax.types import AnyArray

Tiling = TemporalTiling | Streaming


def encode(
    vae: ODVAE, video: Float[AnyArray, "b t h w 3"], *, tiling: Tiling | None = None
) -> DiagonalGaussian:
    """The posterior of a video in [-1, 1]: `vae.encode(video)`, or in groups as `tiling` says."""
    if tiling is None:
        return vae.encode(video)
    _check_tiling(tiling, vae)
    check_video(video, vae.config)
    return _encode_tiled(vae, video, tiling)


def decode(
    vae: ODVAE, latents: Float[AnyArray, "b t h w c"], *, tiling: Tiling | None = None
) -> Float[Array, "b u v x 3"]:
    """The float32 video of unscaled latents: `vae.decode(latents)`, or in groups."""
    if tiling is None:
        return vae.decode(latents)
    _check_tiling(tiling, vae)
    check_latents(latents, vae.config)
    return _decode_tiled(vae, latents, tiling)


def encode_uint8(
    vae: ODVAE, video: UInt8[AnyArray, "b t h w 3"], *, tiling: Tiling | None = None
) -> DiagonalGaussian:
    """The posterior of a uint8 video, 0 to 255, scaled to [-1, 1] on the device.

    Raises:
      ValueError: if `video` is not uint8, or has a shape that `ODVAE.encode` refuses.
    """
    _check_tiling(tiling, vae)
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
    return _encode_tiled(vae, video, tiling)


def decode_uint8(
    vae: ODVAE, latents: Float[AnyArray, "b t h w c"], *, tiling: Tiling | None = None
) -> UInt8[Array, "b u v x 3"]:
    """The video of unscaled latents as uint8, rounded to the nearest and clipped on the device.

    Raises:
      ValueError: for latents that `ODVAE.decode` refuses.
    """
    _check_tiling(tiling, vae)
    check_latents(latents, vae.config)
    return _decode_tiled(vae, latents, tiling, uint8=True)


def _check_tiling(tiling: Tiling | None, vae: ODVAE) -> None:
    if isinstance(tiling, Streaming):
        check_streams(vae.config)


def to_unit_range(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to float32 in [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] to 0..255: rounded to the nearest, and clipped."""
    return jnp.clip(jnp.round((video.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="tiling")
def _encode_tiled(vae, video, tiling):
    """Groups of uint8 are scaled one by one, so that the whole is never there in float32."""

    def scaled(group):
        return to_unit_range(group) if group.dtype == jnp.uint8 else group

    def moments(group):
        return vae.moments(scaled(group))

    def chunk_moments(chunk, state, final):
        x, state = vae.encoder.chunk(scaled(chunk), state)
        return vae.quant_conv(x), state

    if tiling is None:
        return DiagonalGaussian.from_moments(moments(video))
    run = chunk_moments if isinstance(tiling, Streaming) else moments
    return DiagonalGaussian.from_moments(tiling.encode(run, video))


@functools.partial(jax.jit, static_argnames=("tiling", "uint8"))
def _decode_tiled(vae, latents, tiling, uint8=False):
    def shown(decoded):
        return to_uint8(decoded) if uint8 else decoded

    def frames(group):
        return shown(vae.decode(group))

    def chunk_frames(chunk, state, final):
        decoded, state = vae.decode_chunk(chunk, state, final=final)
        return shown(decoded), state

    if tiling is None:
        return frames(latents)
    run = chunk_frames if isinstance(tiling, Streaming) else frames
    return tiling.decode(run, latents, vae.config.time_compression)
