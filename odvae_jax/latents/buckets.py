"""Buckets: the sizes that clips are brought to, and which video goes into which."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

_ASPECTS = 2.0
"""The greatest ratio of the sides of a bucket that is made from a pixel budget."""


@dataclasses.dataclass(frozen=True, order=True)
class Size:
    """The size of a clip: frames, rows and columns. Its text is as in 17x128x128."""

    frames: int
    height: int
    width: int

    def __str__(self):
        return f"{self.frames}x{self.height}x{self.width}"


class LeftOutError(ValueError):
    """A video is in no bucket. The message says why in few words, such as "too short"."""


def parse_buckets(text: str, *, time: int, space: int) -> tuple[Size, ...]:
    """Returns the sizes that a text names, without doubles, sorted.

    Args:
      text: sizes as frames×height×width, or frames and a pixel budget, separated by commas: as in
        "17x128x128,17x96x160" or "33@65536". From a budget, sizes are made by aspect ratio from 1:2
        to 2:1, with sides in multiples of twice `space`, each with as many pixels as the budget
        allows.
      time: the number of frames per latent frame after the first; frames are `time` k + 1.
      space: the number of rows, or columns, per row or column of latents.

    Raises:
      ValueError: if the text names no sizes, or sizes that cannot be encoded; it says which can.
    """
    sizes: set[Size] = set()
    for item in filter(None, (part.strip() for part in text.replace("×", "x").split(","))):
        if match := re.fullmatch(r"(\d+)x(\d+)x(\d+)", item):
            sizes.add(Size(*map(int, match.groups())))
        elif match := re.fullmatch(r"(\d+)@(\d+)", item):
            sizes.update(of_budget(*map(int, match.groups()), unit=2 * space))
        else:
            raise ValueError(
                f"{item!r:.60} is no bucket; expected frames×height×width or frames@pixels, as in "
                "17x128x128,33@65536."
            )
    if not sizes:
        raise ValueError(f"{text!r:.60} names no bucket.")
    for size in sorted(sizes):
        frames = time * max(round((size.frames - 1) / time), 0) + 1
        height, width = (space * max(round(s / space), 1) for s in (size.height, size.width))
        if (nearest := Size(frames, height, width)) != size:
            frames_are = f"frames are {time}k + 1" if time > 1 else "there is at least one frame"
            raise ValueError(
                f"the bucket {size} cannot be encoded: {frames_are}, and height and width are "
                f"multiples of {space}. The nearest is {nearest}."
            )
    return tuple(sorted(sizes))


def of_budget(frames: int, pixels: int, *, unit: int) -> list[Size]:
    """Returns sizes of many aspect ratios, from 1:2 to 2:1, with at most so many pixels per frame.

    Args:
      frames: the number of frames of each size.
      pixels: the greatest number of pixels per frame.
      unit: what height and width are multiples of.

    Raises:
      ValueError: if the budget is too small for one size.
    """
    upright: dict[int, int] = {}  # the width by the height of sizes that are no wider than high
    for width in range(unit, math.isqrt(pixels) + 1, unit):
        height = pixels // width // unit * unit
        if height <= _ASPECTS * width:
            # Of sizes with one height only the one with most pixels is worth a program.
            upright[height] = width
    if not upright:
        raise ValueError(f"{pixels} pixels are too few for a frame of at least {unit}×{unit}.")
    sides = {*upright.items(), *((width, height) for height, width in upright.items())}
    return sorted(Size(frames, height, width) for height, width in sides)


def choose(sizes: Sequence[Size], frames: int, height: int, width: int) -> Size:
    """Returns the bucket of a video.

    It is one whose aspect ratio is nearest to the video's; of several such, the one with most
    frames that the video has, and of these the one with most pixels that it has. Videos are never
    enlarged.

    Args:
      sizes: the buckets.
      frames: the greatest number of frames that a clip of the video can have.
      height: the rows of the video.
      width: the columns of the video.

    Raises:
      LeftOutError: if the video is too small or too short for every bucket of the nearest aspect
        ratio.
    """

    def distance(size):
        return abs(math.log(size.width / size.height) - math.log(width / height))

    least = min(map(distance, sizes))
    alike = [size for size in sizes if distance(size) <= least + 1e-9]
    fitting = [size for size in alike if size.height <= height and size.width <= width]
    if not fitting:
        raise LeftOutError("too small")
    fitting = [size for size in fitting if size.frames <= frames]
    if not fitting:
        raise LeftOutError("too short")
    return max(fitting, key=lambda size: (size.frames, size.height * size.width))
