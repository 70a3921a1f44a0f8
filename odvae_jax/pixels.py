"""Values and sizes of videos as people have them, and as the model takes them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from odvae_jax.config import SPACE_COMPRESSION
from odvae_jax.types import AnyArray


def to_unit_range(video: UInt8[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to float32 in [-1, 1]."""
    return jnp.asarray(video, jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[AnyArray, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] to 0..255: rounded to the nearest, and clipped."""
    levels = jnp.round((jnp.asarray(video, jnp.float32) + 1.0) * 127.5)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class VideoSize:
    """Frames, rows and columns of a video before it was padded."""

    frames: int
    height: int
    width: int

    def cut(self, video: Shaped[AnyArray, "b t h w c"]) -> Shaped[AnyArray, "b u v x c"]:
        """The video without what it was padded with."""
        return video[:, : self.frames, : self.height, : self.width]


def padded_size(size: VideoSize, time_compression: int) -> VideoSize:
    """The smallest size that a model takes and that holds `size`: 4k + 1, and multiples of 8."""
    sides = (
        -(-side // SPACE_COMPRESSION) * SPACE_COMPRESSION for side in (size.height, size.width)
    )
    frames = -(-(size.frames - 1) // time_compression) * time_compression + 1
    return VideoSize(frames, *sides)


def pad_video(video: Shaped[AnyArray, "b t h w c"], frames: int) -> Shaped[AnyArray, "b u v x c"]:
    """The video with its last frame repeated until there are `frames`.

    Its last row and column are too, until both sides are multiples of 8. NumPy in, NumPy out.
    """
    more = (frames - video.shape[1], *(-side % SPACE_COMPRESSION for side in video.shape[2:4]))
    if not any(more):
        return video
    pad = np.pad if isinstance(video, np.ndarray) else jnp.pad
    return pad(video, ((0, 0), *((0, n) for n in more), (0, 0)), mode="edge")
