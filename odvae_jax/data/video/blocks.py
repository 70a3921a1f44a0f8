"""The frames of a video file in blocks, decoded and scaled ahead in threads."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Iterator

import av
import numpy as np
from jaxtyping import UInt8

from odvae_jax.data import READ_TIMEOUT
from odvae_jax.data.video.errors import VideoError
from odvae_jax.data.video.reader import VideoReader
from odvae_jax.data.video.scaling import centre_crop, to_rgb
from odvae_jax.files import one_line, printable


class FrameBlocks:
    """The frames of a video file in blocks; an iterable that can be read once.

    The first block has `length` + 1 frames, the others have `length`, and the last has what is
    left. Threads decode and scale a few frames ahead. A video that ends too early, or that cannot
    be decoded further, ends there, and `problem` says why.

    Args:
      path: the path of the file.
      length: the number of frames per block, from the second block on.
      short_side: the length in pixels to which the shorter side is scaled, with antialiasing. None
        keeps the size.
      size: the number of rows and columns that are cut from the centre of every frame; None keeps
        the whole frame.
      threads: the number of threads that scale.
      timeout: the seconds that opening, or reading on to the next frame, may take; None for no
        limit.

    Attributes:
      fps: the average number of frames per second. It is known once the first block was read.
      frames: the number of frames that were read so far.
      height, width: the sides of a frame in pixels. They are known once the first block was read.
      problem: what ended the video too early; empty if nothing did. It is known once the last block
        was read.

    Raises:
      VideoError: on iteration, if the file has no frame, or frames that are smaller than `size`.
    """

    _TOGETHER = 8  # The number of frames that a thread converts at a time.

    def __init__(
        self,
        path: str | os.PathLike,
        length: int,
        *,
        short_side: int | None = None,
        size: int | None = None,
        threads: int = 2,
        timeout: float | None = READ_TIMEOUT,
    ):
        self.path, self.fps, self.problem = str(path), 0.0, ""
        self._name, self._timeout = printable(path), timeout
        self.frames = self.height = self.width = 0
        self._length, self._short_side, self._size, self._threads = (
            length,
            short_side,
            size,
            threads,
        )

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        """Yields blocks of RGB frames, uint8 [n, H, W, 3]."""
        waiting, wanted = [], self._length + 1
        for frame in self._shown():
            if not self.frames:
                self.height, self.width = frame.shape[:2]
            elif frame.shape[:2] != (self.height, self.width):
                self.problem = f"{self._name} changes its size after {self.frames} frames."
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
            self.problem = f"{error} {self.frames} frames could be shown before."

    def _converted(self):
        pending: collections.deque = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            for batch in self._decoded():
                pending.append(pool.submit(self._convert, batch))
                if len(pending) > 2 * self._threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def _convert(self, frames):
        try:
            rgb = to_rgb(frames, self._short_side)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            reason = one_line(error)
            raise VideoError(f"{self._name} has frames that cannot be shown: {reason}.") from error
        if self._size is None:
            return rgb
        height, width = rgb[0].shape[:2]
        if min(height, width) < self._size:
            raise VideoError(
                f"{self._name} has frames of {height}×{width}; a cut of {self._size} needs more, "
                "or a short side that they are scaled to."
            )
        return [centre_crop(frame, self._size, self._size) for frame in rgb]

    def _decoded(self):
        batch, count, end = [], 0, 0.0
        try:
            with VideoReader(self.path, threads=0, timeout=self._timeout) as video:
                self.fps = video.fps
                for time, frame in video.frames_in_order(None):
                    if batch and (frame.width, frame.height) != (batch[0].width, batch[0].height):
                        yield batch
                        batch = []
                    batch.append(frame)
                    count, end = count + 1, time + 1 / video.fps
                    if len(batch) == self._TOGETHER:
                        yield batch
                        batch = []
                fewer = count < video.declared or not video.declared
                if fewer and video.promised and end < video.promised - 1.5 / video.fps:
                    self.problem = (
                        f"{self._name} ends after {count} of {video.declared or 'more'} frames, at "
                        f"{end:.2f} of {video.promised:.2f} s."
                    )
        except VideoError as error:
            if not count:
                raise
            self.problem = f"{error} {count} frames could be read before."
        if batch:
            yield batch
