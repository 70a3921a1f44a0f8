"""A limit in seconds for what may block in the system, such as reading from a dead network disk.

Nothing can interrupt a thread that waits in the system. So the work is done in a thread of its own,
which is given up when it takes too long. It keeps neither its caller nor the program from ending.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from odvae_jax.data.video.errors import TimeLimitError

T = TypeVar("T")
READ_TIMEOUT = 60.0
"""The seconds that one read may take, where nothing else is said."""
_STEP = 1.0  # seconds
_local = threading.local()


class _Work:
    """What a thread does for another one, and how often it got further."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._over = threading.Lock()  # held until it is over
        self._over.acquire()
        self.moved = 0
        self.value, self.error = None, None

    def run(self) -> None:
        _local.work = self
        try:
            self.value = self._function()
        except BaseException as error:
            self.error = error
        self._over.release()

    def wait(self, seconds: float, name: str) -> Any:
        # In short steps: a program that was stopped for an hour has not waited for an hour.
        left, before = seconds, self.moved
        while not self._over.acquire(timeout=min(left, _STEP)):
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
    work = _Work(lambda: function(*arguments))
    threading.Thread(target=work.run, daemon=True).start()
    return work.wait(seconds, name)


def each_within(seconds: float | None, name: str, items: Iterator[T]) -> Generator[T, None, None]:
    """Yields the items of an iterator, each of which may take so long.

    Arguments and errors are those of `within`.
    """
    if seconds is None or _limited():
        for item in items:
            moved()
            yield item
        return
    works: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_do_all, args=(works,), daemon=True).start()
    try:
        while True:
            work = _Work(lambda: next(items, _END))
            works.put(work)
            if (item := work.wait(seconds, name)) is _END:
                return
            yield item
    finally:
        works.put(None)


def _do_all(works):
    for work in iter(works.get, None):
        work.run()
        del work  # it holds an item


_END: Any = object()
