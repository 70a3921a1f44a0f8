"""The clips that models are compared on: one per video, the same whenever it is read."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from odvae_jax.data.sources import Sampling, open_sources
from odvae_jax.data.sources.base import Where
from odvae_jax.data.video import READ_TIMEOUT, VideoError, centre_crop
from odvae_jax.files import counted, line_about, printable

logger = logging.getLogger(__name__)
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip of one video of a source.

    Attributes:
      index: the number of the video in its source, counted from 0.
      name: the name of the video.
      fps: the frames per second of the clip.
      frames: uint8 [T, H, W, 3], from 0 to 255; None if the video could not be used.
      reason: why the video could not be used; empty if it could.
    """

    index: int
    name: str
    fps: float = 0.0
    frames: UInt8[np.ndarray, "t h w 3"] | None = dataclasses.field(default=None, repr=False)
    reason: str = ""

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell the clip's frames from other frames."""
        return hashlib.blake2b(np.ascontiguousarray(self.frames), digest_size=8).hexdigest()


class FixedClips:
    """One clip per video: the short side is scaled to `size`, the centre cropped (section 4.1).

    Args:
      source: names one source of videos, as `odvae_jax.data.sources.open_sources` takes it.
      frames: the number T of frames in a clip.
      size: the side of the square clips in pixels.
      start: the frame of the video at which the clip begins. A negative number counts from the end
        of the video. None takes the last clip that fits.
      stride: the distance between the frames of a clip, in frames of the video.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      spread: whether a clip's frames are evenly spread over `frames` times `stride` frames of the
        video, or over all of a shorter one, as Latte's are; not with `fps`.
      limit: the number of videos that are used, from the first one on; 0 uses all.
      timeout: the seconds that one read of a video may take; None for no limit.

    Attributes:
      source: the text that names the source.
      sampling: how clips are cut out of videos.
      size: the side of the clips in pixels.
      start: the frame at which clips begin, or None.
      stride: the distance between the frames of a clip.
      problems: what is wrong with something else than a video, such as a folder that cannot be
        read or a link that leads nowhere, each with its path.

    Raises:
      ValueError: if the source is a mixture of several, or cannot be opened.
      FileNotFoundError: if the data is missing.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        *,
        frames: int = 25,
        size: int = 256,
        start: int | None = 0,
        stride: int = 1,
        fps: float | None = None,
        spread: bool = False,
        limit: int = 0,
        timeout: float | None = READ_TIMEOUT,
    ):
        sources = open_sources(source, timeout=timeout)
        if len(sources) > 1:
            raise ValueError(f"{source} is a mixture; models are compared on one source.")
        ((_, self._source),) = sources
        self.problems = self._source.problems
        self.source, self.size, self.start, self.stride = str(source), size, start, stride
        how = {"stride": (stride, stride), "fps": fps, "spread": spread}
        self.sampling = Sampling(frames, short_side=size, **how)
        self._count = min(limit, len(self._source)) if limit else len(self._source)

    def __len__(self) -> int:
        """Returns the number of videos that are used."""
        return self._count

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of frames, rows and columns of a clip, (T, H, W)."""
        return self.sampling.frames, self.size, self.size

    def name(self, index: int) -> str:
        """Returns the name of the video number `index`."""
        return self._source.name(index)

    def settings(self) -> dict:
        """Returns what decides which frames the clips hold, as values that JSON can hold."""
        videos = [(self.name(i), self._bytes_behind(i)) for i in range(len(self))]
        return {
            "data": self.source,
            "videos": len(self),
            "names and sizes": hashlib.sha256(json.dumps(videos).encode()).hexdigest()[:16],
            "frames": self.sampling.frames,
            "size": self.size,
            "start": self.start,
            "stride": self.stride,
            "fps": self.sampling.fps,
            **({"spread": True} if self.sampling.spread else {}),
        }

    def _bytes_behind(self, index: int) -> int | None:
        try:
            return self._source.bytes_behind(index)
        except Exception:  # why it cannot be used is said when it is read
            return None

    def read(self, index: int, where: Where | None = None) -> Clip:
        """Returns the clip of the video number `index`.

        It has no frames, but a reason in one line, if the video is too short or cannot be read.

        Args:
          index: the number of the video.
          where: maps the number of frames at which the clip can begin to the chosen one, counted
            from 0; None takes the place that `start` names.

        Raises:
          IndexError: if there is no video of this number.
        """
        if not -len(self._source) <= index < len(self._source):
            videos = counted(len(self._source), "video")
            raise IndexError(f"{self.source} has {videos}, counted from 0; no number {index}.")
        name = self.name(index)
        try:
            rate = self._source.rate(index)
            where = where or functools.partial(self._place, self.span(rate))
            frames = self._source.read(index, self.sampling, self.stride, where)
            frames = centre_crop(frames, self.size, self.size)
        except Exception as error:  # one video's trouble is not the others'
            logger.debug("%s", printable(name), exc_info=error)
            return Clip(index, name, reason=line_about(name, error))
        return Clip(index, name, self.sampling.fps or rate / self.stride, frames)

    def read_all(self, indices: Iterable[int], *, threads: int = 2) -> Iterator[Clip]:
        """Yields the clips of several videos in the order of `indices`.

        They are decoded ahead in `threads` threads.
        """
        yield from in_threads(self.read, indices, threads)

    def is_short(self, index: int) -> bool:
        """Returns whether a video can be read, but has fewer frames than a clip covers."""
        try:
            length = self._source.places(index, Sampling(1), 1)
            return length < self.span(self._source.rate(index))
        except Exception:  # why it cannot be used is said when it is read
            return False

    def span(self, rate: float) -> int:
        """Returns how many frames of a video one clip covers, from its first to its last.

        If the clips are spread, it is what they need at least.

        Args:
          rate: the frames per second of the video.
        """
        if self.sampling.spread:
            return self.sampling.frames
        step = rate / self.sampling.fps if self.sampling.fps else self.stride
        return int((self.sampling.frames - 1) * step + 0.5) + 1

    def rate(self, index: int) -> float:
        """Returns the frames per second of the video number `index`."""
        return self._source.rate(index)

    def _place(self, span: int, places: int) -> int:
        """Returns the chosen one of the places where a clip can begin; the last ends at the end."""
        if self.start is None:
            return places - 1
        place = self.start if self.start >= 0 else places - 1 + span + self.start
        if not 0 <= place < places:
            raise VideoError(
                f"it has {counted(places, 'place')} for a clip of "
                f"{counted(self.sampling.frames, 'frame')}, none of them at frame {self.start}."
            )
        return place


def in_threads(
    function: Callable[[Job], Result], jobs: Iterable[Job], threads: int = 2
) -> Iterator[Result]:
    """Yields what a function returns for each job, in the order of the jobs.

    Args:
      function: the function. It is called for some jobs ahead, in other threads.
      jobs: its arguments; they may be endless.
      threads: the number of threads.
    """
    jobs = iter(jobs)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        ahead = [pool.submit(function, job) for job in itertools.islice(jobs, 2 * threads)]
        try:
            while ahead:
                result = ahead.pop(0).result()
                ahead += [pool.submit(function, job) for job in itertools.islice(jobs, 1)]
                yield result
        finally:
            for future in ahead:
                future.cancel()
