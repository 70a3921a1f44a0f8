"""Random training clips from sources of videos, in an order that a seed and an index decide."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from odvae_jax.data.deaths import Deaths
from odvae_jax.data.order import shuffled, turn
from odvae_jax.data.processes import Again, InOrder, doing
from odvae_jax.data.sources import Sampling, Source, open_sources, problem_of, workers_for
from odvae_jax.data.video import (
    READ_TIMEOUT,
    PartError,
    TimeLimitError,
    VideoError,
    centre_crop,
    within,
)
from odvae_jax.files import counted, one_line

logger = logging.getLogger(__name__)
_ATTEMPTS = 64
_PARTS = 4  # The number of parts of one video that are tried.
_BLOCKED = 5  # The number of reads that block before a clip is given up.
_WAIT = 10  # A video that blocked is left alone for so many times the limit.
_ADVICE = (
    "fewer config.data.workers or config.data.threads, smaller batches, or packed data (odvae data "
    "pack) need less memory"
)
_FEW = 20  # The number of videos that are looked at before unusable ones can end a run.


class Drawn(NamedTuple):
    """One clip and where it is from.

    Attributes:
      clip: RGB, uint8 [T, size, size, 3].
      video: the name of the video.
      passed_over: the name of every video that was tried before and could not be used, and why.
      label: the number of the video's class; None if no labels were asked for.
      place: the number of the source among the sources, and that of the video in it.
    """

    clip: UInt8[np.ndarray, "t s s 3"]
    video: str
    passed_over: tuple[tuple[str, str], ...]
    label: int | None = None
    place: tuple[int, int] = (0, 0)


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
      short_side_max: the greatest length to which it is scaled. Each clip has a length of its own,
        from `short_side` to this; lengths of the same ratio are as likely. None scales all clips
        to `short_side`.
      seed: decides the order and the crops.
      holdout: the number of frames at the end of every video that no clip takes.
      stride: the least and the greatest distance between the frames of a clip, in frames of the
        video; one is drawn for each clip.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      spread: whether a clip's frames are evenly spread over `frames` times the stride frames of the
        video, or over all of a shorter one, as Latte's are; not with `fps`.
      crop: where the square is cut out, "random" or "centre".
      flip: whether a clip is mirrored with a probability of one half.
      max_unusable: the greatest share of unusable videos among those that were looked at, from 0
        to 1.
      in_memory: whether decoded and scaled videos are kept in memory; for a few short ones.
      timeout: the seconds that one read may take; None for no limit. A video that takes longer
        cannot be used.
      label: the column of the sources that holds the number of a video's class, such as "label"; a
        video without one cannot be used. An empty name reads no labels.

    Attributes:
      timeout: the seconds that one read may take; None for no limit.
      sources: the sources that `path` names.
      sampling: how clips are cut out of videos.
      label: the column that holds the number of a video's class; empty if no labels are read.
      skipped: the reason why a video cannot be used, by the video's name.
      avoided: the reason why a video is passed over without being opened, by the video's name.

    Raises:
      FileNotFoundError: if there is no such source.
      ValueError: if nothing usable is there, if `short_side_max` is less than `short_side`, or if
        it is given together with `in_memory`, which keeps videos at one size.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        frames: int,
        size: int,
        short_side: int | None = None,
        short_side_max: int | None = None,
        seed: int = 0,
        holdout: int = 0,
        stride: tuple[int, int] = (1, 1),
        fps: float | None = None,
        spread: bool = False,
        crop: str = "random",
        flip: bool = True,
        max_unusable: float = 1.0,
        in_memory: bool = False,
        timeout: float | None = READ_TIMEOUT,
        label: str = "",
    ):
        sides = short_side or size, short_side_max or short_side or size
        if sides[1] < sides[0]:
            raise ValueError(
                f"short_side_max={short_side_max} is less than short_side={sides[0]}; expected at "
                "least as much."
            )
        if sides[1] > sides[0] and in_memory:
            raise ValueError(
                f"in_memory keeps videos at one size, and short_side_max={short_side_max} gives "
                "each clip its own: leave one of them out."
            )
        sources = open_sources(path, in_memory=in_memory, timeout=timeout)
        self.timeout = timeout
        self.sources = [source for _, source in sources]
        self._weights = tuple(weight for weight, _ in sources)
        self.sampling = Sampling(frames, sides[0], stride, fps, holdout, spread=spread)
        self._sides = sides
        self.size = size
        self.seed = seed
        self.label = label
        self._crop, self._flip = crop, flip
        self._max_unusable = max_unusable
        self.skipped: dict[str, str] = {}
        self.avoided: dict[str, str] = {}
        self._seen: set[str] = set()
        self._blocked: dict[str, tuple[float, str]] = {}
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

        Whatever goes wrong with a video is that video's problem: another one is drawn.

        Raises:
          VideoError: if no video that was drawn can be used, or if five reads block, one after
            another.
        """
        which, before = turn(self.seed, self._weights, index)
        source = self.sources[which]
        passed_over, blocked = {}, 0
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.seed, index, attempt])
            video = int(rng.integers(len(source)))
            if attempt == 0:
                epoch, place = divmod(before, len(source))
                video = shuffled(place, len(source), self.seed + 7919 * which + epoch)
            name = source.name(video)
            try:
                if name in self.avoided:
                    raise VideoError(self.avoided[name])
                doing(name)
                label = None
                if self.label:
                    label = within(self.timeout, name, label_of, source, video, self.label)
                clip = self._first_part(source, video, rng)
                return Drawn(clip, name, tuple(passed_over.items()), label, (which, video))
            except Exception as error:
                passed_over.setdefault(name, problem_of(name, error))
                blocked += isinstance(error, TimeLimitError)
            if blocked == _BLOCKED:
                break
        reasons = "\n  ".join(list(passed_over.values())[:5])
        raise VideoError(
            f"no usable video for clip {index} in {counted(attempt + 1, 'draw')}; "
            f"{len(passed_over)} of {counted(len(source), 'video was', 'videos were')} tried:\n  "
            f"{reasons}"
        )

    def _first_part(self, source, video, rng):
        """Cuts a clip out of a video; out of an earlier part of it if one cannot be decoded."""
        name = source.name(video)
        until, reason = self._blocked.get(name, (0.0, ""))
        if time.monotonic() < until:
            raise VideoError(reason)
        try:
            for earlier in range(_PARTS - 1):
                try:
                    return within(self.timeout, name, self._cut, source, video, rng, earlier)
                except PartError:  # the header may promise more frames than there are
                    continue
            return within(self.timeout, name, self._cut, source, video, rng, _PARTS - 1)
        except TimeLimitError as error:
            self._blocked[name] = time.monotonic() + _WAIT * (self.timeout or 0.0), str(error)
            raise

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
                    f"{len(self.skipped)} of the {counted(len(self._seen), 'video')} looked at "
                    f"cannot be used, more than config.data.max_unusable={self._max_unusable} of "
                    f"them; mend or remove them, or allow more:\n  {listed}"
                )

    def held_out(self, count: int) -> UInt8[np.ndarray, "n t s s 3"]:
        """Returns fixed clips to look at during training, uint8 [n, T, size, size, 3].

        They are cut from the centre of the first `count` usable videos. Each begins where the
        frames that `holdout` keeps from training begin; if these are fewer than a clip, it takes
        the last frames of the video. There are fewer clips if there are fewer usable videos.

        Raises:
          VideoError: if no video can be used.
        """
        return np.stack(list(itertools.islice(self.each_held_out(), count)))

    def each_held_out(self, parts: int = 1) -> Iterator[UInt8[np.ndarray, "t s s 3"]]:
        """Yields the clips of `held_out`, uint8 [T, size, size, 3], one after another.

        Args:
          parts: the greatest number of clips of a video. A second one begins where the first ends,
            and so on; it comes after the first clips of all videos, and only if `holdout` keeps all
            its frames.

        Raises:
          VideoError: if no video can be used.
        """
        reasons: dict[tuple[int, int], str] = {}
        found = blocked = 0
        for part in range(parts):
            for which, source in enumerate(self.sources):
                for video in range(len(source)):
                    if (which, video) in reasons:
                        continue
                    try:
                        name = source.name(video)
                        frames = within(self.timeout, name, self._held_out_of, source, video, part)
                        clip = centre_crop(frames, self.size, self.size)
                    except Exception as error:
                        reasons[which, video] = problem_of(name, error)
                        blocked += isinstance(error, TimeLimitError)
                        if blocked == _BLOCKED:
                            raise
                        continue
                    found += 1
                    yield clip
        if not found:
            listed = "\n  ".join(list(reasons.values())[:50])
            raise VideoError(f"none of {counted(len(reasons), 'video')} can be used:\n  {listed}")

    def _held_out_of(self, source, video: int, part: int) -> np.ndarray:
        """Reads the frames of a fixed clip from where the held out frames of a video begin.

        Raises:
          VideoError: if they are fewer than this part and those before it take.
        """
        sampling = self.sampling
        span = (sampling.frames - 1) * sampling.stride[0] + 1
        if sampling.fps is not None:
            seconds = (sampling.frames - 1) / sampling.fps
            span = round(seconds * source.rate(video)) + 1
        later = sampling.holdout - span * (part + 1)
        if part and later < 0:
            raise VideoError(f"{source.name(video)} has no more frames that are held out")
        plain = dataclasses.replace(sampling, holdout=0)
        where = max(later, 0)
        return source.read(video, plain, sampling.stride[0], lambda n: max(n - 1 - where, 0))

    def _cut(self, source, video: int, rng: np.random.Generator, earlier: int) -> np.ndarray:
        """Cuts a clip out of a video.

        For `earlier` = 1, 2, ... it begins in the first half of the video, the first quarter, ...
        """
        low, high = self.sampling.stride
        stride = int(rng.integers(low, high + 1))
        sampling, (least, most) = self.sampling, self._sides
        if most > least:
            side = round(least * (most / least) ** rng.uniform())
            sampling = dataclasses.replace(sampling, short_side=side)
        frames = source.frames(video, sampling, stride, lambda n: int(rng.integers(n)) >> earlier)
        free = [side - self.size for side in frames[0].shape[:2]]
        top, left = (s // 2 if self._crop == "centre" else int(rng.integers(s + 1)) for s in free)
        mirrored = -1 if self._flip and rng.integers(2) else 1
        # Cut before the frames are put together: only what is wanted is copied.
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        return np.stack([frame[rows, columns][:, ::mirrored] for frame in frames])


def label_of(source: Source, video: int, column: str) -> int:
    """Returns the number of a video's class, from a column of its source.

    Args:
      source: the source.
      video: the number of the video.
      column: the name of the column. It holds whole numbers from 0 on; they may be written as text,
        as in a manifest .csv.

    Raises:
      VideoError: if the video has no such column, or something else stands in it.
    """
    columns = source.columns(video)
    value = columns.get(column)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if column in columns and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = f"it holds {value!r}" if column in columns else f"its columns are {list(columns)}"
    raise VideoError(
        f"{source.name(video)} has no label in a column {column!r}: {one_line(Exception(found))}; "
        "expected a whole number from 0 on."
    )


def batches(
    clips: RandomClips,
    batch_size: int,
    *,
    first: int = 0,
    rows: Sequence[int] | None = None,
    threads: int = 4,
    workers: int = 0,
    timeout: float | Literal["clips"] | None = "clips",
) -> Batches:
    """Returns endless batches of clips, uint8 [n, T, size, size, 3], which are read ahead.

    If `clips` were made with `label`, a batch is a pair of the clips and their labels, int32 [n].

    The batches are the same for any number of threads and workers. They are the same, too, if the
    system kills a worker, which is then started again. A video that two workers died of, the second
    of which read nothing else meanwhile, is passed over from then on like one that is broken.

    Args:
      clips: the clips.
      batch_size: the number of clips in a batch, over all processes of the training.
      first: the index of the first clip.
      rows: which clips of each batch this process reads, counted from 0; None for all.
      threads: the number of threads that decode, in each worker.
      workers: the number of processes that decode; 0 decodes in threads of this process. Workers
        import neither JAX nor the program's main module.
      timeout: the seconds that one read may take, None for no limit; "clips" takes that of `clips`.

    Raises:
      VideoError: on iteration, if no video that was drawn can be used, or too many are unusable.
      WorkerError: on iteration, if workers died more than three times within an hour. Deaths of a
        video that is passed over for it do not count any more once the clip is there that another
        video was drawn for.
    """
    return Batches(clips, batch_size, first, rows, threads, workers, timeout)


class Batches:
    """Endless batches of clips; `batches` makes it. It is an iterator.

    It can be closed at any time, from any thread. Closing takes a few seconds at most, even if a
    read blocks, and what blocks does not keep the program from ending.
    """

    def __init__(self, clips, batch_size, first, rows, threads, workers, timeout):
        rows = tuple(range(batch_size) if rows is None else rows)
        self._clips, self._rows = clips, len(rows)
        self._pending: list[Drawn] = []
        limited = copy.copy(clips)
        limited.avoided = dict(clips.avoided)
        limited.timeout = clips.timeout if timeout == "clips" else timeout
        self._deadly: dict[str, str] = {}  # the reason by the name of a video
        self._deaths = Deaths(_ADVICE)
        indices = (first + start + row for start in itertools.count(0, batch_size) for row in rows)
        self._drawn = InOrder(
            _draw,
            limited,
            ((index, self._deadly) for index in indices),  # as it is when the job is sent
            workers=workers_for(clips.sources, workers),
            threads=threads,
            ahead=len(rows) + max(2 * len(rows), max(workers, 1) * threads),
            on_death=self._deaths,
            lost=self._lost,
        )

    def _lost(self, job, reason: str, video: str | None) -> Again:
        if video is not None:
            self._deadly[video] = f"{video} cannot be used: {reason}."
        return Again(job)

    def __iter__(self) -> Batches:
        return self

    def __next__(
        self,
    ) -> (
        UInt8[np.ndarray, "n t s s 3"]
        | tuple[UInt8[np.ndarray, "n t s s 3"], Int32[np.ndarray, " n"]]
    ):
        try:
            while len(self._pending) < self._rows:
                self._pending.append(next(self._drawn))
            for drawn in self._pending:
                self._clips.note(drawn)
                self._deaths.explained(self._deadly.keys() & dict(drawn.passed_over).keys())
        except Exception:
            self.close()
            raise
        batch = np.stack([drawn.clip for drawn in self._pending])
        labels = [drawn.label for drawn in self._pending]
        self._pending = []
        return (batch, np.array(labels, np.int32)) if self._clips.label else batch

    def close(self) -> None:
        """Ends the threads and processes that read."""
        self._drawn.close()


def _draw(clips: RandomClips, job: tuple[int, dict[str, str]]) -> Drawn:
    index, deadly = job
    clips.avoided.update(deadly)
    return clips.draw(index)
