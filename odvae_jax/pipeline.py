"""Files through the device: read ahead in threads, computed, and written behind.

Files are decoded ahead in threads, the device is given the next part of a clip before the last one
is fetched, and videos are written in threads. All queues are short, so that memory does not depend
on a file's length.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from odvae_jax.data.latents import LatentsError
from odvae_jax.data.video import VideoError, VideoWriter
from odvae_jax.files import WholeFile


@dataclasses.dataclass(frozen=True)
class Job:
    """A file to read, the file to write, and a name that no other job of a run has."""

    source: Path
    target: Path
    name: str = ""


@runtime_checkable
class Blocks(Protocol):
    """The content of a file in blocks; what it says is complete once it was iterated.

    Attributes:
      frames: of the video.
      problem: what ended it too early; empty if nothing did.
    """

    frames: int
    problem: str

    def __iter__(self) -> Iterator[np.ndarray]: ...


@runtime_checkable
class Work(Protocol):
    """What is done with one file."""

    def parts(self, blocks: Iterable[np.ndarray]) -> Iterator[jax.Array]:
        """What the device makes of the blocks, not waited for."""

    def add(self, part: np.ndarray) -> int:
        """Takes a part that is there, and says how many frames it makes."""

    def finish(self) -> None:
        """Gives the file written its name."""

    def close(self) -> None:
        """Leaves nothing of a file that was not finished."""


@runtime_checkable
class Task(Protocol):
    """What is done with all files."""

    def read(self, job: Job) -> Blocks:
        """Opens a file."""

    def begin(self, job: Job, blocks: Blocks) -> Work:
        """Begins with a file; nothing is written yet."""

    def total_frames(self, job: Job) -> int | None:
        """About how many a file has, for the progress bar; None if that cannot be told."""


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    Attributes:
      done: files written.
      skipped: files that were there already.
      frames: of the videos read or written.
      seconds: from the first file on.
      problems: what is wrong, by the name of the file read.
    """

    done: int = 0
    skipped: int = 0
    frames: int = 0
    seconds: float = 0.0
    problems: dict[str, str] = dataclasses.field(default_factory=dict)


def run_jobs(
    task: Task, jobs: Sequence[Job], progress: Progress, *, readers: int = 2, bar: bool = True
) -> None:
    """Does every job, noting in `progress` what came of it.

    Args:
      task: what is done.
      jobs: in this order.
      progress: is added to.
      readers: files that are read at the same time.
      bar: shows one.

    Raises:
      OSError: if a file cannot be written.
    """
    start, work = time.perf_counter(), None
    shown = _Bar(task, jobs, progress, bar)
    with contextlib.closing(shown), contextlib.closing(_parts(task, jobs, readers)) as parts:
        try:
            for job, blocks, work, part in _one_behind(parts):
                if part is not None and not isinstance(part, Exception):
                    shown.update(work.add(np.asarray(part)))
                    continue
                problem = blocks.problem
                if part is None:
                    work.finish()
                    progress.done += 1
                    progress.frames += blocks.frames
                else:
                    problem = str(part)
                if problem:
                    progress.problems[str(job.source)] = problem
                work.close()
                shown.next()
        finally:
            if work is not None:
                work.close()
    progress.seconds += time.perf_counter() - start


def _parts(task, jobs, readers):
    """Each file's parts, then None or what ended it."""
    for job, blocks, ahead in _read_ahead(task, jobs, readers):
        work = task.begin(job, blocks)
        try:
            ended = None
            try:
                for part in work.parts(ahead):
                    part.copy_to_host_async()
                    yield job, blocks, work, part
            except (VideoError, LatentsError) as error:
                ended = error
            yield job, blocks, work, ended
        except BaseException:
            work.close()
            raise


def _read_ahead(task, jobs, readers) -> Generator[tuple[Job, Blocks, Iterator], None, None]:
    """Each job, its reader, and its blocks, which a thread reads ahead; so of the next few jobs."""
    running: collections.deque = collections.deque()
    jobs = iter(jobs)
    try:
        while True:
            while len(running) < readers and (job := next(jobs, None)) is not None:
                blocks = task.read(job)
                running.append((job, blocks, _Ahead(blocks)))
            if not running:
                return
            job, blocks, ahead = running[0]
            yield job, blocks, iter(ahead)
            running.popleft()
            ahead.stop()
    finally:
        for _, _, ahead in running:
            ahead.stop()


class _Ahead:
    """Items of an iterable, of which a thread gets two ahead."""

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
    """The items, each once the next has been asked for, or has failed."""
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
    """Files and frames a second; of a single file, its frames."""

    def __init__(self, task, jobs, progress, shown):
        self._single = len(jobs) == 1 and not progress.skipped
        self._bar = tqdm(
            total=task.total_frames(jobs[0]) if self._single else len(jobs) + progress.skipped,
            initial=progress.skipped,
            unit="frame" if self._single else "file",
            dynamic_ncols=True,
            disable=not shown,
        )
        self._frames, self._start = 0, time.perf_counter()

    def close(self):
        self._bar.close()

    def update(self, frames):
        """So many more frames."""
        self._frames += frames
        if self._single:
            self._bar.update(frames)
        else:
            rate = self._frames / (time.perf_counter() - self._start)
            self._bar.set_postfix_str(f"{rate:.0f} frames/s")

    def next(self):
        """The file is done."""
        if not self._single:
            self._bar.update()


class VideoInThread:
    """An mp4 file written by a thread of its own, which appears whole or not at all.

    `finish` ends it; `close` leaves nothing of a file that was not finished.

    Args:
      target: the file.
      fps: frames a second.
      crf: quality of H.264, 0 to 51, lower is better.

    Raises (in `write` and `finish`):
      OSError: if it cannot be written.
    """

    def __init__(self, target: Path, fps: float, crf: int):
        self._target, self._fps, self._crf = target, fps, crf
        self._whole = WholeFile(target)
        self._waiting: queue.Queue = queue.Queue(2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self):
        frames = self._until_the_end()
        try:
            with VideoWriter(self._whole.file, self._fps, crf=self._crf, exact=True) as writer:
                for some in frames:
                    writer.write(some)
        except BaseException as error:
            self._error = error
            for _ in frames:  # nobody is to wait for room; nothing is left if the end was seen
                pass

    def _until_the_end(self):
        while (frames := self._waiting.get()) is not None:
            yield frames

    def write(self, frames: np.ndarray) -> None:
        """Adds uint8 RGB frames [n, H, W, 3], waiting while too many wait."""
        self._check()
        self._waiting.put(frames)

    def finish(self) -> None:
        """Waits for the last frames, and gives the file its name."""
        self._end()
        self._check()
        self._whole.finish()

    def close(self) -> None:
        """Leaves nothing of a file that was not finished."""
        self._end()
        self._whole.close()

    def _end(self):
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _check(self):
        if self._error is not None:
            raise OSError(f"{self._target} cannot be written: {self._error}") from self._error
