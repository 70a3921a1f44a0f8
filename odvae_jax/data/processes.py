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
    """Makes processes that are started inside it run `worker.py` first, not the caller's script.

    Otherwise Python would import the script in each of these processes, and with it JAX.
    """
    stand_in = types.ModuleType("__main__")
    stand_in.__file__ = str(Path(__file__).with_name("worker.py"))
    before, sys.modules["__main__"] = sys.modules["__main__"], stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = before


_SHARED = None  # What all jobs of a process share.


def _share(shared):
    global _SHARED
    _SHARED = shared


def _with_shared(function, job):
    return function(_SHARED, job)


def in_processes(function: Callable, shared: Any, jobs: Sequence, workers: int) -> Generator:
    """Yields `function(shared, job)` for each job, in order; a few jobs are done ahead.

    The processes import neither JAX nor the caller's script.

    Args:
      function: a function that can be pickled.
      shared: what all jobs share; it is sent to each process once.
      jobs: the jobs.
      workers: the number of processes. One worker works in this process.
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
