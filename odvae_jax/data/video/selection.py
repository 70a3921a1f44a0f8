"""Which frames of a video a clip takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def select_frames(
    frames: Iterable[tuple[float, T]],
    start: float,
    count: int,
    *,
    rate: float,
    stride: int = 1,
    fps: float | None = None,
) -> list[T]:
    """Selects the frames of a clip from the frames of a video.

    Without `fps`, the clip takes every `stride`-th frame from `start` on. With `fps`, it takes the
    frame that is on show at each of `fps` evenly spaced moments per second.

    Args:
      frames: pairs of a time in seconds and a frame, in order of time. They must begin at `start`
        or before.
      start: the time at which the clip begins, in seconds.
      count: the number of frames in the clip.
      rate: the frames per second at which `frames` come.
      stride: the distance of the clip's frames, in frames of the video; unused if `fps` is given.
      fps: the frames per second of the clip.

    Returns:
      A list of `count` frames, or of fewer if the video ends before.
    """
    chosen: list[T] = []
    if fps is None:
        later = (frame for time, frame in frames if time >= start - 0.5 / rate)
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
