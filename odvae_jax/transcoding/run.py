"""Runs over files: read ahead in threads, computed on the device, and written behind.

The blocks of the next few files are read in threads, and the device is given the next block before
the result of the last one is fetched. All queues are short, so that the memory that a run needs
does not depend on the length of the files.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from odvae_jax.data.latents import LatentsError
from odvae_jax.data.video import VideoError
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.settings import Outcome


@runtime_checkable
class Writer(Protocol):
    """Writes one file from what the device computed; the file appears complete or not at all."""

    def write(self, part: np.ndarray) -> int:
        """Adds the result for one block.

        Returns:
          The number of frames that it stands for, for the progress bar.
        """

    def finish(self) -> tuple[int, str]:
        """Gives the file its name.

        Returns:
          The number of frames of the video, and what is wrong with the video, "" for nothing.
        """

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """How one file becomes another.

    Attributes:
      blocks: the content of the file that is read; iterated once, in a thread.
      compute: maps these blocks to results on the device, which need not be computed yet.
      open_writer: opens the file that is written; called just before the first block is computed.
    """

    blocks: Iterable[np.ndarray]
    compute: Callable[[Iterable[np.ndarray]], Iterator[jax.Array]]
    open_writer: Callable[[], Writer]


def run_jobs(
    jobs: Sequence[Job],
    convert: Callable[[Job], Conversion],
    outcome: Outcome,
    *,
    count_frames: Callable[[Job], int | None],
    readers: int = 2,
    bar: bool = True,
) -> None:
    """Does every job, in order, and notes in `outcome` what came of it.

    A file that cannot be read is noted in `outcome.problems`, and the others are done.

    Args:
      jobs: which file goes where.
      convert: says how a job is done. It is called when the file is to be read ahead.
      outcome: what is added to.
      count_frames: returns about how many frames a job has, for the progress bar; None if that is
        not known.
      readers: the number of files that are read at the same time.
      bar: whether a progress bar is shown.

    Raises:
      OSError: if a file cannot be written.
    """
    start = time.perf_counter()
    shown = _Bar(jobs, outcome.skipped, count_frames, bar)
    unfinished: set[Writer] = set()
    results = _results(jobs, convert, unfinished, readers)
    with contextlib.closing(shown), contextlib.closing(results):
        try:
            for job, writer, result in _one_behind(results):
                if result is not None and not isinstance(result, Exception):
                    shown.update(writer.write(np.asarray(result)))
                    continue
                if result is None:
                    frames, problem = writer.finish()
                    outcome.done += 1
                    outcome.frames += frames
                else:
                    problem = str(result)
                if problem:
                    outcome.problems[str(job.source)] = problem
                writer.close()
                unfinished.discard(writer)
                shown.next()
        finally:
            for writer in unfinished:
                writer.close()
    outcome.seconds += time.perf_counter() - start


def _results(
    jobs, convert, unfinished, readers
) -> Generator[tuple[Job, Writer, jax.Array | Exception | None], None, None]:
    """Yields each job's results; after them None, or the error that ended the file too early.

    Writers are put into `unfinished` when they are opened.
    """
    for job, conversion, blocks in _read_ahead(jobs, convert, readers):
        writer = conversion.open_writer()
        unfinished.add(writer)
        ended = None
        try:
            for result in conversion.compute(blocks):
                result.copy_to_host_async()
                yield job, writer, result
        except (VideoError, LatentsError) as error:
            ended = error
        yield job, writer, ended


def _read_ahead(
    jobs, convert, readers
) -> Generator[tuple[Job, Conversion, Iterator[np.ndarray]], None, None]:
    """Yields each job with its blocks, while threads read ahead in it and in the next few files."""
    running: collections.deque = collections.deque()
    jobs = iter(jobs)
    try:
        while True:
            while len(running) < readers and (job := next(jobs, None)) is not None:
                conversion = convert(job)
                running.append((job, conversion, _Ahead(conversion.blocks)))
            if not running:
                return
            job, conversion, ahead = running[0]
            yield job, conversion, iter(ahead)
            running.popleft()
            ahead.stop()
    finally:
        for _, _, ahead in running:
            ahead.stop()


class _Ahead:
    """The items of an iterable, of which a thread reads two ahead."""

    def __init__(self, items: Iterable):
        self._ready: queue.Queue = queue.Queue(2)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self._thread.start()

    def _work(self, items):
        end: tuple[Any, BaseException | None] = (None, None)
        try:
            for item in items:
                if not self._put((item, None)):
                    return
        except BaseException as error:
            end = (None, error)
        self._put(end)

    def _put(self, item):
        # A bounded wait, so that the thread ends if nobody takes the items any more.
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False

    def __iter__(self):
        while True:
            item, error = self._ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def stop(self):
        self._stopped.set()


def _one_behind(items: Iterable) -> Iterator:
    """Yields each item once the next one has been asked for, or could not be had.

    The device thus has the next block while the result of the last one is fetched and written.
    """
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            waiting.append(item)
            if len(waiting) > 1:
                yield waiting.popleft()
    except Exception:
        yield from waiting
        raise
    yield from waiting


class _Bar:
    """A progress bar of files with their frames per second; for a single file, of its frames."""

    def __init__(self, jobs, skipped, count_frames, shown):
        self._single = len(jobs) == 1 and not skipped
        self._bar = tqdm(
            total=count_frames(jobs[0]) if self._single else len(jobs) + skipped,
            initial=skipped,
            unit="frame" if self._single else "file",
            dynamic_ncols=True,
            disable=not shown,
        )
        self._frames, self._start = 0, time.perf_counter()

    def close(self):
        self._bar.close()

    def update(self, frames):
        """Adds frames."""
        self._frames += frames
        if self._single:
            self._bar.update(frames)
        else:
            rate = self._frames / (time.perf_counter() - self._start)
            self._bar.set_postfix_str(f"{rate:.0f} frames/s")

    def next(self):
        """Counts a file."""
        if not self._single:
            self._bar.update()
