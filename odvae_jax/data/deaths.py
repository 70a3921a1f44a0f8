"""What is done about processes that read data and die: they are started again, a few times."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Iterable

from odvae_jax.data.processes import WorkerError

logger = logging.getLogger(__name__)
_RESTARTS = 3  # The number of times within an hour that workers are started again.
_HOUR = 3600.0


class Deaths:
    """Counts the workers that died within the last hour, and knows what they read.

    It is what `InOrder` calls when a process dies.

    Args:
      advice: what needs less memory, as a part of a sentence.
    """

    def __init__(self, advice: str):
        self._less = advice
        self._all: list[tuple[float, list[str]]] = []  # when, and the videos that were read
        self._lock = threading.Lock()

    def __call__(self, how: str, videos: list[str]) -> None:
        """Notes a death.

        Args:
          how: how the worker died (see `how_it_died`).
          videos: the names of what it read.

        Raises:
          WorkerError: if it is the fourth within an hour.
        """
        with self._lock:
            now = time.monotonic()
            self._all = [*(d for d in self._all if now - d[0] < _HOUR), (now, videos)]
            count, advice = len(self._all), self._advice()
        if count > _RESTARTS:
            raise WorkerError(
                f"data workers died {count} times within an hour; the last one {how}: {advice}."
            )
        logger.warning(
            "a data worker %s; it is started again (%d of %d times within an hour), and what "
            "it read is read again: %s",
            how,
            count,
            _RESTARTS,
            advice,
        )

    def explained(self, videos: Iterable[str]) -> None:
        """Forgets the deaths of workers that read these videos."""
        if videos := set(videos):
            with self._lock:
                self._all = [death for death in self._all if not videos & set(death[1])]

    def _advice(self) -> str:
        times = collections.Counter(video for _, read in self._all for video in set(read))
        if suspects := [f"{video} ({n} times)" for video, n in times.most_common(5) if n > 1]:
            listed = ", ".join(suspects)
            return f"mend or remove what they read when they died: {listed}; {self._less}"
        if times:
            read = ", ".join(video for video, _ in times.most_common(5))
            return f"{self._less}; they read {read} when they died"
        return self._less
