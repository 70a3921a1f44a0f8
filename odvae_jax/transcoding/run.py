"""Runs over files: read ahead in threads, computed on the device, and written behind.

The blocks of the next few files are read in threads, and the device is given the next block before
the result of the last one is fetched. Another thread writes. All queues are short, so that the
memory that a run needs does not depend on the length of the files.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from odvae_jax.files import printable
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.settings import Outcome, is_device_fault

logger = logging.getLogger(__name__)


@runtime_checkable
class Writer(Protocol):
    """Writes one file from what the device computed; the file appears complete or not at all."""

    def write(self, part: Any) -> int:
        """Adds the result for one block, an array or a tuple of arrays on the host.

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
      compute: maps these blocks to results on the device, which need not be computed yet. A result
        is an array or a tuple of arrays.
      open_writer: opens the file that is written; called just before the first block is computed.
        It may raise AlreadyThereError, or BusyError if another process is writing the file.
    """

    blocks: Iterable[np.ndarray]
    compute: Callable[[Iterable[np.ndarray]], Iterator[Any]]
    open_writer: Callable[[], Writer]


def run_jobs(
    jobs: Sequence[Job],
    convert: Callable[[Job, jax.Device | None], Conversion],
    outcome: Outcome,
    *,
    count_frames: Callable[[Job], int | None],
    readers: int = 2,
    bar: bool = True,
    devices: Sequence[jax.Device | None] = (None,),
) -> None:
    """Does every job and notes in `outcome` what came of it.

    Jobs are begun in order. With several devices, each has a thread that takes the next job when it
    is free, so that none waits for a long file.

    Whatever is raised for one file is noted for this file, and the others are done. The run ends
    early if the disk is full: `outcome.ended` then says so.

    Args:
      jobs: which file goes where.
      convert: says how a job is done on a device. It is called in a thread when the file is to be
        read ahead.
      outcome: what is added to.
      count_frames: returns about how many frames a job has, for the progress bar; None if that is
        not known.
      readers: the number of files that are read at the same time, for each device.
      bar: whether a progress bar is shown.
      devices: the devices; None stands for the default one, or for several that work on one file
        together.
    """
    start = time.perf_counter()
    run = _Run(jobs, outcome, _Bar(jobs, outcome.skipped, count_frames, bar))
    lanes = [(functools.partial(convert, device=d), d) for d in devices[: max(len(jobs), 1)]]
    with contextlib.closing(run.bar):
        if len(lanes) == 1:
            run.work(*lanes[0], readers)
        else:
            run.work_in_threads(lanes, readers)
    outcome.seconds += time.perf_counter() - start


class _Run:
    """The jobs that are left, and what came of the others; lanes of several devices share it."""

    def __init__(self, jobs, outcome, bar):
        self._jobs, self._outcome, self.bar = iter(jobs), outcome, bar
        self._lock = threading.Lock()
        self._stopped = False
        self._fault: BaseException | None = None

    def next_job(self) -> Job | None:
        with self._lock:
            return None if self._stopped else next(self._jobs, None)

    def work(self, convert, device, readers) -> None:
        """Does jobs until there are none left."""
        unfinished: set[_Item] = set()
        results = _results(iter(self.next_job, None), convert, unfinished, readers)
        # Files are written in a thread: to bring one safely to the disk takes some time.
        written = _Behind(functools.partial(self._write, unfinished))
        with contextlib.closing(results), jax.default_device(device):
            try:
                for result in one_behind(results):
                    if self._stopped or not written.put(result):
                        break
                written.finish()
            finally:
                written.close()
                for item in unfinished:
                    item.close()

    def _write(self, unfinished, item, result, is_last) -> None:
        """Writes a result of the device, or brings its file to an end."""
        if not is_last:
            frames = item.write(result)
            with self._lock:
                self.bar.update(frames)
            return
        end = item.finished(result)
        unfinished.discard(item)
        with self._lock:
            end(self._outcome)
            self.bar.next()
            self._stopped = self._stopped or bool(self._outcome.ended)

    def work_in_threads(self, lanes, readers) -> None:
        """Lets each lane do jobs in a thread of its own.

        Raises:
          BaseException: what a lane raised first; the others then end, too.
        """
        threads = [threading.Thread(target=self._lane, args=(*a, readers)) for a in lanes]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # signals are handled in between
        finally:
            self._stopped = True
            for thread in threads:
                thread.join()
        if self._fault is not None:
            raise self._fault

    def _lane(self, convert, device, readers):
        try:
            self.work(convert, device, readers)
        except BaseException as fault:
            self._fault = self._fault or fault
            self._stopped = True


class _Item:
    """One job under way, which begins to read.

    Args:
      job: the job.
      convert: says how the job is done.

    Attributes:
      error: why nothing can come of the job; None while there is no reason.
      ahead: how the job is done, and then the blocks that are read.
      writer: the file that is written, once it is open.
    """

    def __init__(self, job: Job, convert: Callable[[Job], Conversion]):
        self.job, self.error = job, None
        self.ahead = ReadAhead(_conversion_and_blocks(job, convert))
        self.writer: Writer | None = None

    def write(self, result: Any) -> int:
        """Writes a result of the device, unless something failed before; returns its frames."""
        if self.error is None:
            try:
                return self.writer.write(jax.device_get(result))
            except Exception as error:
                self.error = error
        return 0

    def finished(self, error: Exception | None) -> Callable[[Outcome], None]:
        """Gives the file its name, or removes what was written; returns what notes the outcome."""
        error = self.error or error
        try:
            if error is None:
                done = self.writer.finish()
                return lambda outcome: outcome.note_done(self.job.source, *done)
        except Exception as found:
            error = found
        finally:
            self.close()
        return lambda outcome: outcome.note(self.job.source, error)

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""
        try:
            if self.writer is not None:
                self.writer.close()
        except Exception:
            logger.debug("%s cannot be closed", printable(self.job.target), exc_info=True)


def _results(jobs, convert, unfinished, readers) -> Generator[tuple[_Item, Any, bool], None, None]:
    """Yields each job's results; after them None, or the error that ended the file too early.

    The third of each tuple says whether it is the job's last. Items are put into `unfinished` when
    their writer is opened.
    """
    for item in _read_ahead(jobs, convert, readers):
        ended = None
        try:
            blocks = iter(item.ahead)
            conversion = next(blocks)
            item.writer = conversion.open_writer()
            unfinished.add(item)
            for result in conversion.compute(blocks):
                jax.tree.map(begin_copy, result)
                yield item, result, False
                if item.error is not None:  # what came before cannot be written
                    break
        except Exception as error:
            if is_device_fault(error):
                raise
            ended = error
        yield item, ended, True


def begin_copy(leaf: Any) -> None:
    """Lets an array of the device come to the host while the device works on; other things stay."""
    if isinstance(leaf, jax.Array):
        leaf.copy_to_host_async()


def _read_ahead(jobs, convert, readers) -> Generator[_Item, None, None]:
    """Yields each job, while threads read ahead in it and in the next few files."""
    running: collections.deque[_Item] = collections.deque()
    jobs = iter(jobs)
    try:
        while True:
            while len(running) < readers and (job := next(jobs, None)) is not None:
                running.append(_Item(job, convert))
            if not running:
                return
            yield running[0]
            running.popleft().ahead.stop()
    finally:
        for item in running:
            item.ahead.stop()


def _conversion_and_blocks(job, convert) -> Iterator[Conversion | np.ndarray]:
    """Yields how a job is done, and then the blocks: both read the file, which may block."""
    conversion = convert(job)
    yield conversion
    yield from conversion.blocks


class _Behind:
    """A thread that does something with items, in order, a few behind the one who gives them.

    Args:
      work: what is done, called with the parts of an item.
    """

    def __init__(self, work: Callable):
        self._work, self._items = work, queue.Queue(2)
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: tuple | None) -> bool:
        """Waits until there is room for an item; says whether it will be worked on."""
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=0.1)  # signals are handled in between
                return True
        return False

    def finish(self) -> None:
        """Waits until all items are done.

        Raises:
          BaseException: what the work raised.
        """
        self.put(None)
        while self._thread.is_alive():
            self._thread.join(0.1)
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Ends the thread after the item that it works on; the others are left."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._items.get_nowait()
        self._items.put(None)
        self._thread.join()

    def _run(self):
        try:
            while (item := self._items.get()) is not None:
                self._work(*item)
        except BaseException as fault:
            self._fault = fault


class ReadAhead:
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
            try:
                item, error = self._ready.get(timeout=0.1)
            except queue.Empty:
                if self._stopped.is_set():
                    return
                continue
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def stop(self) -> None:
        """Ends the thread, after what it reads just now."""
        self._stopped.set()


def one_behind(items: Iterable) -> Iterator:
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
            total=self._total(jobs[0], count_frames) if self._single else len(jobs) + skipped,
            initial=skipped,
            unit="frame" if self._single else "file",
            dynamic_ncols=True,
            disable=not shown,
        )
        self._frames, self._start = 0, time.perf_counter()

    def _total(self, job, count_frames):
        try:
            return count_frames(job)
        except Exception:  # what is wrong with the file is said when it is read
            return None

    def close(self):
        self._bar.close()

    def update(self, frames):
        """Adds frames."""
        self._frames += frames
        if self._single:
            # The last block may hold frames that were added so that their number divides.
            left = frames if self._bar.total is None else self._bar.total - self._bar.n
            self._bar.update(min(frames, left))
        else:
            rate = self._frames / (time.perf_counter() - self._start)
            self._bar.set_postfix_str(f"{rate:.0f} frames/s")

    def next(self):
        """Counts a file."""
        if not self._single:
            self._bar.update()
