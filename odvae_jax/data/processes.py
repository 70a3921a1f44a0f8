"""Jobs done ahead in threads or processes: without JAX, and without the caller's script.

A process that dies, as one that the system kills when memory runs out, is started again, and loses
no job. A thread or process that blocks for ever keeps neither `close` nor the program from ending.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import heapq
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from odvae_jax.data.once import hand_over, handed_over, warn_once
from odvae_jax.files import one_line

_PATIENCE = 2.0  # seconds that threads and processes get to end
_STARTS = 3  # processes in a row that may die before they are ready
_WORKER = Path(__file__).with_name("worker.py")


class WorkerError(RuntimeError):
    """Processes that read data died too often. The message says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Again:
    """What `lost` returns for a job that is not given up, but done in another way.

    Attributes:
      job: the job as it is done next.
    """

    job: Any


_lane = threading.local()


def doing(what: str) -> None:
    """Says what the job under way reads now, in case that its process dies of it.

    It does nothing outside processes of `InOrder`.
    """
    if (connection := getattr(_lane, "connection", None)) is not None:
        _send(connection, (what,))


def how_it_died(exitcode: int) -> str:
    """Returns how a process died, with the likely cause, from its exit code."""
    if exitcode >= 0:
        return f"ended with exit code {exitcode} (its own messages are above)"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    if -exitcode == signal.SIGKILL:
        return f"was killed ({name}), probably because the system ran out of memory"
    return f"was ended by {name}, probably a fault in a library that decodes"


class InOrder:
    """The results of `function(shared, job)` for each job, in order, which are computed ahead.

    It is an iterator. It can be closed at any time, from any thread; then it yields nothing more.

    Args:
      function: what is called. For processes, it and everything that it takes and returns can be
        pickled.
      shared: what all jobs share; it is sent to each process once.
      jobs: the jobs; they need not end, and may be long in coming. One thread at a time draws them.
      workers: the number of processes; 0 works in threads of this process. The processes import
        neither JAX nor the caller's script.
      threads: the number of threads, in each process.
      ahead: the number of jobs that are begun or done before their results are asked for.
      on_death: called with how a process died (see `how_it_died`), and with the list of what its
        jobs had said that they read (see `doing`), for each that died by itself. What it raises
        ends the iteration.
      lost: makes the result of a job, or `Again`, out of the job, the reason, and what it had said
        that it read, or None. It is called for a job that two processes died of while they read
        the same, the second of which did nothing else meanwhile. None tries each job until it is
        done.

    Raises:
      WorkerError: on iteration, if processes cannot even be started.
    """

    def __init__(
        self,
        function: Callable,
        shared: Any,
        jobs: Iterable,
        *,
        workers: int,
        threads: int = 1,
        ahead: int,
        on_death: Callable | None = None,
        lost: Callable | None = None,
    ):
        self._tasks = tasks = _Tasks(jobs, ahead, lost)
        self._workers: list[_Worker] = []
        if workers:
            pickled = cloudpickle.dumps((function, shared))
            self._workers = [_Worker(pickled, threads, tasks, on_death) for _ in range(workers)]
            lanes = [(w.lane, place) for w in self._workers for place in range(threads)]
        else:
            lanes = [(_work_here, function, shared, tasks)] * threads
        self._threads = [
            threading.Thread(target=lane[0], args=lane[1:], daemon=True) for lane in lanes
        ]
        for thread in self._threads:
            thread.start()
        _OPEN.add(self)

    def __iter__(self) -> InOrder:
        return self

    def __next__(self) -> Any:
        return self._tasks.next_result()

    @property
    def ended(self) -> bool:
        """Whether it was closed, or an error ended it; then the next result raises at once."""
        return self._tasks.ended

    def close(self) -> None:
        """Ends the threads and processes. It waits two seconds at most for those that block."""
        _OPEN.discard(self)
        self._tasks.end()
        for worker in self._workers:
            worker.kill()
        until = time.monotonic() + _PATIENCE
        for worker in self._workers:
            worker.wait(until)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(until - time.monotonic(), 0))

    def __del__(self):
        if "_threads" in self.__dict__:
            self.close()


_OPEN: weakref.WeakSet[InOrder] = weakref.WeakSet()


@atexit.register
def _close_all():
    for open_one in list(_OPEN):
        open_one.close()


class _Task:
    """One job: its number in the order, whether a process died of it, and what it read then."""

    def __init__(self, number, job):
        self.number, self.job = number, job
        self.suspect, self.read = False, None

    def __lt__(self, other):
        return self.number < other.number


class _Tasks:
    """Which jobs are to be done, and the results until they are asked for."""

    def __init__(self, jobs, ahead, lost):
        self._fresh = (_Task(*pair) for pair in enumerate(jobs))
        self._ahead, self._lost = ahead, lost
        self._again: list[_Task] = []  # a heap of those that were just drawn or whose process died
        self._results: dict[int, tuple[bool, Any]] = {}
        self._given = self._wanted = self._running = 0
        self._count: int | None = None  # of all jobs, once it is known
        self._alone = self._ended = self._drawing = False
        self._fault: BaseException | None = None
        # With many threads, to wake all for each change would take more time than the changes. The
        # lock is re-entrant: a signal's handler may end this while its thread holds the lock.
        self._lock = threading.RLock()
        self._free = threading.Condition(self._lock)  # a job may be begun, or drawn
        # Who asks for results waits here, without the lock. A condition would take the lock back
        # after it has waited, and a signal that raises meanwhile would keep it from that.
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def next_result(self):
        while True:
            with self._lock:
                if self._wanted in self._results or self._ended or self._wanted == self._count:
                    good, value = self._result()
                    break
            self._news.get()
        if not good:
            raise value
        return value

    def _result(self):
        """The one that is wanted next."""
        if self._ended or self._wanted not in self._results:
            self._tell()  # who else waits
            raise self._fault or StopIteration
        found = self._results.pop(self._wanted)
        self._wanted += 1
        self._free.notify()
        if self._wanted in self._results:
            self._tell()
        return found

    def _tell(self):
        """Wakes one of those who wait for a result; each looks itself whether there is one."""
        if self._news.empty():
            self._news.put(None)

    def take(self) -> _Task | None:
        """Waits for a job that may be begun; None once there is none any more."""
        with self._lock:
            while not self._ended:
                if self._again and self._again[0].suspect:  # it is done alone
                    if not self._running:
                        self._alone = True
                        return self._begun(heapq.heappop(self._again))
                elif not self._alone:
                    if self._again:
                        return self._begun(heapq.heappop(self._again))
                    if self._may_draw():
                        self._draw()
                        continue
                    if self._count is not None and not self._running:
                        return None
                self._free.wait()
        return None

    def _begun(self, task):
        self._running += 1
        return task

    def _may_draw(self):
        room = self._given < self._wanted + self._ahead
        return self._count is None and not self._drawing and room

    def _draw(self):
        """Draws the next job. The lock is open meanwhile, since a job may be long in coming."""
        self._drawing, fault = True, None
        self._lock.release()
        try:
            task = next(self._fresh, None)
        except BaseException as error:
            fault = error
        finally:
            self._lock.acquire()
            self._drawing = False
        if fault is not None:
            self._end(fault)
        elif task is not None:
            self._given += 1
            heapq.heappush(self._again, task)
            self._free.notify()  # who was to draw the next meanwhile
        else:
            self._count = self._given
            self._free.notify_all()
            self._tell()

    def done(self, task: _Task, good: bool, value: Any) -> None:
        with self._lock:
            self._results[task.number] = good, value
            self._tell()
            self._one_less()

    def died(self, task: _Task, began: bool, how: str, read: str | None) -> None:
        """Notes that a process died while a job, which read this, was its own, begun or not."""
        if began and task.suspect and task.read == read:
            value = self._lost(task.job, f"a process that read it twice {how}", read)
            if not isinstance(value, Again):
                self.done(task, True, value)
                return
            task.job, task.suspect, began = value.job, False, False
        if began:
            task.read = read
        with self._lock:
            task.suspect = task.suspect or (began and self._lost is not None)
            heapq.heappush(self._again, task)
            self._free.notify()
            self._one_less()

    def _one_less(self):
        self._running -= 1
        # A suspect waits until nothing runs, the others until it has run, and the end for the last.
        suspected = self._alone or (self._again and self._again[0].suspect)
        self._alone = False
        if suspected or (self._count is not None and not self._running):
            self._free.notify_all()

    def end(self, fault: BaseException | None = None) -> None:
        with self._lock:
            self._end(fault)

    def _end(self, fault):
        self._fault = self._fault or fault
        self._ended = True
        self._results.clear()
        self._free.notify_all()
        self._tell()

    @property
    def ended(self) -> bool:
        return self._ended


def _outcome(function, shared, job) -> tuple[bool, Any]:
    try:
        return True, function(shared, job)
    except Exception as error:
        return False, error


def _work_here(function, shared, tasks):
    while (task := tasks.take()) is not None:
        tasks.done(task, *_outcome(function, shared, task.job))


class _Worker:
    """A process that is started again when it dies, with a thread and a socket for each lane."""

    def __init__(self, pickled, threads, tasks, on_death):
        self._pickled, self._threads, self._tasks = pickled, threads, tasks
        self._on_death = on_death
        self._lock = threading.Lock()
        self._process, self._sockets = None, []
        self._reads: list[str | None] = [None] * threads  # by the jobs under way
        self._last: list[str | None] = [None] * threads  # by these, or by the ones before
        self._how, self._failed_starts = "", 0

    def lane(self, place: int) -> None:
        """Gives jobs to one thread of the process, for as long as there are any."""
        while (task := self._tasks.take()) is not None:
            process = None
            try:
                try:
                    process, connection = self._connection(place)
                    _send(connection, task.job)
                    good, value, warnings = self._answer(connection, place)
                except (OSError, EOFError):
                    if self._tasks.ended:
                        return
                    if process is not None:
                        self._bury(process)
                    self._tasks.died(task, process is not None, self._how, self._reads[place])
                else:
                    for kind, message in warnings:
                        warn_once(kind, message)
                    self._tasks.done(task, good, value)
            except BaseException as fault:  # what `on_death` raises; jobs that cannot be sent
                self._tasks.end(fault)
                return
            self._reads[place] = None

    def _answer(self, connection, place):
        """Waits for the end of a job, and notes what it reads meanwhile."""
        while len(message := _receive(connection)) == 1:
            (self._reads[place],) = (self._last[place],) = message
        return message

    def _connection(self, place):
        with self._lock:
            if self._process is None:
                self._start()
            return self._process, self._sockets[place]

    def _start(self):
        try:
            self._open_process()
        except OSError as error:  # out of memory, or of file descriptors
            self._close_sockets()
            self._died(f"could not be started ({one_line(error)})")
        else:
            try:
                _send(self._sockets[0], sys.path)
                _send(self._sockets[0], self._pickled)
                _receive(self._sockets[0])  # it is ready
                self._failed_starts = 0
                return
            except (OSError, EOFError):
                self._buried()
        self._failed_starts += 1
        limited = self._on_death is None  # else it decides how often is too often
        if limited and self._failed_starts >= _STARTS and not self._tasks.ended:
            raise WorkerError(
                f"{_STARTS} processes that read data died before they were ready; the last one "
                f"{self._how}."
            )
        raise EOFError

    def _open_process(self):
        pairs = [socket.socketpair() for _ in range(self._threads)]
        self._sockets, theirs = [list(side) for side in zip(*pairs, strict=True)]
        numbers = [their.fileno() for their in theirs]
        command = [sys.executable, str(_WORKER), *map(str, numbers)]
        try:
            self._process = subprocess.Popen(command, pass_fds=numbers, stdin=subprocess.DEVNULL)
        finally:
            for their in theirs:
                their.close()
        if self._tasks.ended:
            self._process.kill()

    def _close_sockets(self):
        for connection in self._sockets:
            connection.close()
        self._sockets = []

    def _bury(self, process):
        with self._lock:
            if self._process is process:  # else another lane has done it
                self._buried()

    def _buried(self):
        process, self._process = self._process, None
        self._close_sockets()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        process.kill()
        self._died(how_it_died(process.wait()))

    def _died(self, how):
        self._how = how
        if self._on_death is not None and not self._tasks.ended:
            reads = [read for read in self._reads if read is not None]
            # A signal may come late, when what caused it is over.
            self._on_death(how, reads or [read for read in self._last if read is not None])

    def kill(self) -> None:
        """Kills the process, which holds nothing that could be lost."""
        if (process := self._process) is not None:
            process.kill()

    def wait(self, until: float) -> None:
        """Waits until the process is gone, up to a time of `time.monotonic`."""
        if (process := self._process) is not None:
            # One that waits for a dead disk cannot even be killed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0))


def serve(numbers: Sequence[int]) -> None:
    """Does the jobs that come, until nobody is there to send them: what a process is for.

    Args:
      numbers: the file descriptors of the sockets, one for each thread.
    """
    connections = [socket.socket(fileno=number) for number in numbers]
    sys.path[:] = _receive(connections[0])
    hand_over()
    function, shared = pickle.loads(_receive(connections[0]))
    threads = [
        threading.Thread(target=_serve_lane, args=(connection, function, shared), daemon=True)
        for connection in connections
    ]
    _send(connections[0], "ready")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve_lane(connection, function, shared):
    _lane.connection = connection
    while True:
        try:
            job = _receive(connection)
        except (OSError, EOFError):
            os._exit(0)  # whatever other threads wait for
        good, value = _outcome(function, shared, job)
        notes = handed_over()
        try:
            message = _packed((good, value, notes))
        except Exception as error:  # what cannot be pickled
            kind = type(error if good else value).__name__
            text = one_line(error if good else value)
            message = _packed((False, RuntimeError(f"{kind}: {text}"), notes))
        _send_all(connection, message)


def _packed(message: Any) -> list:
    """Returns the parts of a message: the sizes of the parts, and the parts without copies."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [text, *(buffer.raw() for buffer in buffers)]
    sizes = [len(parts), *(memoryview(part).nbytes for part in parts)]
    return [struct.pack(f"<{len(sizes)}Q", *sizes), *parts]


def _send(connection: socket.socket, message: Any) -> None:
    _send_all(connection, _packed(message))


def _send_all(connection, parts):
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    (count,) = struct.unpack("<Q", _received(connection, 8))
    layout = struct.Struct(f"<{count}Q")
    sizes = layout.unpack(_received(connection, layout.size))
    text, *buffers = [_received(connection, size) for size in sizes]
    return pickle.loads(text, buffers=buffers)


def _received(connection, size) -> memoryview:
    # Not a bytearray: filling one with zeros first would keep all other threads waiting.
    part = view = memoryview(np.empty(size, np.uint8))
    while view.nbytes:
        if not (read := connection.recv_into(view)):
            raise EOFError
        view = view[read:]
    return part


def in_processes(
    function: Callable,
    shared: Any,
    jobs: Sequence,
    workers: int,
    lost: Callable[[Any, str], Any],
) -> Generator:
    """Yields `function(shared, job)` for each job, in order; a few jobs are done ahead.

    If a process dies, its job is tried once more, alone. If that process dies too, the job is given
    up, and the others go on. The processes import neither JAX nor the caller's script.

    Args:
      function: a function that can be pickled.
      shared: what all jobs share; it is sent to each process once.
      jobs: the jobs.
      workers: the number of processes. One worker works in this process.
      lost: makes the result of a job that is given up out of the job and the reason.

    Raises:
      WorkerError: if no process can be started.
    """
    if workers < 2 or len(jobs) < 2:
        yield from (function(shared, job) for job in jobs)
        return
    workers = min(workers, len(jobs))
    results = InOrder(
        function,
        shared,
        jobs,
        workers=workers,
        ahead=2 * workers,
        lost=lambda job, reason, _: lost(job, reason),
    )
    with contextlib.closing(results):
        yield from results
