"""Which frames of a video a clip takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def spread_over(count: int, window: int) -> list[int]:
    """Returns numbers of frames that are evenly spread over a window, the first and the last too.

    What lies between two frames is cut to the one before, as Latte does it: 81 frames of 243 are 3
    frames apart, and 4 in two places.

    Args:
      count: the number of frames.
      window: the number of frames of the window, at least `count`.
    """
    return [i * (window - 1) // max(count - 1, 1) for i in range(count)]


def select_frames(
    frames: Iterable[tuple[float, T]],
    start: float,
    count: int,
    *,
    rate: float,
    stride: int = 1,
    fps: float | None = None,
    window: int | None = None,
) -> list[T]:
    """Selects the frames of a clip from the frames of a video.

    Without `fps`, the clip takes every `stride`-th frame from `start` on, or with `window` frames
    that are evenly spread over so many. With `fps`, it takes the frame that is on show at each of
    `fps` evenly spaced moments per second.

    Args:
      frames: pairs of a time in seconds and a frame, in order of time. They must begin at `start`
        or before.
      start: the time at which the clip begins, in seconds.
      count: the number of frames in the clip.
      rate: the frames per second at which `frames` come.
      stride: the distance of the clip's frames, in frames of the video; unused if `fps` or `window`
        is given.
      fps: the frames per second of the clip.
      window: the number of frames of the video that the clip is spread over, at least `count`.

    Returns:
      A list of `count` frames, or of fewer if the video ends before.
    """
    chosen: list[T] = []
    if fps is None:
        later = (frame for time, frame in frames if time >= start - 0.5 / rate)
        if window is not None:
            wanted = {*spread_over(count, window)}
            first = enumerate(itertools.islice(later, max(wanted) + 1))
            return [frame for number, frame in first if number in wanted]
        return list(itertools.islice(later, 0, (count - 1) * stride + 1, stride))
    moments = start + np.arange(count) / fps + 1e-6
    shown, time = None, start
    for time, frame in frames:
        while shown is not None and len(chosen) < count and time > moments[len(chosen)]:
            chosen.append(shown)
        if len(chosen) == count:
            return chosen
        shown = frame
    # The last frame stays on show for as long as a frame lasts.
    while shown is not None and len(chosen) < count and moments[len(chosen)] < time + 1 / rate:
        chosen.append(shown)
    return chosen
