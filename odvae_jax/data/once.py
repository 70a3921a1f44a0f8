"""Warnings that are said once in a run of the program, whichever of its processes meets the cause.

A process that reads data hands them to the one that started it, with its results.
"""

from __future__ import annotations

import logging
import threading

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_said: set[str] = set()
_to_hand_over: list[tuple[str, str]] | None = None


def warn_once(kind: str, message: str) -> None:
    """Logs a warning, unless one of its kind was logged before."""
    with _lock:
        if kind in _said:
            return
        _said.add(kind)
        if _to_hand_over is not None:
            _to_hand_over.append((kind, message))
            return
    logger.warning("%s", message)


def hand_over() -> None:
    """From here on, this process keeps its warnings for `handed_over` and logs none."""
    global _to_hand_over
    _to_hand_over = []


def handed_over() -> list[tuple[str, str]]:
    """Returns the kinds and messages of the warnings that were kept since the last call."""
    with _lock:
        kept = list(_to_hand_over or ())
        if kept:
            _to_hand_over.clear()
        return kept
