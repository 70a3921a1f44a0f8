"""Random training clips from sources of videos, in an order that a seed and an index decide."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8

from odvae_jax.data.processes import own_main
from odvae_jax.data.sources import Sampling, open_sources
from odvae_jax.data.video import PartError, VideoError, centre_crop

logger = logging.getLogger(__name__)
_ATTEMPTS = 64
_PARTS = 4  # The number of parts of one video that are tried.
_BLOCK = 10_000  # The number of clips over which the sources' shares are exact.
_FEW = 20  # The number of videos that are looked at before unusable ones can end a run.


class Drawn(NamedTuple):
    """One clip and where it is from.

    Attributes:
      clip: RGB, uint8 [T, size, size, 3].
      video: the name of the video.
      passed_over: the name of every video that was tried before and could not be used, and why.
    """

    clip: UInt8[np.ndarray, "t s s 3"]
    video: str
    passed_over: tuple[tuple[str, str], ...]


class RandomClips:
    """An endless sequence of random clips, RGB, uint8 [T, size, size, 3].

    The clip with index i depends on the seed and i alone. Every video of a source is drawn once
    before any is drawn twice.

    A video that cannot be used, because it is broken or too short, is passed over. Another video of
    its source, which the seed and i decide too, is drawn in its place. Its name and the reason are
    logged once and kept in `skipped`.

    Args:
      path: names the sources (see `odvae_jax.data.sources`).
      frames: the number T of frames in a clip.
      size: the side of the square clip in pixels, which is cut out of the scaled video.
      short_side: the length in pixels to which the shorter side of a video is scaled; None takes
        `size`.
      seed: decides the order and the crops.
      holdout: the number of frames at the end of every video that no clip takes.
      stride: the least and the greatest distance between the frames of a clip, in frames of the
        video; one is drawn for each clip.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      crop: where the square is cut out, "random" or "centre".
      flip: whether a clip is mirrored with a probability of one half.
      max_unusable: the greatest share of unusable videos among those that were looked at, from 0
        to 1.
      in_memory: whether decoded and scaled videos are kept in memory; for a few short ones.

    Attributes:
      sources: the sources that `path` names.
      sampling: how clips are cut out of videos.
      skipped: the reason why a video cannot be used, by the video's name.

    Raises:
      FileNotFoundError: if there is no such source.
      ValueError: if nothing usable is there.
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
        stride: tuple[int, int] = (1, 1),
        fps: float | None = None,
        crop: str = "random",
        flip: bool = True,
        max_unusable: float = 1.0,
        in_memory: bool = False,
    ):
        sources = open_sources(path, in_memory=in_memory)
        self.sources = [source for _, source in sources]
        self._weights = tuple(weight for weight, _ in sources)
        self.sampling = Sampling(frames, short_side or size, stride, fps, holdout)
        self.size = size
        self.seed = seed
        self._crop, self._flip = crop, flip
        self._max_unusable = max_unusable
        self.skipped: dict[str, str] = {}
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of videos in all sources."""
        return sum(map(len, self.sources))

    def __getstate__(self):
        return {n: v for n, v in self.__dict__.items() if n != "_lock"}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "t s s 3"]:
        """Returns the clip with an index, uint8 [T, size, size, 3].

        Videos that are passed over are noted in `skipped`.

        Raises:
          VideoError: if no video that was drawn can be used, or if more than `max_unusable` of the
            videos that were looked at cannot.
        """
        drawn = self.draw(index)
        self.note(drawn)
        return drawn.clip

    def draw(self, index: int) -> Drawn:
        """Returns the clip with an index and what was passed over for it; notes nothing.

        Raises:
          VideoError: if no video that was drawn can be used.
        """
        which, turn = _turn(self.seed, self._weights, index)
        source = self.sources[which]
        passed_over = {}
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.seed, index, attempt])
            video = int(rng.integers(len(source)))
            if attempt == 0:
                epoch, place = divmod(turn, len(source))
                video = _shuffled(place, len(source), self.seed + 7919 * which + epoch)
            name = source.name(video)
            for earlier in range(_PARTS):
                try:
                    clip = self._cut(source, video, rng, earlier)
                    return Drawn(clip, name, tuple(passed_over.items()))
                except PartError as error:  # the header may promise more frames than there are
                    reason = error
                except VideoError as error:
                    reason = error
                    break
            passed_over.setdefault(name, str(reason))
        reasons = "\n  ".join(list(passed_over.values())[:5])
        raise VideoError(
            f"no usable video for clip {index} in {_ATTEMPTS} draws; "
            f"{len(passed_over)} of {len(source)} videos were tried:\n  {reasons}"
        )

    def note(self, drawn: Drawn) -> None:
        """Logs the videos that were passed over for a clip, and keeps them in `skipped`.

        Raises:
          VideoError: if more than `max_unusable` of the videos that were looked at are unusable.
        """
        with self._lock:
            self._seen.add(drawn.video)
            for name, reason in drawn.passed_over:
                self._seen.add(name)
                if name not in self.skipped:
                    self.skipped[name] = reason
                    logger.warning("skipped (%d so far): %s", len(self.skipped), reason)
            seen, share = len(self._seen), self._max_unusable
            # Some more than the share may be chance, until all are seen.
            chance = 3 * (seen * share * (1 - share)) ** 0.5 if seen < len(self) else 0.0
            if seen >= min(_FEW, len(self)) and len(self.skipped) > share * seen + chance:
                listed = "\n  ".join(list(self.skipped.values())[:50])
                raise VideoError(
                    f"{len(self.skipped)} of the {len(self._seen)} videos looked at cannot be "
                    f"used, more than config.data.max_unusable={self._max_unusable} of them; mend "
                    f"or remove them, or allow more:\n  {listed}"
                )

    def held_out(self, count: int) -> UInt8[np.ndarray, "n t s s 3"]:
        """Returns fixed clips to look at during training, uint8 [n, T, size, size, 3].

        They are cut from the centre of the first `count` usable videos. Each begins where the
        frames that `holdout` keeps from training begin; if these are fewer than a clip, it takes
        the last frames of the video. There are fewer clips if there are fewer usable videos.

        Raises:
          VideoError: if no video can be used.
        """
        sampling = self.sampling
        plain = dataclasses.replace(sampling, holdout=0)
        clips, reasons = [], []
        for source in self.sources:
            for video in range(len(source)):
                if len(clips) == count:
                    return np.stack(clips)
                try:
                    span = (sampling.frames - 1) * sampling.stride[0] + 1
                    if sampling.fps is not None:
                        seconds = (sampling.frames - 1) / sampling.fps
                        span = round(seconds * source.rate(video)) + 1
                    later = max(sampling.holdout - span, 0)
                    frames = source.read(
                        video,
                        plain,
                        sampling.stride[0],
                        lambda n, later=later: max(n - 1 - later, 0),
                    )
                    clips.append(centre_crop(frames, self.size, self.size))
                except VideoError as error:
                    reasons.append(str(error))
        if not clips:
            listed = "\n  ".join(reasons[:50])
            raise VideoError(f"none of {len(reasons)} videos can be used:\n  {listed}")
        return np.stack(clips)

    def _cut(self, source, video: int, rng: np.random.Generator, earlier: int) -> np.ndarray:
        """Cuts a clip out of a video.

        For `earlier` = 1, 2, ... it begins in the first half of the video, the first quarter, ...
        """
        low, high = self.sampling.stride
        stride = int(rng.integers(low, high + 1))
        frames = source.frames(
            video, self.sampling, stride, lambda n: int(rng.integers(n)) >> earlier
        )
        free = [side - self.size for side in frames[0].shape[:2]]
        top, left = (s // 2 if self._crop == "centre" else int(rng.integers(s + 1)) for s in free)
        mirrored = -1 if self._flip and rng.integers(2) else 1
        # Cut before the frames are put together: only what is wanted is copied.
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        return np.stack([frame[rows, columns][:, ::mirrored] for frame in frames])


def _turn(seed: int, weights: tuple[float, ...], index: int) -> tuple[int, int]:
    """Returns the source of a clip, and the number of clips before it that are that source's."""
    if len(weights) == 1:
        return 0, index
    block, place = divmod(index, _BLOCK)
    which, rank, counts = _shares(seed, weights, block)
    return int(which[place]), block * counts[which[place]] + int(rank[place])


@functools.lru_cache(maxsize=8)
def _shares(seed, weights, block):
    bounds = np.round(np.cumsum((0.0, *weights)) * _BLOCK).astype(int)
    counts = np.diff(bounds).tolist()
    which = np.repeat(np.arange(len(weights)), counts)
    np.random.default_rng([seed, block, len(weights)]).shuffle(which)
    rank = np.zeros(_BLOCK, int)
    for source in range(len(weights)):
        rank[which == source] = np.arange(counts[source])
    return which, rank, counts


def _shuffled(place: int, count: int, seed: int) -> int:
    """Returns where a permutation of range(count), which the seed decides, puts `place`.

    It is four rounds of a Feistel network on the smallest even number of bits that holds the count,
    repeated until the result lies below the count. So no list of all videos needs to be shuffled.
    """
    half = max((count - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    keys = np.random.SeedSequence(seed).generate_state(4).tolist()
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B1) & 0xFFFFFFFF
            mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA77) & 0xFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 13)) & mask)
        place = (left << half) | right
        if place < count:
            return place


def batches(
    clips: RandomClips,
    batch_size: int,
    *,
    first: int = 0,
    rows: Sequence[int] | None = None,
    threads: int = 4,
    workers: int = 0,
) -> Iterator[UInt8[np.ndarray, "n t s s 3"]]:
    """Yields endless batches of clips, uint8 [n, T, size, size, 3], which are read ahead.

    The batches are the same for any number of threads and workers.

    Args:
      clips: the clips.
      batch_size: the number of clips in a batch, over all processes of the training.
      first: the index of the first clip.
      rows: which clips of each batch this process reads, counted from 0; None for all.
      threads: the number of threads that decode, in each worker.
      workers: the number of processes that decode; 0 decodes in threads of this process. Workers
        import neither JAX nor the program's main module.

    Raises:
      VideoError: if no video that was drawn can be used, or too many videos are unusable.
    """
    rows = range(batch_size) if rows is None else rows
    each = max(workers, 1)
    _let_grain_read_its_flags()
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2 * len(rows) // each, threads)
    )
    ahead = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=max(len(rows) // each, 1)
    )
    numbers = grain.MapDataset.range(sys.maxsize // 2)
    draw = _Draw(clips, batch_size, first, tuple(rows))
    drawn = numbers.map(draw).to_iter_dataset(options).mp_prefetch(ahead)
    iterator = iter(drawn)
    try:
        with own_main() if workers else contextlib.nullcontext():
            pending = [next(iterator)]  # the workers are started here
        while True:
            pending += [next(iterator) for _ in range(len(rows) - len(pending))]
            for element in pending:
                clips.note(element)
            yield np.stack([element.clip for element in pending])
            pending = []
    finally:
        iterator.close()


class _Draw:
    """Maps the number of a clip, counted over those that this process reads, to the clip.

    It is a class, so that it can be sent to workers.
    """

    def __init__(self, clips, batch_size, first, rows):
        self._clips, self._batch_size, self._first, self._rows = clips, batch_size, first, rows

    def __call__(self, count):
        batch, place = divmod(count, len(self._rows))
        return self._clips.draw(self._first + batch * self._batch_size + self._rows[place])


def _let_grain_read_its_flags():
    """Marks grain's absl flags as parsed: reading them fails in programs that absl does not run."""
    for name in flags.FLAGS:
        if name.startswith("grain_"):
            flags.FLAGS[name].present = max(flags.FLAGS[name].present, 1)
