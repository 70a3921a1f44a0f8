"""Encoding and decoding as functions, with tiling, padding and meshes, and their uint8 forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Float, UInt8

from odvae_jax.autoencoder import decode_clip, encode_clip
from odvae_jax.baselines import base
from odvae_jax.checks import (
    check_continuous,
    check_latents,
    check_size,
    check_untiled,
    check_video,
)
from odvae_jax.config import IMAGE_CHANNELS
from odvae_jax.parameters import Autoencoder
from odvae_jax.pixels import VideoSize, pad_video, to_uint8, to_unit_range
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
from odvae_jax.tiling import AnyTiling, AutoTiling, in_time_and_space
from odvae_jax.tiling.auto import Work, run_largest, whole_clip
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
    vae: Autoencoder,
    video: Float[AnyArray, "b t h w 3"],
    *,
    tiling: AnyTiling = None,
    pad: bool = False,
    mesh: Mesh | None = None,
) -> DiagonalGaussian:
    """Returns the posterior over the latents of a video (Eq. 1, section 3.3).

    The latents are [B, k + 1, H / 8, W / 8, C], and unscaled. Outside `jit`, a tiling in time runs
    part by part: the program of a part is compiled once for clips of all lengths. Of a NumPy video
    only one part at a time is on the device, and what is returned is NumPy too.

    Args:
      vae: the model: an OD-VAE, or a baseline with continuous latents, which takes no tiling.
      video: floating point in [-1, 1], [B, T, H, W, 3]. T is 4k + 1; H and W are multiples of 8.
      tiling: `TemporalTiling`, `Streaming` or `SpatialTiling`, or a tuple of one tiling in time and
        one in space; None takes the clip as a whole. "auto", or an `AutoTiling`, takes it as a
        whole if the device's memory suffices, and else the largest parts for which it does; the
        call then returns when the result is there.
      pad: whether any length and any sides are accepted. The last frame, row and column are then
        repeated as often as needed, and the posterior keeps the original `size`, to which `decode`
        cuts.
      mesh: a mesh (`make_mesh`) whose axes "data" and "fsdp" share the clips and whose axis
        "height" shares the rows. Its axes are Auto or Explicit. The result is exact. A model that
        lies on the mesh already is not copied.

    Raises:
      ValueError: if the shape or the dtype is another, with the nearest shape that would do; if a
        model whose norms take their statistics over time is streamed; if rows or clips cannot be
        divided over the mesh; or if the tiling is "auto" under a trace, or on a device that does
        not say how much memory it has.
    """
    check_video(video, vae.config, pad=pad)
    run, *arguments = _encoding(vae, video, tiling, mesh)
    size = VideoSize(*video.shape[1:4]) if pad else None
    return DiagonalGaussian.from_moments(run(*arguments), size)


def encode_uint8(
    vae: Autoencoder,
    video: UInt8[AnyArray, "b t h w 3"],
    *,
    tiling: AnyTiling = None,
    pad: bool = False,
    mesh: Mesh | None = None,
) -> DiagonalGaussian:
    """Returns the posterior over the latents of a uint8 video; otherwise like `encode`.

    The video is scaled from 0 to 255 to [-1, 1] on the device.

    Args:
      vae: the model.
      video: uint8, from 0 to 255, [B, T, H, W, 3].
      tiling: how the clip is cut; see `encode`.
      pad: whether any length and any sides are accepted; see `encode`.
      mesh: the devices that share clips and rows; see `encode`.

    Raises:
      ValueError: if `video` is not uint8, or for the reasons that `encode` has.
    """
    check_video(video, vae.config, uint8=True, pad=pad)
    run, *arguments = _encoding(vae, video, tiling, mesh)
    size = VideoSize(*video.shape[1:4]) if pad else None
    return DiagonalGaussian.from_moments(run(*arguments), size)


def decode(
    vae: Autoencoder,
    latents: Float[AnyArray, "b t h w c"],
    *,
    tiling: AnyTiling = None,
    size: VideoSize | None = None,
    mesh: Mesh | None = None,
) -> Float[AnyArray, "b u v x 3"]:
    """Returns the video of unscaled latents (Eq. 2, section 3.3).

    It is float32, about [-1, 1], [B, 4(t - 1) + 1, 8h, 8w, 3]. Outside `jit`, a tiling in time runs
    part by part, as in `encode`.

    Args:
      vae: the model.
      latents: floating point, [B, t, h, w, C].
      tiling: how the clip is cut; see `encode`.
      size: the frames, rows and columns that the video is cut to, such as the `size` of a
        posterior; None cuts nothing. OPS-VAE needs it, with the clip's own number of frames.
      mesh: the devices that share clips and rows; see `encode`.

    Raises:
      ValueError: if `latents` is not a floating-point array [B, t, h, w, C] with the model's C; if
        it holds less than `size`; if a model whose norms take their statistics over time is
        streamed; or if rows or clips cannot be divided over the mesh.
    """
    return _decode(vae, latents, tiling, size, mesh, uint8=False)


def decode_uint8(
    vae: Autoencoder,
    latents: Float[AnyArray, "b t h w c"],
    *,
    tiling: AnyTiling = None,
    size: VideoSize | None = None,
    mesh: Mesh | None = None,
) -> UInt8[AnyArray, "b u v x 3"]:
    """Returns the video of unscaled latents as uint8; otherwise like `decode`.

    The video is scaled to 0 to 255, rounded to the nearest level, and clipped, on the device.

    Args:
      vae: the model.
      latents: floating point, [B, t, h, w, C].
      tiling: how the clip is cut; see `encode`.
      size: the frames, rows and columns that the video is cut to; None cuts nothing.
      mesh: the devices that share clips and rows; see `encode`.

    Raises:
      ValueError: for the reasons that `decode` has.
    """
    return _decode(vae, latents, tiling, size, mesh, uint8=True)


def _encoding(vae, video, tiling, mesh):
    """Returns the function that computes the moments, and its arguments."""
    time, space = _checked(vae, tiling, mesh)
    padded = vae.config.clip_size(*video.shape[1:4])
    shape = (video.shape[0], *padded, IMAGE_CHANNELS)
    _check_devices("video", video, shape, vae.config.space_compression, mesh)
    if (auto := AutoTiling.of(tiling)) is not None:
        _check_not_traced(vae, video)
        run = functools.partial(_fitting, _moments_in_blocks, auto, encodes=True, uint8=True)
        return _on_automatic_axes, run, vae, video, mesh
    if time is not None and not _is_traced(vae, video):
        run = functools.partial(_moments_in_blocks, time=time, space=space)
        return _on_automatic_axes, run, vae, video, mesh
    vae, video = _placed(vae, pad_video(video, padded), mesh)
    if isinstance(vae, base.Baseline):
        return _moments_of_whole, vae, video
    if time is space is None and video.dtype != jnp.uint8:
        return encode_clip, vae, video
    return _moments_in_parts, vae, video, time, space


def _decode(vae, latents, tiling, size, mesh, *, uint8):
    time, space = _checked(vae, tiling, mesh)
    check_latents(latents, vae.config)
    shape = _decoded_shape(vae.config, latents.shape, size)
    check_size(size, latents.shape, shape)
    _check_devices("latents", latents, latents.shape, 1, mesh)
    if (auto := AutoTiling.of(tiling)) is not None:
        _check_not_traced(vae, latents)
        in_blocks = functools.partial(_video_in_blocks, uint8=uint8)
        run = functools.partial(_fitting, in_blocks, auto, encodes=False, uint8=uint8)
        video = _on_automatic_axes(run, vae, latents, mesh)
    elif time is not None and not _is_traced(vae, latents):
        run = functools.partial(_video_in_blocks, time=time, space=space, uint8=uint8)
        video = _on_automatic_axes(run, vae, latents, mesh)
    else:
        vae, latents = _placed(vae, latents, mesh)
        if isinstance(vae, base.Baseline):
            video = _video_of_whole(vae, latents, shape[1], uint8)
        elif time is space is None and not uint8:
            video = decode_clip(vae, latents)
        else:
            video = _video_in_parts(vae, latents, time, space, uint8)
    return video if size is None else size.cut(video)


def _moments_in_blocks(vae, video, mesh, *, time, space):
    return _joined(
        encode_blocks(vae, cut_in_blocks(video, time.step), time, space, mesh=mesh), video
    )


def _video_in_blocks(vae, latents, mesh, *, time, space, uint8):
    blocks = cut_in_blocks(latents, time.step // vae.config.time_compression)
    return _joined(decode_blocks(vae, blocks, time, space, uint8=uint8, mesh=mesh), latents)


def _fitting(in_blocks, auto, vae, x, mesh, *, encodes, uint8):
    """Computes in the largest parts for which the memory suffices, and waits for the result."""
    vae = vae if mesh is None else replicate(vae, mesh)
    work = Work.of(x, vae.config, mesh, encodes=encodes, uint8=uint8)

    def run(tilings):
        time, space = in_time_and_space(tilings)
        time = time or whole_clip(vae.config, work.frames(vae.config))
        return jax.block_until_ready(in_blocks(vae, x, mesh, time=time, space=space))

    return run_largest(run, vae, work, auto)


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


def _moments_of_whole(model, video):
    return base.encode_clip(model, _to_unit_range(video) if video.dtype == jnp.uint8 else video)


def _video_of_whole(model, latents, frames, uint8):
    video = base.decode_clip(model, latents, frames)
    return _to_uint8(video) if uint8 else video


# Beside the model's programs, so that these are those of its own `encode` and `decode`.
_to_unit_range = jax.jit(to_unit_range, inline=True)
_to_uint8 = jax.jit(to_uint8, inline=True)


def _decoded_shape(config, shape, size):
    """Returns the shape of the video that latents are decoded to, before it is cut."""
    if not config.needs_frames:
        return config.video_shape(shape)
    if not isinstance(size, VideoSize):
        raise ValueError(
            f"{config.name} cannot tell from {shape[1]} latent frames how many frames the clip "
            "had: give its size, a VideoSize(frames, height, width)."
        )
    return config.video_shape(shape, size.frames)


def _checked(vae, tiling, mesh):
    """Returns the tiling in time and in space, if the model and the mesh allow them."""
    if isinstance(vae, base.Baseline):
        check_continuous(vae.config)
        check_untiled(vae.config, tiling)
    time, space = in_time_and_space(None if AutoTiling.of(tiling) else tiling)
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
    """Whether this runs inside a function that is being compiled, even on constants."""
    ambient = jax.device_put(np.float32(0))  # traced itself inside one
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((ambient, trees)))


def _placed(vae, x, mesh):
    return (vae, x) if mesh is None else (replicate(vae, mesh), spread_clips(x, mesh))


def _check_not_traced(vae, x):
    if _is_traced(vae, x):
        raise ValueError(
            'tiling="auto" inside of jit or another trace: how much memory the program around it '
            "needs is not known yet. Choose before, with odvae_jax.tiling.choose(vae, shape, "
            "encodes=True), and give what it returns as tiling."
        )


def _on_automatic_axes(run, vae, x, mesh):
    """Returns what `run` returns; meanwhile Explicit axes are Auto."""
    shardings = map(sharding_of, jax.tree.leaves((vae, x)))
    meshes = [mesh, *(getattr(sharding, "mesh", None) for sharding in shardings)]
    if not any(m is not None and AxisType.Explicit in m.axis_types for m in meshes):
        return run(vae, x, mesh)
    vae, x = with_axes((vae, x), AxisType.Auto)
    mesh = None if mesh is None else mesh_with_axes(mesh, AxisType.Auto)
    return with_axes(run(vae, x, mesh), AxisType.Explicit)


def _joined(parts, x):
    """Returns the parts, joined, where `x` is: on the host or on the device."""
    if isinstance(x, np.ndarray):
        return np.concatenate(list(fetched(parts)), axis=1)
    return jnp.concatenate(list(parts), axis=1)
