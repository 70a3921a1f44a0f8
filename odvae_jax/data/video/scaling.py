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
    frames: Sequence[av.VideoFrame],
    short_side: int | None = None,
    cover: tuple[int, int] | None = None,
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Converts decoded frames to RGB, scales them, and turns them as their file says.

    Args:
      frames: one or more frames of one size.
      short_side: the length in pixels to which the shorter side is scaled, with antialiasing. None
        keeps the size.
      cover: the height and width in pixels of what is cut from the centre of the turned frames,
        after they were scaled to the least size that covers it; None cuts nothing.

    Returns:
      An array uint8 [H, W, 3] for every frame.
    """
    scaler = VideoReformatter()
    turns = round(frames[0].rotation / 90) % 4
    before = cover[::-1] if cover and turns % 2 else cover
    width, height = scaled_size(frames[0].width, frames[0].height, short_side, before)
    how = {"interpolation": INTERPOLATION, "threads": 1}
    arrays = [scaler.reformat(f, width, height, "rgb24", **how).to_ndarray() for f in frames]
    arrays = [np.rot90(array, turns) for array in arrays] if turns else arrays
    return arrays if cover is None else [centre_crop(array, *cover) for array in arrays]


def scaled_size(
    width: int, height: int, short_side: int | None, cover: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Returns the width and height that a frame is scaled to; all lengths are in pixels.

    Args:
      width, height: the sides of the frame.
      short_side: the length of the shorter side after scaling; None keeps the size.
      cover: a height and a width. The frame is scaled to the least size that covers them, and
        `short_side` is not used. None uses `short_side`.
    """
    if cover is not None:
        scale = max(cover[0] / height, cover[1] / width)
        return max(round(scale * width), cover[1]), max(round(scale * height), cover[0])
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
