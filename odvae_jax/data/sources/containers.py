"""Videos in files, or in bytes, that FFmpeg reads; several sources have such videos."""

from __future__ import annotations

import abc
import contextlib
import functools
import os
from typing import NamedTuple

from odvae_jax.data.sources.base import Extent, Header, Sampling, Source, cut
from odvae_jax.data.urls import is_url, size_of_url
from odvae_jax.data.video import (
    FrameBlocks,
    OrderError,
    VideoError,
    VideoReader,
    to_rgb,
    within,
)


class Container(NamedTuple):
    """Where a video is stored, and what is used of it.

    Attributes:
      content: the path or URL of a file, or its bytes.
      start: where the used part begins, in seconds from the first frame; None for the first frame.
      end: where it ends, in seconds from the first frame; None for the end of the file.
    """

    content: str | bytes
    start: float | None = None
    end: float | None = None


class Containers(Source):
    """Videos that FFmpeg reads, or parts of such videos."""

    @abc.abstractmethod
    def container(self, index: int) -> Container:
        """Returns where a video is stored, and what is used of it.

        Raises:
          VideoError: if the source holds no such thing.
        """

    def rate(self, index):
        with self._opened(index, self.container(index)) as video:
            return video.fps

    def header(self, index):
        container = self.container(index)
        with self._opened(index, container) as video:
            frames = self._extent(index, video, container).places(Sampling(1), 1)
            return Header(frames, *video.shown_size(), video.fps)

    def blocks(self, index, length, *, short_side=None, size=None, threads=2):
        content, start, end = self.container(index)
        return FrameBlocks(
            content,
            length,
            name=self._called(index, content),
            start=start,
            end=end,
            short_side=short_side,
            size=size,
            threads=threads,
            timeout=self.timeout,
        )

    def frames(self, index, sampling, stride, where):
        container = self.container(index)
        with self._opened(index, container) as video:
            extent = self._extent(index, video, container)
            where = functools.cache(where)  # it may be random, and is asked twice
            try:
                chosen = cut(video.frames_from, extent, sampling, stride, where)
                video.check_end()
            except OrderError:
                chosen = cut(video.frames_in_order, extent, sampling, stride, where)
            return to_rgb(chosen, sampling.short_side, sampling.cover)

    def _size(self, index, path) -> int:
        """Returns the number of bytes in a file of a path or URL; 0 if it is not known."""
        if not is_url(path):
            return os.path.getsize(path) if os.path.exists(path) else 0
        with contextlib.suppress(VideoError):
            return within(self.timeout, self.name(index), size_of_url, path)
        return 0

    def _opened(self, index, container) -> VideoReader:
        name = self._called(index, container.content)
        return VideoReader(container.content, name, timeout=self.timeout)

    def _called(self, index, content) -> str | None:
        """Returns what messages about what is read call a video; None for the path of its file."""
        return self.name(index) if isinstance(content, bytes) else None

    def _extent(self, index, video, container) -> Extent:
        _, start, end = container
        return Extent(
            self.name(index),
            video.start if start is None else video.start + start,
            video.end if end is None else min(video.start + end, video.end),
            video.fps,
        )
