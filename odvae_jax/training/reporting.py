"""The reports of a run: metrics and pictures, for TensorBoard and in a file of JSON lines."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from odvae_jax.data.video import write_video
from odvae_jax.files import counted, write_whole
from odvae_jax.flops import peak_flops
from odvae_jax.training.curves import DAMAGED_FILE, METRICS_FILE, split_metrics
from odvae_jax.training.tasks.task import Measured

logger = logging.getLogger(__name__)
LAST = ("skipped_in_a_row", "skipped_steps")
"""Counters, of which the last value is reported and not the mean."""
SAMPLES = "samples"
"""Where a run's folder holds the videos that validations made."""


class Reporter:
    """Writes the metrics of a run; if there are several processes, only the first one writes.

    What an earlier part of the run wrote about steps after `first` is dropped. A full disk is
    reported once and does not stop the run.

    Args:
      workdir: the folder of the run.
      first: the number of steps that are done already.
      per_step: what a step processes, such as {"clips": 8}; each is reported per second.
      device_flops: the operations per step that each device does; 0 if they are not known.
    """

    def __init__(
        self,
        workdir: Path,
        first: int,
        per_step: Mapping[str, int],
        device_flops: float,
    ):
        self.path = workdir / METRICS_FILE
        self._per_step = per_step
        self._writes = jax.process_index() == 0
        self._device_flops = device_flops
        self._complained = False
        if self._writes:
            _drop_after(self.path, first)
            folder = workdir / "tensorboard"
            folder.mkdir(exist_ok=True)
            # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and it waits for it.
            self._events = EventsWriter(str(folder / "events"))
            purge = Event(step=first + 1, session_log=SessionLog(status=SessionLog.START))
            self._attempt(lambda: self._events.write_event(purge))
        self._start = time.monotonic()
        self._last_step, self._data_seconds, self._away = first, 0.0, 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time that passes inside this context as waiting for data."""
        start = time.monotonic()
        yield
        self._data_seconds += time.monotonic() - start

    @contextmanager
    def away(self) -> Iterator[None]:
        """Leaves the time that passes inside this context out of the speed.

        It is for compiling, measuring and saving.
        """
        start = time.monotonic()
        yield
        self._away += time.monotonic() - start

    def train(self, step: int, metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Writes the speed, and the means of the metrics over all steps since the last call.

        Args:
          step: the number of steps done.
          metrics: the metrics of each of these steps, by name.

        Returns:
          What was written, by name.
        """
        values = means(metrics) | self._speed(step)
        self._write(step, values)
        return values

    def validate(self, step: int, measured: Measured) -> None:
        """Writes the numbers and pictures of a validation, and its videos as mp4 files."""
        if measured.numbers:
            self._write(step, measured.numbers)
        if not self._writes:
            return
        for name, picture in measured.pictures.items():
            self._write_summaries(step, [summary.image(name, picture, dataformats="HWC")])
        for name, (frames, fps) in measured.videos.items():
            path = self.path.parent / SAMPLES / f"{name}-{step:08d}.mp4"
            self._attempt(lambda path=path: path.parent.mkdir(exist_ok=True))
            self._attempt(lambda path=path, f=frames, fps=fps: write_video(path, f, fps))

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._writes:
            self._attempt(self._events.close)

    def _speed(self, step):
        now = time.monotonic()
        steps = step - self._last_step
        seconds = max(now - self._start - self._away, 1e-9)
        rates = {f"{n}_per_second": steps * c / seconds for n, c in self._per_step.items()}
        speed = {
            **rates,
            "seconds_per_step": seconds / steps,
            "data_wait_fraction": min(self._data_seconds / seconds, 1.0),
        }
        device = jax.local_devices()[0]
        if self._device_flops and (peak := peak_flops(device)):
            speed["model_flop_utilisation"] = self._device_flops * steps / seconds / peak
        memory = device.memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            speed["device_memory_peak_gib"] = memory["peak_bytes_in_use"] / 2**30
        self._start, self._last_step = now, step
        self._data_seconds, self._away = 0.0, 0.0
        return speed

    def _write(self, step, values):
        if not self._writes:
            return
        line = json.dumps({"step": step, **values}) + "\n"
        self._attempt(lambda: _append(self.path, line))
        self._write_summaries(step, [summary.scalar(n, v) for n, v in values.items()])

    def _write_summaries(self, step, summaries):
        def write():
            for one in summaries:
                event = Event(wall_time=time.time(), step=step, summary=one)
                self._events.write_event(event)
            self._events.flush()

        self._attempt(write)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if not self._complained:
                logger.error("metrics cannot be written (%s); the run goes on.", error)
            self._complained = True


def means(metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Returns the mean of each metric over those steps where it exists and is finite.

    A metric without such a step is left out. Of a counter the last value is returned instead.
    """
    values: dict[str, float] = {}
    for name in dict.fromkeys(name for step in metrics for name in step):
        numbers = [float(step[name]) for step in metrics if name in step]
        finite = [number for number in numbers if math.isfinite(number)]
        if finite:
            values[name] = finite[-1] if name in LAST else math.fsum(finite) / len(finite)
    return values


def _drop_after(path: Path, step: int) -> None:
    """Keeps the records up to a step, and sets lines aside that are no records."""
    records, damaged = split_metrics(path)
    if damaged:
        aside = path.with_name(DAMAGED_FILE)
        with aside.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in damaged))
        lines = counted(len(damaged), f"line of {path} has", f"lines of {path} have")
        logger.warning("%s no metrics: kept in %s", lines, aside.name)
    kept = [record for record in records if record["step"] <= step]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


def _append(path: Path, line: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("a") as file:
            file.write(line)
    except OSError:
        os.truncate(path, size)  # nothing of a line that does not fit
        raise
