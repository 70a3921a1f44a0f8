"""Encoding and decoding as functions, and their uint8 forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Float, UInt8

from odvae_jax.autoencoder import ODVAE, decode_clip, encode_clip
from odvae_jax.checks import check_latents, check_size, check_video
from odvae_jax.config import IMAGE_CHANNELS
from odvae_jax.pixels import VideoSize, pad_video
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.sharding import (
    check_rows,
    check_spread,
    clip_sharding,
    mesh_with_axes,
    replicate,
    sharding_of,
    spread_clips,
    with_automatic_axes,
    with_axes,
)
from odvae_jax.tiling import Tilings, in_time_and_space
from odvae_jax.tiling.from_host import (
    cut_in_blocks,
    decode_blocks,
    decode_part,
    encode_blocks,
    encode_part,
    fetched,
)
from odvae_jax.types import AnyArray


def encode(
    vae: ODVAE,
    video: Float[AnyArray, "b t h w 3"],
    *,
    tiling: Tilings = None,
    pad: bool = False,
    mesh: Mesh | None = None,
) -> DiagonalGaussian:
    """The posterior over latents [B, k + 1, H / 8, W / 8, C] of a video (Eq. 1, section 3.3).

    Called outside `jit` with a tiling in time, it runs part by part: a part's program is compiled
    once for clips of all lengths, and of a NumPy video only a part at a time is on the device; what
    comes back then is NumPy too.

    Args:
      vae: the model.
      video: in [-1, 1], [B, T, H, W, 3], T = 4k + 1, H and W multiples of 8.
      tiling: `TemporalTiling`, `Streaming` or `SpatialTiling`, or a tuple of one in time and one in
        space; None for the clip as a whole.
      pad: take any length and sides; the last frame, row and column are repeated as often as it
        needs, and the posterior's `size` is what `decode` cuts back to.
      mesh: spreads clips over its axes "data" and "fsdp", rows over "height" (`make_mesh`), Auto
        or Explicit; no approximation. A model that lies on it already is not copied.

    Raises:
      ValueError: for another shape or dtype, naming the nearest shape that would do; streaming with
        norms over time; rows or clips that do not divide over the mesh.
    """
    check_video(video, vae.config, pad=pad)
    run, *arguments = _encoding(vae, video, tiling, mesh)
    size = VideoSize(*video.shape[1:4]) if pad else None
    return DiagonalGaussian.from_moments(run(*arguments), size)


def encode_uint8(
    vae: ODVAE,
    video: UInt8[AnyArray, "b t h w 3"],
    *,
    tiling: Tilings = None,
    pad: bool = False,
    mesh: Mesh | None = None,
) -> DiagonalGaussian:
    """`encode` of a uint8 video, 0 to 255, scaled to [-1, 1] on the device.

    Raises:
      ValueError: if `video` is not uint8, or as `encode`.
    """
    check_video(video, vae.config, uint8=True, pad=pad)
    run, *arguments = _encoding(vae, video, tiling, mesh)
    size = VideoSize(*video.shape[1:4]) if pad else None
    return DiagonalGaussian.from_moments(run(*arguments), size)


def decode(
    vae: ODVAE,
    latents: Float[AnyArray, "b t h w c"],
    *,
    tiling: Tilings = None,
    size: VideoSize | None = None,
    mesh: Mesh | None = None,
) -> Float[AnyArray, "b u v x 3"]:
    """The float32 video, about [-1, 1], of unscaled latents (Eq. 2, section 3.3).

    Called outside `jit` with a tiling in time, it runs part by part, as `encode` does.

    Args:
      vae: the model.
      latents: [B, t, h, w, C].
      tiling: as of `encode`.
      size: what to cut the video to; of a padded one the posterior's `size`.
      mesh: as of `encode`.

    Raises:
      ValueError: if `latents` is not a floating-point array [B, t, h, w, C] with the model's C, or
        too small for `size`; else as `encode`.
    """
    return _decode(vae, latents, tiling, size, mesh, uint8=False)


def decode_uint8(
    vae: ODVAE,
    latents: Float[AnyArray, "b t h w c"],
    *,
    tiling: Tilings = None,
    size: VideoSize | None = None,
    mesh: Mesh | None = None,
) -> UInt8[AnyArray, "b u v x 3"]:
    """`decode` to uint8, rounded to the nearest and clipped on the device.

    Raises:
      ValueError: as `decode`.
    """
    return _decode(vae, latents, tiling, size, mesh, uint8=True)


def _encoding(vae, video, tiling, mesh):
    """The function that computes the moments, and its arguments."""
    time, space = _checked(vae, tiling, mesh)
    padded = vae.config.clip_size(*video.shape[1:4])
    shape = (video.shape[0], *padded, IMAGE_CHANNELS)
    _check_devices("video", video, shape, vae.config.space_compression, mesh)
    if time is not None and not _is_traced(vae, video):

        def from_host(vae, video, mesh):
            return encode_blocks(vae, cut_in_blocks(video, time.step), time, space, mesh=mesh)

        return _in_blocks, from_host, vae, video, mesh
    vae, video = _placed(vae, pad_video(video, padded), mesh)
    if time is space is None and video.dtype != jnp.uint8:
        return encode_clip, vae, video
    return _moments_in_parts, vae, video, time, space


def _decode(vae, latents, tiling, size, mesh, *, uint8):
    check_latents(latents, vae.config)
    time, space = _checked(vae, tiling, mesh)
    check_size(size, latents.shape, vae.config)
    _check_devices("latents", latents, latents.shape, 1, mesh)
    if time is not None and not _is_traced(vae, latents):
        step = time.step // vae.config.time_compression

        def from_host(vae, latents, mesh):
            blocks = cut_in_blocks(latents, step)
            return decode_blocks(vae, blocks, time, space, uint8=uint8, mesh=mesh)

        video = _in_blocks(from_host, vae, latents, mesh)
    else:
        vae, latents = _placed(vae, latents, mesh)
        if time is space is None and not uint8:
            video = decode_clip(vae, latents)
        else:
            video = _video_in_parts(vae, latents, time, space, uint8)
    return video if size is None else size.cut(video)


@functools.partial(jax.jit, static_argnames=("time", "space"))
def _moments_in_parts(vae, video, time, space):
    def run(vae, video):
        part = functools.partial(encode_part, vae, space=space)
        if time is None:
            return part(video, None)[0]
        return time.run(part, video, time.step)

    shape = vae.config.latent_shape(video.shape)
    return with_automatic_axes(run, (vae, video), shape)(vae, video)


@functools.partial(jax.jit, static_argnames=("time", "space", "uint8"))
def _video_in_parts(vae, latents, time, space, uint8):
    def run(vae, latents):
        part = functools.partial(decode_part, vae, space=space, uint8=uint8)
        if time is None:
            return part(latents, None, True)[0]
        return time.run(part, latents, time.step // vae.config.time_compression)

    shape = vae.config.video_shape(latents.shape)
    return with_automatic_axes(run, (vae, latents), shape)(vae, latents)


def _checked(vae, tiling, mesh):
    """What is done in time and in space, if the model and the mesh allow it."""
    time, space = in_time_and_space(tiling)
    for one in filter(None, (time, space)):
        one.check(vae.config)
    if space is not None and mesh is not None and mesh.shape.get("height", 1) > 1:
        raise ValueError(
            f"{space} and a mesh with height={mesh.shape['height']}: rows are either tiled or "
            "spread over devices. Leave out one; spreading is exact."
        )
    return time, space


def _check_devices(name, x, shape, unit, mesh):
    sharding = sharding_of(x)
    if mesh is not None:
        check_spread(name, shape, mesh, unit)
        sharding = clip_sharding(mesh)
    check_rows(name, shape, sharding, unit)


def _is_traced(*trees):
    """Whether this is part of a compiled function, of constants too."""
    ambient = jnp.zeros(())  # traced itself inside one
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((ambient, trees)))


def _placed(vae, x, mesh):
    return (vae, x) if mesh is None else (replicate(vae, mesh), spread_clips(x, mesh))


def _in_blocks(run, vae, x, mesh):
    """The parts that `run` gives, joined; Explicit axes are Auto meanwhile."""
    shardings = map(sharding_of, jax.tree.leaves((vae, x)))
    meshes = [mesh, *(getattr(sharding, "mesh", None) for sharding in shardings)]
    explicit = any(m is not None and AxisType.Explicit in m.axis_types for m in meshes)
    if explicit:
        vae, x = with_axes((vae, x), AxisType.Auto)
        mesh = None if mesh is None else mesh_with_axes(mesh, AxisType.Auto)
    parts = run(vae, x, mesh)
    if isinstance(x, np.ndarray):
        return np.concatenate(list(fetched(parts)), axis=1)
    joined = jnp.concatenate(list(parts), axis=1)
    return with_axes(joined, AxisType.Explicit) if explicit else joined
