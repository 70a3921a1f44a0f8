"""The frames of a video in blocks, decoded and scaled ahead in threads."""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import functools
import math
import os
from collections.abc import Callable, Iterator

import av
import numpy as np
from jaxtyping import UInt8

from odvae_jax.data import READ_TIMEOUT
from odvae_jax.data.video.errors import VideoError
from odvae_jax.data.video.reader import VideoReader
from odvae_jax.data.video.scaling import centre_crop, to_rgb
from odvae_jax.files import counted, one_line, printable


class Blocks(abc.ABC):
    """The frames of a video in blocks; an iterable that can be read once.

    The first block has `length` + 1 frames, the others have `length`, and the last has what is
    left. Threads decode and scale a few frames ahead. A video that ends too early, or that cannot
    be decoded further, ends there, and `problem` says why.

    Args:
      name: what messages call the video.
      length: the number of frames per block, from the second block on.
      size: the number of rows and columns that are cut from the centre of every frame; None keeps
        the whole frame.
      threads: the number of threads that work ahead.

    Attributes:
      fps: the average number of frames per second. It is known once the first block was read.
      frames: the number of frames that were read so far.
      height, width: the sides of a frame in pixels. They are known once the first block was read.
      problem: what ended the video too early; empty if nothing did. It is known once the last block
        was read.

    Raises:
      VideoError: on iteration, if the video has no frame, or frames that are smaller than `size`.
    """

    def __init__(self, name: str, length: int, *, size: int | None = None, threads: int = 2):
        self.fps, self.problem = 0.0, ""
        self.frames = self.height = self.width = 0
        self._name, self._length, self._size, self._threads = name, length, size, threads

    @abc.abstractmethod
    def _jobs(self) -> Iterator[Callable[[], list[np.ndarray]]]:
        """Yields what threads do, each for a few frames, in the order of the frames; sets `fps`."""

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        """Yields blocks of RGB frames, uint8 [n, H, W, 3]."""
        waiting, wanted = [], self._length + 1
        for frame in self._shown():
            if not self.frames:
                self.height, self.width = frame.shape[:2]
            elif frame.shape[:2] != (self.height, self.width):
                self.problem = (
                    f"{self._name} changes its size after {counted(self.frames, 'frame')}."
                )
                break
            waiting.append(frame)
            self.frames += 1
            if len(waiting) == wanted:
                yield np.stack(waiting)
                waiting, wanted = [], self._length
        if waiting:
            yield np.stack(waiting)

    def _shown(self):
        try:
            yield from self._converted()
        except VideoError as error:
            if not self.frames:
                raise
            self.problem = f"{error} {counted(self.frames, 'frame')} could be shown before."

    def _converted(self):
        pending: collections.deque = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            for job in self._jobs():
                pending.append(pool.submit(self._cut, job))
                if len(pending) > 2 * self._threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def _cut(self, job):
        frames = job()
        if self._size is None:
            return frames
        height, width = frames[0].shape[:2]
        if min(height, width) < self._size:
            raise VideoError(
                f"{self._name} has frames of {height}×{width}; a cut of {self._size} needs more, "
                "or a short side that they are scaled to."
            )
        return [centre_crop(frame, self._size, self._size) for frame in frames]


class ReadBlocks(Blocks):
    """The frames of a video in blocks, whatever form the video is stored in.

    Args:
      name: what messages call the video.
      length: the number of frames per block, from the second block on; the first has one more.
      begin: called once, when the first block is read. It returns the frames per second, and
        functions that threads call, in the order of the frames; each returns a few RGB frames,
        uint8 [H, W, 3].
      size: the number of rows and columns that are cut from the centre of every frame; None keeps
        the whole frame.
      threads: the number of threads that call these functions.

    Raises:
      VideoError: on iteration, if the video cannot be read, or has frames smaller than `size`.
    """

    def __init__(
        self,
        name: str,
        length: int,
        begin: Callable[[], tuple[float, Iterator[Callable[[], list[np.ndarray]]]]],
        *,
        size: int | None = None,
        threads: int = 2,
    ):
        super().__init__(name, length, size=size, threads=threads)
        self._begin = begin

    def _jobs(self):
        self.fps, jobs = self._begin()
        yield from jobs


class FrameBlocks(Blocks):
    """The frames of a video file, or of a part of one, in blocks.

    Args:
      source: the path of the file, or its bytes.
      length: the number of frames per block, from the second block on; the first has one more.
      name: what messages call the video; None takes the path.
      start: where the part begins, in seconds from the first frame; None for the first frame.
      end: where the part ends, in seconds from the first frame; None for the end of the file.
      short_side: the length in pixels to which the shorter side is scaled, with antialiasing. None
        keeps the size.
      size: the number of rows and columns that are cut from the centre of every frame; None keeps
        the whole frame.
      threads: the number of threads that scale. With one, a single thread decodes, too.
      timeout: the seconds that opening, or reading on to the next frame, may take; None for no
        limit.

    Raises:
      VideoError: on iteration, if the file has no frame, or frames that are smaller than `size`.
    """

    _TOGETHER = 8  # The number of frames that a thread converts at a time.

    def __init__(
        self,
        source: str | bytes | os.PathLike,
        length: int,
        *,
        name: str | None = None,
        start: float | None = None,
        end: float | None = None,
        short_side: int | None = None,
        size: int | None = None,
        threads: int = 2,
        timeout: float | None = READ_TIMEOUT,
    ):
        if not isinstance(source, bytes):
            source = str(source)
            name = name or printable(source)
        super().__init__(name or "a video in memory", length, size=size, threads=threads)
        self._source, self._start, self._end = source, start, end
        self._short_side, self._timeout = short_side, timeout

    def _jobs(self):
        for batch in self._decoded():
            yield functools.partial(self._convert, batch)

    def _convert(self, frames):
        try:
            return to_rgb(frames, self._short_side)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            reason = one_line(error)
            raise VideoError(f"{self._name} has frames that cannot be shown: {reason}.") from error

    def _decoded(self):
        batch, count, end, last = [], 0, 0.0, math.inf
        decoders = 1 if self._threads == 1 else 0
        try:
            with VideoReader(
                self._source, self._name, threads=decoders, timeout=self._timeout
            ) as video:
                self.fps = video.fps
                first, last = self._bounds(video)
                for time, frame in video.frames_in_order(None if self._start is None else first):
                    if self._start is not None and time < first - 0.5 / video.fps:
                        continue
                    if time >= last:
                        break
                    if batch and (frame.width, frame.height) != (batch[0].width, batch[0].height):
                        yield batch
                        batch = []
                    batch.append(frame)
                    count, end = count + 1, time + _lasts(frame, video.fps)
                    if len(batch) == self._TOGETHER:
                        yield batch
                        batch = []
                else:
                    self.problem = self._missing(video, count, end, last)
        except VideoError as error:
            if not count:
                raise
            self.problem = f"{error} {counted(count, 'frame')} could be read before."
        if batch:
            yield batch

    def _bounds(self, video) -> tuple[float, float]:
        """Returns the time of the first frame, and that before which the last frame begins."""
        first = video.start + (self._start or 0.0)
        if self._end is None:
            return first, math.inf
        # As clips are cut: the n-th frame is the one nearest to n frames after the first.
        frames = math.floor((video.start + self._end - first) * video.fps + 0.5)
        return first, first + (frames - 0.5) / video.fps

    def _missing(self, video, count, end, last) -> str:
        """Returns in a sentence what the header promised of the video and was not there."""
        promised = video.promised
        if promised and last < math.inf:
            promised = min(promised, last + 0.5 / video.fps)
        whole = self._start is None and self._end is None
        if not promised or end >= promised - 1.5 / video.fps:
            return ""
        if whole and video.declared and count >= video.declared:
            return ""
        frames = counted(count, "frame")
        if whole:
            frames = f"{count} of {video.declared or 'more'} frames"
        return f"{self._name} ends after {frames}, at {end:.2f} of {promised:.2f} s."


def _lasts(frame, fps) -> float:
    """Returns for how many seconds a frame is shown, at least as long as one of the video's."""
    duration = float(frame.duration * frame.time_base) if frame.duration else 0.0
    return max(duration, 1 / fps)
