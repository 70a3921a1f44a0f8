"""Frames as arrays: their colours, sizes and crops."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Shaped, UInt8

# Without the last two, swscale takes short cuts that make every colour one level darker.
INTERPOLATION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""How FFmpeg scales frames and converts their colours."""


def to_rgb(
    frames: Sequence[av.VideoFrame], short_side: int | None = None
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Converts decoded frames to RGB, scales them, and turns them as their file says.

    Args:
      frames: one or more frames of one size.
      short_side: the length in pixels to which the shorter side is scaled, with antialiasing. None
        keeps the size.

    Returns:
      An array uint8 [H, W, 3] for every frame.
    """
    scaler = VideoReformatter()
    width, height = scaled_size(frames[0].width, frames[0].height, short_side)
    turns = round(frames[0].rotation / 90) % 4
    how = {"interpolation": INTERPOLATION, "threads": 1}
    arrays = [scaler.reformat(f, width, height, "rgb24", **how).to_ndarray() for f in frames]
    return [np.rot90(array, turns) for array in arrays] if turns else arrays


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Returns the width and height of a frame after its shorter side is scaled to `short_side`.

    All lengths are in pixels. For None the size stays as it is.
    """
    if short_side is None:
        return width, height
    scale = short_side / min(width, height)
    return tuple(max(round(s * scale), short_side) for s in (width, height))


def centre_crop(
    frames: Shaped[np.ndarray, "*batch h w c"], height: int, width: int
) -> Shaped[np.ndarray, "*batch y x c"]:
    """Cuts the middle out of frames [..., H, W, C]; returns a view [..., height, width, C]."""
    top, left = (frames.shape[-3] - height) // 2, (frames.shape[-2] - width) // 2
    return frames[..., top : top + height, left : left + width, :]
