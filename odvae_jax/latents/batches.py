"""Endless batches of a dataset of latents, read ahead in threads or processes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from odvae_jax.data.deaths import Deaths
from odvae_jax.data.order import shares, shuffled, turn
from odvae_jax.data.processes import InOrder

if TYPE_CHECKING:
    from odvae_jax.latents.dataset import LatentDataset

logger = logging.getLogger(__name__)
_ADVICE = "fewer workers or threads, or smaller batches, need less memory"
_STACKED = ("frames", "first", "entry", "fps")
_LISTED = ("source", "place", "columns")


def rows_of(
    batch_size: int,
    rows: Sequence[int] | None,
    process_index: int | None,
    process_count: int | None,
) -> tuple[int, ...]:
    """Returns which items of each batch a process reads, counted from 0.

    Args:
      batch_size: the number of items per batch.
      rows: the items; None takes all, or the part of `process_index`.
      process_index: the number of the process.
      process_count: the number of processes.

    Raises:
      ValueError: if these do not fit together.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected a number from 1.")
    if (process_index is None) != (process_count is None):
        raise ValueError("process_index and process_count belong together: give both.")
    if process_count is not None:
        if rows is not None:
            raise ValueError("rows and process_index both say what is read: give one.")
        if not 0 <= process_index < process_count or batch_size % process_count:
            raise ValueError(
                f"a batch of {batch_size} cannot be divided for process {process_index} of "
                f"{process_count}."
            )
        part = batch_size // process_count
        return tuple(range(process_index * part, (process_index + 1) * part))
    chosen = tuple(range(batch_size) if rows is None else rows)
    if not chosen or not all(0 <= row < batch_size for row in chosen):
        raise ValueError(f"rows={rows!r:.80} are not some of the {batch_size} items of a batch.")
    return chosen


class LatentBatches:
    """Endless batches of a dataset of latents; `LatentDataset.batches` makes it.

    It is an iterator, and can be closed at any time, from any thread.

    Args:
      dataset: the dataset.
      batch_size: the number of items per batch, over all processes of the training.
      seed: decides the order, and the noise of samples.
      first: the number of the first batch.
      rates: the share of batches of each bucket, by its name; None draws all items equally often.
      rows: which items of each batch are read.
      workers: the number of processes that read; 0 reads in threads of this process.
      threads: the number of threads, in each worker.

    Attributes:
      number: the number of the next batch. With it as `first`, a later run goes on.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        seed: int,
        first: int,
        rates: Mapping[str, float] | None,
        rows: tuple[int, ...],
        *,
        workers: int,
        threads: int,
    ):
        if first < 0:
            raise ValueError(f"first={first}; expected the number of a batch, from 0.")
        if workers and dataset.in_one_process:
            logger.warning(
                "a dataset that lives in the memory of one process is read by its threads, not by "
                "workers=%d",
                workers,
            )
            workers = 0
        self.number, self._dataset = first, dataset
        order = _Order(dataset, batch_size, seed, rates, rows)
        self._read = InOrder(
            _batch,
            order,
            itertools.count(first),
            workers=workers,
            threads=threads,
            ahead=max(workers, 1) * threads + 1,
            on_death=Deaths(_ADVICE),
        )

    def __iter__(self) -> LatentBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            batch, passed_over = next(self._read)
        except Exception:
            self.close()
            raise
        self._dataset.note(passed_over)
        self.number += 1
        return batch

    def close(self) -> None:
        """Ends the threads and processes that read."""
        self._read.close()


class _Order:
    """Which items each batch has.

    Raises:
      ValueError: if a bucket cannot be drawn from as asked for.
    """

    def __init__(self, dataset, batch_size, seed, rates, rows):
        self.dataset, self.seed, self.rows = dataset, seed, rows
        self._batch_size = batch_size
        if rates is None:
            rates = {name: float(len(dataset.drawn_of(name))) for name in dataset.buckets}
        if wrong := [name for name, rate in rates.items() if not 0 <= rate < float("inf")]:
            raise ValueError(f"the rate of {wrong[0]} is {rates[wrong[0]]}; expected 0 or more.")
        if unknown := [n for n, rate in rates.items() if rate and n not in dataset.buckets]:
            raise ValueError(
                f"the bucket {unknown[0]!r:.80} has no items; there are {list(dataset.buckets)}."
            )
        self.buckets = [name for name in dataset.buckets if rates.get(name)]
        if not self.buckets:
            raise ValueError("there are no items to draw from.")
        for name in self.buckets:
            dataset.check_equal_lengths(name)
        self._drawn = [dataset.drawn_of(name) for name in self.buckets]
        if empty := [n for n, items in zip(self.buckets, self._drawn, strict=True) if not items]:
            raise ValueError(f"all items of the bucket {empty[0]} are held out: hold out fewer.")
        total = sum(rates[name] for name in self.buckets)
        self._weights = tuple(rates[name] / total for name in self.buckets)
        for name, count in zip(self.buckets, shares(self._weights), strict=True):
            if not count:
                logger.warning("the bucket %s is never drawn: its share rounds to 0", name)

    def items(self, number: int) -> list[int]:
        """Returns the numbers of a batch's items, those of the rows that are read."""
        bucket, before = turn(self.seed, self._weights, number)
        items = self._drawn[bucket]
        chosen = []
        for row in self.rows:
            epoch, place = divmod(before * self._batch_size + row, len(items))
            seed = self.seed + 7919 * bucket + epoch
            chosen.append(items[shuffled(place, len(items), seed)])
        return chosen

    def noise(self, number: int, row: int) -> tuple[int, ...]:
        """Returns what the noise of an item of a batch depends on."""
        return self.seed, number, row


def _batch(order: _Order, number: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads a batch; returns what was passed over, too."""
    items, passed_over, latents = [], {}, None
    for i, (row, number_of) in enumerate(zip(order.rows, order.items(number), strict=True)):
        item, others = order.dataset.read(number_of, order.noise(number, row))
        one = item.pop("latents")
        if latents is None:
            latents = np.empty((len(order.rows), *one.shape), one.dtype)
        latents[i] = one  # at once, so that the next record comes into the same memory
        items.append(item)
        passed_over |= others
    batch: dict[str, Any] = {"latents": latents}
    batch |= {name: np.array([item[name] for item in items]) for name in _STACKED}
    batch |= {name: [item[name] for item in items] for name in _LISTED}
    return {**batch, "bucket": items[0]["bucket"], "number": number}, passed_over
