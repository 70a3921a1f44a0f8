"""Processes that read videos: without JAX, and without the caller's script."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import sys
import types
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def own_main():
    """Lets processes that are started here run `worker.py` first, and not the caller's script.

    Python would import the script in every one of them, and with it JAX.
    """
    stand_in = types.ModuleType("__main__")
    stand_in.__file__ = str(Path(__file__).with_name("worker.py"))
    before, sys.modules["__main__"] = sys.modules["__main__"], stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = before


_SHARED = None  # what all jobs of a process share


def _share(shared):
    global _SHARED
    _SHARED = shared


def _with_shared(function, job):
    return function(_SHARED, job)


def in_processes(function: Callable, shared: Any, jobs: Sequence, workers: int) -> Generator:
    """`function(shared, job)` for each job, in order, a bounded number ahead.

    With one worker, in this process. The others do without JAX and the caller's script, as those
    that training reads with, and are sent `shared` once.
    """
    if workers < 2 or len(jobs) < 2:
        yield from (function(shared, job) for job in jobs)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_share,
        initargs=(shared,),
    )
    pending = collections.deque()
    try:
        for job in jobs:
            with own_main():
                pending.append(pool.submit(_with_shared, function, job))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
