"""What a source of videos is, and how a clip is cut out of a video.

A new source is a file in this folder, with a subclass of `Source` and a function that opens it, and
a line in the table of `parsing.py`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from odvae_jax.data.once import warn_once
from odvae_jax.data.video import (
    READ_TIMEOUT,
    Blocks,
    PartError,
    ReadBlocks,
    VideoError,
    select_frames,
    within,
)
from odvae_jax.files import counted, one_line

T = TypeVar("T")
Where = Callable[[int], int]
"""Maps the number of frames at which a clip can begin to the chosen one, counted from 0."""
_TOGETHER = 8  # The number of frames of a whole video that are read at a time.


class _Asked(Exception):
    """Ends a read as soon as it is known at how many frames a clip can begin."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a video says about itself, as it is shown.

    Attributes:
      frames: the number of frames.
      height, width: the sides of a frame in pixels, after it is turned as the video says.
      fps: the average number of frames per second.
    """

    frames: int
    height: int
    width: int
    fps: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a clip is cut out of a video.

    Attributes:
      frames: the number of frames in a clip.
      short_side: the length in pixels to which the shorter side of the video is scaled. None keeps
        the size.
      stride: the least and the greatest distance between the frames of a clip, in frames of the
        video.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      holdout: the number of frames at the end of the video that no clip takes.
      spread: whether a clip's frames are evenly spread over `frames` times the stride frames of the
        video, or over all of a shorter one, as Latte's are.
      cover: the height and width in pixels of a clip. Frames are scaled, with antialiasing and
        keeping their aspect, to the least size that covers it, and the centre is cut out. None
        cuts nothing.

    Raises:
      ValueError: if both `short_side` and `cover` are given, or `spread` and `fps`.
    """

    frames: int
    short_side: int | None = None
    stride: tuple[int, int] = (1, 1)
    fps: float | None = None
    holdout: int = 0
    cover: tuple[int, int] | None = None
    spread: bool = False

    def __post_init__(self):
        if self.spread and self.fps is not None:
            raise ValueError(
                f"a clip was given fps={self.fps} and spread: frames that are spread over a window "
                "have no rate of their own. Leave out one of them."
            )
        if self.short_side is not None and self.cover is not None:
            raise ValueError(
                f"a clip was given short_side={self.short_side} and cover={self.cover}; expected "
                "one of them."
            )


@dataclasses.dataclass(frozen=True)
class Extent:
    """The part of a video that clips may be taken from.

    Attributes:
      name: what error messages call the video.
      start: the time at which the part begins, in seconds.
      end: the time at which the part ends, in seconds.
      rate: the frames per second of the video.
    """

    name: str
    start: float
    end: float
    rate: float

    def places(self, sampling: Sampling, stride: int) -> int:
        """Returns the number of frames at which a clip can begin.

        Args:
          sampling: how clips are cut out.
          stride: the distance between the frames of this clip, in frames of the video.

        Raises:
          VideoError: if the video is too short for a clip.
        """
        if sampling.spread:
            # Latte leaves out the last place.
            return max(self._frames(sampling) - self.window(sampling, stride) - 1, 0) + 1
        if sampling.fps is None:
            seconds = ((sampling.frames - 1) * stride + 1) / self.rate
        else:
            seconds = (sampling.frames - 1) / sampling.fps + 1 / self.rate
        free = self.end - self.start - seconds - sampling.holdout / self.rate
        places = int(np.floor(free * self.rate + 0.5)) + 1
        if places < 1:
            raise self._too_short(sampling, round(seconds * self.rate))
        return places

    def window(self, sampling: Sampling, stride: int) -> int:
        """Returns the number of frames that a clip with `sampling.spread` is spread over.

        That is `sampling.frames` times `stride`, or all frames of a shorter video.

        Args:
          sampling: how clips are cut out.
          stride: the distance between the frames of this clip, in frames of the video.

        Raises:
          VideoError: if the video has fewer frames than a clip.
        """
        have = self._frames(sampling)
        if have < sampling.frames:
            raise self._too_short(sampling, sampling.frames)
        return min(sampling.frames * stride, have)

    def _frames(self, sampling: Sampling) -> int:
        """The number of frames that are not held out."""
        return round((self.end - self.start) * self.rate) - sampling.holdout

    def _too_short(self, sampling: Sampling, needed: int) -> VideoError:
        have = round((self.end - self.start) * self.rate)
        kept = f", {sampling.holdout} of them held out" if sampling.holdout else ""
        need, ways = f"clips need {needed}", ["Take shorter clips"]
        if needed != sampling.frames:
            need = f"clips of {counted(sampling.frames, 'frame')} span {needed}"
            ways += ["take frames closer together"]
        if sampling.holdout and have >= needed:
            ways += ["hold out fewer frames"]
        return VideoError(
            f"{self.name} has {counted(have, 'frame')}{kept}; {need}. {', or '.join(ways)}."
        )

    def clip_start(self, sampling: Sampling, stride: int, where: Where) -> float:
        """Returns the time in seconds at which a clip begins.

        Args:
          sampling: how clips are cut out.
          stride: the distance between the frames of this clip, in frames of the video.
          where: chooses the first frame: it maps the number of frames at which the clip can begin
            to one of them, counted from 0.

        Raises:
          VideoError: if the video is too short for a clip.
        """
        return self.start + where(self.places(sampling, stride)) / self.rate


class Source(abc.ABC):
    """A collection of videos, numbered from 0 on.

    Attributes:
      timeout: the seconds that one read may take, None for no limit. Whoever opens a source sets
        it. What a source does not limit itself, its callers limit.
      here_only: whether no other process can read the videos, since they are in this one's memory.
      endless: whether its videos have no length, because clips are made when they are asked for.
      problems: what is wrong with something else than a video, such as a folder that cannot be
        read; the log has it, too.
    """

    timeout: float | None = READ_TIMEOUT
    here_only: bool = False
    endless: bool = False
    problems: tuple[str, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of videos."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Returns what messages call a video."""

    def bytes_behind(self, index: int) -> int:
        """Returns the number of bytes in the file that holds a video, or 0 if it is not known.

        Whoever keeps results per video notices by it that the video has changed.
        """
        return 0

    @abc.abstractmethod
    def rate(self, index: int) -> float:
        """Returns the frames per second of a video.

        Raises:
          VideoError: if the video cannot be read.
        """

    def columns(self, index: int) -> dict[str, Any]:
        """Returns what else the source knows of a video, such as its caption or label.

        Returns:
          What JSON can hold, by the column's name; nothing if the source has no such columns.

        Raises:
          VideoError: if it cannot be read.
        """
        return {}

    def header(self, index: int) -> Header:
        """Returns what a video says about itself, without decoding more of it than needed.

        Raises:
          VideoError: if the video cannot be read.
        """
        frames = self.places(index, Sampling(1), 1)
        first = self.frames(index, Sampling(1), 1, lambda _: 0)[0]
        return Header(frames, *first.shape[:2], self.rate(index))

    def places(self, index: int, sampling: Sampling, stride: int) -> int:
        """Returns the number of frames at which a clip can begin; decodes nothing.

        It is the number that `frames` gives to its argument `where`.

        Args:
          index: the number of the video.
          sampling: how the clip is cut out.
          stride: the distance between the frames of this clip, in frames of the video.

        Raises:
          VideoError: if the video cannot be read, or is too short for a clip.
        """

        def ask(places):
            raise _Asked(places)

        try:
            self.frames(index, sampling, stride, ask)
        except _Asked as asked:
            return asked.args[0]
        return 1

    def blocks(
        self,
        index: int,
        length: int,
        *,
        short_side: int | None = None,
        size: int | None = None,
        threads: int = 2,
    ) -> Blocks:
        """Returns the frames of a whole video in blocks, decoded and scaled ahead in threads.

        Args:
          index: the number of the video.
          length: the number of frames per block, from the second block on; the first has one more.
          short_side: the length in pixels to which the shorter side is scaled, with antialiasing.
            None keeps the size.
          size: the number of rows and columns that are cut from the centre of every frame; None
            keeps the whole frame.
          threads: the number of threads that decode and scale.

        Raises:
          VideoError: here or on iteration, if the video cannot be read.
        """
        begin = functools.partial(self._begin, index, short_side)
        return ReadBlocks(self.name(index), length, begin, size=size, threads=threads)

    def _begin(self, index, short_side) -> tuple[float, Iterator[Callable[[], list]]]:
        name = self.name(index)
        header = within(self.timeout, name, self.header, index)

        def read(first):
            sampling = Sampling(min(_TOGETHER, header.frames - first), short_side)
            try:
                return within(self.timeout, name, self.frames, index, sampling, 1, lambda _: first)
            except Exception as error:
                raise VideoError(problem_of(name, error)) from error

        firsts = range(0, header.frames, _TOGETHER)
        return header.fps, (functools.partial(read, first) for first in firsts)

    @abc.abstractmethod
    def frames(
        self, index: int, sampling: Sampling, stride: int, where: Where
    ) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Reads the frames of a clip.

        Args:
          index: the number of the video.
          sampling: how the clip is cut out.
          stride: the distance between the frames of this clip, in frames of the video.
          where: chooses the first frame: it maps the number of frames at which the clip can begin
            to one of them, counted from 0.

        Returns:
          `sampling.frames` arrays of RGB, uint8 [H, W, 3].

        Raises:
          VideoError: if the video cannot be used.
          PartError: if this part of the video cannot be decoded; others may be usable.
        """

    def read(
        self, index: int, sampling: Sampling, stride: int, where: Where
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Reads a clip as one array of RGB, uint8 [T, H, W, 3].

        Arguments and errors are those of `frames`.
        """
        return np.stack(self.frames(index, sampling, stride, where))


def cut(
    frames_from: Callable[[float], Iterable[tuple[float, T]]],
    extent: Extent,
    sampling: Sampling,
    stride: int,
    where: Where,
) -> list[T]:
    """Selects the frames of one clip from a video, whatever form the frames have.

    Args:
      frames_from: maps a time in seconds to pairs of a time and a frame, in order of time, that
        begin at that time or before.
      extent: the part of the video that the clip may be taken from.
      sampling: how the clip is cut out.
      stride: the distance between the frames of this clip, in frames of the video.
      where: chooses the first frame, see `Extent.clip_start`.

    Raises:
      VideoError: if the video is too short.
      PartError: if the video yields fewer frames than its header promises.
    """
    moment = extent.clip_start(sampling, stride, where)
    frames = select_frames(
        frames_from(moment),
        moment,
        sampling.frames,
        rate=extent.rate,
        stride=stride,
        fps=sampling.fps,
        window=extent.window(sampling, stride) if sampling.spread else None,
    )
    if len(frames) < sampling.frames:
        raise PartError(
            f"{extent.name} yielded {len(frames)} of {counted(sampling.frames, 'frame')} from "
            f"{moment:.3f} s on."
        )
    return frames


def as_json(value: Any) -> Any:
    """Returns a value as JSON can hold it; numbers that are not finite become None.

    Raises:
      TypeError: if JSON cannot hold it.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: as_json(item) for name, item in value.items()}
    raise TypeError(f"JSON cannot hold {type(value).__name__}.")


def workers_for(sources: Iterable[Source], workers: int, none: int = 0) -> int:
    """Returns how many processes can read some sources; the log says if none can.

    Args:
      sources: the sources.
      workers: the number of processes that was asked for.
      none: what stands for work in this process.
    """
    if workers <= none or not any(source.here_only for source in sources):
        return workers
    warn_once(
        "here only",
        f"videos at memory:// can be read in this process alone, so none of the {workers} workers "
        "that were asked for is started.",
    )
    return none


def problem_of(name: str, error: Exception) -> str:
    """Returns in one line why a video cannot be used, from what was raised for it."""
    if isinstance(error, VideoError):
        return str(error)
    return f"{name} cannot be used: {type(error).__name__}: {one_line(error)}."
