"""The values and the sizes of videos, as people have them and as models take them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from odvae_jax.types import AnyArray, whole_numbers


def to_unit_range(video: UInt8[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """Returns a uint8 video, from 0 to 255, as float32 in [-1, 1]."""
    return jnp.asarray(video, jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[AnyArray, "*shape"]) -> UInt8[Array, "*shape"]:
    """Returns a video in [-1, 1] as uint8, from 0 to 255, rounded to the nearest and clipped."""
    levels = jnp.round((jnp.asarray(video, jnp.float32) + 1.0) * 127.5)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class VideoSize:
    """The size of a video before it was padded.

    Attributes:
      frames: the number of frames.
      height: the number of rows.
      width: the number of columns.

    Raises:
      ValueError: if one of them is no whole number, or is less than 1.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self):
        whole_numbers(self, "frames", "frames", least=1)
        whole_numbers(self, "pixels", "height", "width", least=1)

    def cut(self, video: Shaped[AnyArray, "b t h w c"]) -> Shaped[AnyArray, "b u v x c"]:
        """Returns a video [B, T, H, W, C] cut to this size at its end, bottom and right."""
        cut = _cut_array if isinstance(video, np.ndarray) else _cut
        return cut(video, dataclasses.astuple(self))


def pad_video(
    video: Shaped[AnyArray, "b t h w c"], size: tuple[int, int, int]
) -> Shaped[AnyArray, "b u v x c"]:
    """Returns a video with its last frame, row and column repeated until it has a size.

    A NumPy video gives a NumPy video.

    Args:
      video: the video, [B, T, H, W, C].
      size: the frames, rows and columns of the result, such as `ODVAEConfig.clip_size` returns.
    """
    more = [n - m for n, m in zip(size, video.shape[1:4], strict=True)]
    if not any(more):
        return video
    pad = np.pad if isinstance(video, np.ndarray) else _pad
    return pad(video, ((0, 0), *((0, n) for n in more), (0, 0)), mode="edge")


def _cut_array(video, size):
    frames, height, width = size
    return video[:, :frames, :height, :width]


# Compiled, so that no index is sent to the device by every call.
_cut = jax.jit(_cut_array, static_argnames="size", inline=True)
_pad = jax.jit(jnp.pad, static_argnames=("pad_width", "mode"), inline=True)


@functools.partial(jax.jit, static_argnames=("start", "stop"), inline=True)
def _frames_between(video, start, stop):
    return video[:, start:stop]


def frames_between(
    video: Shaped[AnyArray, "b t ..."], start: int, stop: int | None = None
) -> Shaped[AnyArray, "b u ..."]:
    """Returns the frames from `start` to `stop`, which count as in a slice; None is the end.

    Of a JAX array, each pair of numbers is compiled.
    """
    if isinstance(video, np.ndarray):
        return video[:, start:stop]
    return _frames_between(video, start, stop)
