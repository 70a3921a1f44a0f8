"""A limit in seconds for what may block in the system, such as reading from a dead network disk.

Nothing can interrupt a thread that waits in the system. So the work is done in a thread of its own,
which is given up when it takes too long. It keeps neither its caller nor the program from ending.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from odvae_jax.data.video.errors import TimeLimitError

T = TypeVar("T")
_STEP = 1.0  # seconds
_local = threading.local()


class _Work:
    """What a thread does for another one, and how often it got further."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self.over = threading.Lock()  # held until it is over
        self.over.acquire()
        self.moved = 0
        self.value, self.error = None, None

    def run(self) -> None:
        _local.work = self
        try:
            self.value = self._function()
        except BaseException as error:
            self.error = error
        finally:
            _local.work = self._function = None

    def wait(self, seconds: float, name: str) -> Any:
        # In short steps: a program that was stopped for an hour has not waited for an hour.
        left, before = seconds, self.moved
        while not self.over.acquire(timeout=min(left, _STEP)):
            left = left - _STEP if self.moved == before else seconds
            before = self.moved
            if left <= 0:
                raise TimeLimitError(
                    f"{name} was not read within {seconds:g} s; is its disk reachable?"
                )
        if self.error is not None:
            raise self.error
        return self.value


def moved() -> None:
    """Says that the work under a limit got further: its time begins anew."""
    work = getattr(_local, "work", None)
    if work is not None:
        work.moved += 1


def _limited() -> bool:
    return getattr(_local, "work", None) is not None


def within(seconds: float | None, name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Returns what a function returns, or gives it up when it blocks.

    Inside work that is under a limit already, that limit holds and this one does not.

    Args:
      seconds: how long the function may take without calling `moved`; None for no limit, which
        holds for whatever the function calls, too.
      name: what the error message calls what is read.
      function: the function. It is called in another thread.
      arguments: its arguments.

    Raises:
      TimeLimitError: if it takes longer.
    """
    if _limited():
        return function(*arguments)
    if seconds is None:
        _local.work = _Work(function)
        try:
            return function(*arguments)
        finally:
            _local.work = None
    work = _Work(functools.partial(function, *arguments))
    try:
        helper = _idle.pop()
    except IndexError:
        helper = queue.SimpleQueue()
        threading.Thread(target=_help, args=(helper,), daemon=True).start()
    helper.put(work)
    return work.wait(seconds, name)


_idle: list[queue.SimpleQueue] = []
"""The queues of the threads that have nothing to do. They are kept, since a new thread's memory is
slow at first."""
if hasattr(os, "register_at_fork"):  # a forked process has none of them
    os.register_at_fork(after_in_child=_idle.clear)


def _help(works: queue.SimpleQueue) -> None:
    """What a thread does: one work after another."""
    while True:
        work = works.get()
        work.run()
        _idle.append(works)  # before the caller goes on, so that it finds this thread again
        work.over.release()
        del work  # it holds a result


class Guard:
    """Closes something as soon as nobody uses it any more, in whichever thread that is.

    Work that was given up goes on in its thread, and what it uses must not be closed under it.

    Args:
      close: what closes it. It is called once at most.
      closed: what `use` raises after `close` was called.
    """

    def __init__(self, close: Callable[[], Any], closed: Exception):
        self._close, self._error = close, closed
        self._lock = threading.Lock()
        self._users, self._closed = 0, False

    def use(self, function: Callable[..., T], *arguments: Any) -> T:
        """Returns what a function returns that uses it."""
        with self._lock:
            if self._closed:
                raise self._error
            self._users += 1
        try:
            return function(*arguments)
        finally:
            with self._lock:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._close()

    def close(self) -> None:
        """Closes it now, or as soon as nobody uses it."""
        with self._lock:
            unused = not self._users and not self._closed
            self._closed = True
        if unused:
            self._close()


def each_within(seconds: float | None, name: str, items: Iterator[T]) -> Generator[T, None, None]:
    """Yields the items of an iterator, each of which may take so long.

    Arguments and errors are those of `within`.
    """
    if seconds is None or _limited():
        for item in items:
            moved()
            yield item
        return
    while (item := within(seconds, name, next, items, _END)) is not _END:
        yield item


_END: Any = object()
