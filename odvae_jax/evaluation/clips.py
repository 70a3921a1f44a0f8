"""The clips that models are compared on: one of every video, the same whenever it is read."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator

import numpy as np

from odvae_jax.data.sources import Sampling, open_sources
from odvae_jax.data.video import VideoError, centre_crop


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip's number among the source's videos, its video's name, frames a second, and frames.

    `frames` is uint8 [T, H, W, 3]; None where the video could not be used, and `reason` says why.
    """

    index: int
    name: str
    fps: float = 0.0
    frames: np.ndarray | None = None
    reason: str = ""

    @property
    def digest(self) -> str:
        """Of the frames."""
        return hashlib.blake2b(np.ascontiguousarray(self.frames), digest_size=8).hexdigest()


class FixedClips:
    """One clip of every video: the short side scaled to `size`, the centre cropped (section 4.1).

    Args:
      source: what `odvae_jax.data.sources.open_source` takes.
      frames: of a clip.
      size: side of the square clips.
      start: first frame; negative counts from the video's end; None takes the last clip that fits.
      stride: distance of the frames.
      fps: the clips' frames a second, instead of a stride.
      limit: of the videos only so many, from the first on; 0 takes all.

    Raises:
      ValueError: for a source that is a mixture, or as `open_source` does.
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
        limit: int = 0,
    ):
        sources = open_sources(source)
        if len(sources) > 1:
            raise ValueError(f"{source} is a mixture; models are compared on one source.")
        ((_, self._source),) = sources
        self.source, self.size, self.start, self.stride = str(source), size, start, stride
        self.sampling = Sampling(frames, short_side=size, stride=(stride, stride), fps=fps)
        self._count = min(limit, len(self._source)) if limit else len(self._source)

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """The video's name."""
        return self._source.name(index)

    def settings(self) -> dict:
        """What decides which frames the clips hold, as JSON can hold it."""
        videos = [(self.name(i), self._source.bytes_behind(i)) for i in range(len(self))]
        return {
            "data": self.source,
            "videos": len(self),
            "names and sizes": hashlib.sha256(json.dumps(videos).encode()).hexdigest()[:16],
            "frames": self.sampling.frames,
            "size": self.size,
            "start": self.start,
            "stride": self.stride,
            "fps": self.sampling.fps,
        }

    def read(self, index: int) -> Clip:
        """A clip, without frames if the video is too short or cannot be read."""
        name = self.name(index)
        try:
            rate = self._source.rate(index)
            where = functools.partial(self._place, self.span(rate))
            frames = self._source.read(index, self.sampling, self.stride, where)
        except (VideoError, OSError) as error:
            return Clip(index, name, reason=str(error))
        fps = self.sampling.fps or rate / self.stride
        return Clip(index, name, fps, centre_crop(frames, self.size, self.size))

    def read_all(self, indices: Iterable[int], *, threads: int = 2) -> Iterator[Clip]:
        """Clips in the order of `indices`, decoded ahead in threads."""
        indices = iter(indices)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            ahead = [pool.submit(self.read, i) for i in itertools.islice(indices, 2 * threads)]
            while ahead:
                clip = ahead.pop(0).result()
                ahead += [pool.submit(self.read, i) for i in itertools.islice(indices, 1)]
                yield clip

    def span(self, rate: float) -> int:
        """How many frames of a video of `rate` frames a second a clip stretches over."""
        step = rate / self.sampling.fps if self.sampling.fps else self.stride
        return int((self.sampling.frames - 1) * step + 0.5) + 1

    def rate(self, index: int) -> float:
        """A video's frames a second."""
        return self._source.rate(index)

    def _place(self, span: int, places: int) -> int:
        """Which of the places at which a clip can begin; the last ends with the video."""
        if self.start is None:
            return places - 1
        place = self.start if self.start >= 0 else places - 1 + span + self.start
        if not 0 <= place < places:
            raise VideoError(
                f"it has {places} places for a clip of {self.sampling.frames} frames, none of "
                f"them at frame {self.start}."
            )
        return place
