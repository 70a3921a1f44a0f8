"""Sets of clips that are compared as sets: real ones at random places, and generated ones."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator

import numpy as np

from odvae_jax.data.order import shuffled
from odvae_jax.data.video import (
    READ_TIMEOUT,
    VideoError,
    find_videos,
    inspect_video,
    read_frames,
    within,
)
from odvae_jax.evaluation.clips import Clip, FixedClips, in_threads
from odvae_jax.files import counted, line_about, printable

logger = logging.getLogger(__name__)


class DrawnClips:
    """Real clips at random places of the videos of a source, the same whenever they are read.

    The short side is scaled to `size`, and the centre is cropped, as in training; nothing is
    mirrored. Every video is drawn once before any is drawn again, which is then at another place.
    The clips end when all places of all videos were drawn.

    Args:
      source: names one source of videos, as `odvae_jax.data.sources.open_sources` takes it.
      frames: the number T of frames in a clip.
      size: the side of the square clips in pixels.
      stride: the distance between the frames of a clip, in frames of the video.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      spread: whether a clip's frames are evenly spread over `frames` times `stride` frames of the
        video, or over all of a shorter one, as Latte's are; not with `fps`.
      seed: decides the order of the videos and the places.
      timeout: the seconds that one read of a video may take; None for no limit.

    Attributes:
      source: the text that names the source.
      skipped: why a video could not be read, by its name, of the videos that were drawn so far.
      too_short: the names of the videos that were drawn so far and have too few frames for a clip.
      problems: what is wrong with something else than a video, such as a folder that cannot be
        read, each with its path.

    Raises:
      ValueError: if the source is a mixture of several, or cannot be opened.
      FileNotFoundError: if the data is missing.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        *,
        frames: int = 16,
        size: int = 256,
        stride: int = 1,
        fps: float | None = None,
        spread: bool = False,
        seed: int = 0,
        timeout: float | None = READ_TIMEOUT,
    ):
        how = {"stride": stride, "fps": fps, "spread": spread}
        self._clips = FixedClips(source, frames=frames, size=size, timeout=timeout, **how)
        self._seed = seed
        self.source = self._clips.source
        self.problems = tuple(self._clips.problems)
        self.skipped: dict[str, str] = {}
        self.too_short: set[str] = set()

    def __len__(self) -> int:
        """Returns the number of videos."""
        return len(self._clips)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of frames, rows and columns of a clip, (T, H, W)."""
        return self._clips.shape

    def settings(self) -> dict:
        """Returns what decides which frames the clips hold, as values that JSON can hold."""
        return {**self._clips.settings(), "start": "random", "seed": self._seed}

    def __iter__(self) -> Iterator[Clip]:
        """Yields the clips that can be used, and notes the videos that cannot."""
        jobs = ((turn, place) for turn in itertools.count() for place in range(len(self)))
        used = 0
        for number, clip in enumerate(in_threads(self._read, jobs), 1):
            if clip is not None and clip.frames is None:
                self._note(clip)
            elif clip is not None:
                used += 1
                yield clip
            if number % len(self) == 0:
                if not used:
                    return
                used = 0

    def _read(self, job: tuple[int, int]) -> Clip | None:
        """Reads a clip; None if the video cannot be used or all its places were drawn."""
        turn, place = job
        video = shuffled(place, len(self), self._seed + turn)
        name = self._clips.name(video)
        if name in self.skipped or name in self.too_short:
            return None
        places_of_video = 1  # where a source does not ask, as of pictures

        def where(places):
            nonlocal places_of_video
            places_of_video = places
            if turn >= places:
                raise VideoError("all its places were drawn.")
            return int(np.random.default_rng([self._seed, video]).permutation(places)[turn])

        clip = self._clips.read(video, where)
        return None if turn and turn >= places_of_video else clip

    def _note(self, clip: Clip) -> None:
        if self._clips.is_short(clip.index):
            self.too_short.add(clip.name)
        elif clip.name not in self.skipped:
            self.skipped[clip.name] = clip.reason
            logger.warning("skipped: %s", clip.reason)


class GeneratedClips:
    """The videos of a folder, each of which is one generated clip.

    They are read in an order that a seed decides, so that the first n of them are of all kinds even
    if the names are sorted by class.

    Args:
      folder: the folder; videos may lie in folders below it.
      frames: the number of frames that each video has.
      size: the number of rows and of columns that each video has.
      seed: decides the order.
      timeout: the seconds that one read of a video may take; None for no limit.

    Attributes:
      folder: the folder.
      skipped: why a video could not be read, by its name, of those that were read so far.
      problems: what is wrong with something else than a video, such as a folder that cannot be
        read, each with its path.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if no video is in it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        frames: int = 16,
        size: int = 256,
        seed: int = 0,
        timeout: float | None = READ_TIMEOUT,
    ):
        problems: dict[str, str] = {}
        files = find_videos(folder, problems=problems)
        self._files = [files[shuffled(i, len(files), seed)] for i in range(len(files))]
        self._timeout = timeout
        self.folder = os.fspath(folder)
        self.shape = (frames, size, size)
        self.skipped: dict[str, str] = {}
        self.problems = tuple(f"{printable(path)} {text}." for path, text in problems.items())

    def __len__(self) -> int:
        """Returns the number of videos."""
        return len(self._files)

    def check(self, count: int) -> None:
        """Compares the headers of the first videos with the shape of a clip; nothing is decoded.

        Args:
          count: the number of videos.

        Raises:
          ValueError: if a video has another length or size; the message names it.
        """
        for file in self._files[:count]:
            try:
                info = inspect_video(file, timeout=self._timeout)
            except VideoError:
                continue  # it is named when it is read
            self._check(file, (info.frames, info.height, info.width))

    def __iter__(self) -> Iterator[Clip]:
        """Yields the clips that can be read, and notes the videos that cannot.

        Raises:
          ValueError: if a video has another length or size than a clip; the message names it.
        """
        for clip in in_threads(self._read, range(len(self))):
            if clip.frames is None:
                self.skipped[clip.name] = clip.reason
                logger.warning("skipped: %s", clip.reason)
                continue
            self._check(clip.name, clip.frames.shape[:3])
            yield clip

    def _read(self, index: int) -> Clip:
        file = self._files[index]

        def decoded():
            info = inspect_video(file, timeout=self._timeout)
            frames = read_frames(info, 0, info.frames, timeout=self._timeout)
            return Clip(index, file, info.fps, frames)

        try:
            return within(self._timeout, printable(file), decoded)
        except Exception as error:  # one video's trouble is not the others'
            logger.debug("%s", printable(file), exc_info=error)
            return Clip(index, file, reason=line_about(file, error))

    def _check(self, file: str, found: tuple[int, ...]) -> None:
        if tuple(found) != self.shape:
            shown = [f"{counted(t, 'frame')} of {h}×{w}" for t, h, w in (found, self.shape)]
            same = found[1] == found[2]
            remedy = f"give --frames={found[0]} --size={found[1]} if all have" if same else "write"
            remedy += " this shape, or leave it out" if same else " it anew, or leave it out"
            raise ValueError(f"{printable(file)} has {shown[0]}; expected {shown[1]}: {remedy}.")
