"""Clips of any length, part by part from the host; each shape of a part is compiled once.

A part is what a group or a chunk adds to those before it: `tiling.step` frames, and one more for
the first. So neither the host nor the device ever holds the whole clip.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from odvae_jax.autoencoder import ODVAE
from odvae_jax.layers.carry import START, Carry, State
from odvae_jax.pixels import frames_between, pad_video, to_uint8, to_unit_range
from odvae_jax.sharding import replicate, spread_clips
from odvae_jax.tiling.spatial import SpatialTiling
from odvae_jax.tiling.streaming import Streaming
from odvae_jax.tiling.temporal import TemporalTiling
from odvae_jax.types import AnyArray

T = TypeVar("T")
Temporal = TemporalTiling | Streaming


def encode_part(
    vae: ODVAE,
    video: Shaped[Array, "b t h w 3"],
    state: State,
    final: bool = True,
    *,
    space: SpatialTiling | None,
) -> tuple[Float[Array, "b u v x c2"], State]:
    """Encodes one part of a clip.

    A uint8 part is scaled here, so that a whole clip is never in memory as float32.

    Args:
      vae: the model.
      video: the part, uint8 from 0 to 255 or floating point in [-1, 1].
      state: the state before the part; START at the beginning of a clip, None if nothing is
        carried.
      final: whether it is the last part of the clip.
      space: how frames are cut; None takes them whole.

    Returns:
      The moments, and the state after the part.
    """

    def part(video, state, final):
        carry = Carry(state, final)
        video = to_unit_range(video) if video.dtype == jnp.uint8 else video
        return vae.to_moments(video, carry), carry.state

    if space is None:
        return part(video, state, final)
    return space.run(part, video, state, final, config=vae.config, encodes=True)


def decode_part(
    vae: ODVAE,
    latents: Float[Array, "b t h w c"],
    state: State,
    final: bool,
    *,
    space: SpatialTiling | None,
    uint8: bool,
) -> tuple[Shaped[Array, "b u v x 3"], State]:
    """Decodes one part of a clip.

    Args:
      vae: the model.
      latents: the unscaled latents of the part.
      state: the state before the part; START at the beginning of a clip, None if nothing is
        carried.
      final: whether it is the last part of the clip.
      space: how frames are cut; None takes them whole.
      uint8: whether the frames are uint8, from 0 to 255, instead of float32, about [-1, 1].

    Returns:
      The frames, and the state after the part.
    """

    def part(latents, state, final):
        carry = Carry(state, final)
        return vae.to_video(latents, carry), carry.state

    if space is None:
        frames, state = part(latents, state, final)
    else:
        frames, state = space.run(part, latents, state, final, config=vae.config, encodes=False)
    return (to_uint8(frames) if uint8 else frames), state


_encode_part = jax.jit(encode_part, static_argnames=("final", "space"))
_decode_part = jax.jit(decode_part, static_argnames=("final", "space", "uint8"))
_without_first = jax.jit(lambda x: x[:, 1:])
_slice_frames = jax.jit(
    functools.partial(jax.lax.dynamic_slice_in_dim, axis=1), static_argnames="slice_size"
)


def lower_part(
    vae: ODVAE,
    x: jax.ShapeDtypeStruct,
    state: Any,
    final: bool,
    space: SpatialTiling | None,
    *,
    encodes: bool,
    uint8: bool,
) -> jax.stages.Lowered:
    """Returns the program of one part of a clip, lowered but not compiled.

    Once it is compiled, `encode_blocks` and `decode_blocks` do not compile it again.

    Args:
      vae: the model.
      x: the shape and dtype of the part.
      state: the shapes of the state before the part; START at the beginning of a clip, None if
        nothing is carried.
      final: whether it is the last part of the clip.
      space: how frames are cut; None takes them whole.
      encodes: whether `x` is video; otherwise it is latents.
      uint8: whether decoded frames are uint8.
    """
    if encodes:
        return _encode_part.lower(vae, x, state, space=space)
    return _decode_part.lower(vae, x, state, final, space=space, uint8=uint8)


def encode_blocks(
    vae: ODVAE,
    blocks: Iterable[Shaped[AnyArray, "b t h w 3"]],
    time: Temporal,
    space: SpatialTiling | None = None,
    *,
    mesh: Mesh | None = None,
) -> Iterator[Float[Array, "b u v x c2"]]:
    """Encodes a clip that comes in blocks of frames.

    Moments are yielded as soon as the device has the work, before they are computed.

    Args:
      vae: the model.
      blocks: the blocks, uint8 from 0 to 255 or floating point in [-1, 1]. The first one has
        `time.step` + 1 frames, the others have `time.step`. The last one may have any smaller
        number: it is padded by repetition, as rows and columns are.
      time: how the clip is cut in time.
      space: how frames are cut; None takes them whole.
      mesh: the devices that share clips and rows; None uses one device.

    Yields:
      The moments of each block, float32 [B, n, h, w, 2 C], on the device.
    """
    vae = vae if mesh is None else replicate(vae, mesh)
    run = functools.partial(_encode_part, space=space)
    before, state = None, START
    for block in blocks:
        beginning = before is None
        block = pad_video(block, _part_size(vae.config, block.shape, beginning))
        if isinstance(time, Streaming):
            moments, state = run(vae, _on_device(block, mesh), state)
        else:
            group = block if beginning else _concatenate([before, block])
            moments, _ = run(vae, _on_device(group, mesh), None)
            moments = moments if beginning else _without_first(moments)
        before = frames_between(block, -1)
        yield moments


def decode_blocks(
    vae: ODVAE,
    blocks: Iterable[Float[AnyArray, "b t h w c"]],
    time: Temporal,
    space: SpatialTiling | None = None,
    *,
    uint8: bool = False,
    mesh: Mesh | None = None,
) -> Iterator[Shaped[Array, "b u v x 3"]]:
    """Decodes a clip whose latents come in blocks.

    Args:
      vae: the model.
      blocks: the blocks of unscaled latents. The first one has n + 1 latent frames, the others have
        n, where n is `time.step` divided by the model's compression in time. The last one may have
        fewer.
      time: how the clip is cut in time.
      space: how frames are cut; None takes them whole.
      uint8: whether the frames are uint8, from 0 to 255, instead of float32, about [-1, 1].
      mesh: the devices that share clips and rows; None uses one device.

    Yields:
      The frames of each block, [B, t, H, W, 3], on the device. With streaming and linear upsampling
      in time, some frames of a block come with the next block.
    """
    vae = vae if mesh is None else replicate(vae, mesh)
    run = functools.partial(_decode_part, space=space, uint8=uint8)
    before, state = None, START
    for block, final in _with_last(blocks):
        if isinstance(time, Streaming):
            # A clip of one block needs no state, as a whole one.
            state = None if final and before is None else state
            frames, state = run(vae, _on_device(block, mesh), state, final)
        else:
            group = block if before is None else _concatenate([before, block])
            frames, _ = run(vae, _on_device(group, mesh), None, True)
            frames = frames if before is None else _without_first(frames)
        before = frames_between(block, -1)
        yield frames


def cut_in_blocks(
    x: Shaped[AnyArray, "b t ..."], step: int
) -> Iterator[Shaped[AnyArray, "b u ..."]]:
    """Yields blocks of an array along axis 1: first `step` + 1 long, then `step`, then the rest.

    Blocks of a NumPy array are views of it. An array that is one block is not copied.
    """
    if x.shape[1] <= step + 1:
        yield x
        return
    start, stop = 0, min(step + 1, x.shape[1])
    while start < x.shape[1]:
        if isinstance(x, np.ndarray):
            yield x[:, start:stop]
        else:
            # Put there: an argument would be sent to the device unasked.
            at = jax.device_put(np.int32(start))
            yield _slice_frames(x, at, slice_size=stop - start)
        start, stop = stop, min(stop + step, x.shape[1])


def fetched(parts: Iterable[Shaped[Array, "..."]]) -> Iterator[Shaped[np.ndarray, "..."]]:
    """Yields a copy on the host of each part, while the device works on the next one."""
    waiting = None
    for part in parts:
        part.copy_to_host_async()  # the copy runs while the caller asks for the next part
        if waiting is not None:
            yield np.asarray(waiting)
        waiting = part
    if waiting is not None:
        yield np.asarray(waiting)


def _part_size(config, shape, beginning):
    """The frames, rows and columns that a part of a clip is padded to."""
    more = 0 if beginning else 1  # with a frame before it, a part is a clip
    frames, *sides = config.clip_size(shape[1] + more, *shape[2:4])
    return frames - more, *sides


def _with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    items = iter(items)
    waiting = next(items, None)
    while waiting is not None:
        after = next(items, None)
        yield waiting, after is None
        waiting = after


def _on_device(x, mesh):
    return jnp.asarray(x) if mesh is None else spread_clips(x, mesh)


def _concatenate(parts):
    xp = np if isinstance(parts[0], np.ndarray) else jnp
    return xp.concatenate(parts, axis=1)
