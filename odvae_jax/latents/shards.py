"""Shards of a dataset of latents: array_record files, each with an index that says what it holds.

A shard and its index have the same name but for the suffix. The index comes first, so that a shard
that is there is whole and can be found without being opened. An index without its shard is what a
killed writer left, and counts for nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors.numpy
from jaxtyping import Float64, Int64

from odvae_jax.data.packing import holds
from odvae_jax.files import one_line
from odvae_jax.latents.schema import LatentsError
from odvae_jax.latents.statistics import Statistics
from odvae_jax.latents.storage import Folder

SHARD, INDEX = ".array_record", ".index"
_READERS = 16  # The number of indices that are read at the same time.
_FORMAT = "odvae_jax index of a shard 1"


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a shard is closed and another one begun.

    Attributes:
      bytes: a shard that has so many bytes is closed.
      seconds: a shard is closed so many seconds after its first record, when the next one comes.
    """

    bytes: int = 2**28
    seconds: float = 300.0


@dataclasses.dataclass(frozen=True)
class Index:
    """What a shard holds, in the order of its records.

    Attributes:
      name: the name of the shard in its dataset, without the suffix: bucket/writer-number.
      entries: the number of each record's entry in the dataset's plan.
      frames: the number of frames of each record's clip.
      latent_frames: the number of latent frames of each record.
      seconds: the length of each record's clip, its frames over their rate.
      count: the number of positions that each record's latents have.
      sums: the sums over these positions of the mean, its square and the variance, per channel,
        [records, 3, C], as in `Statistics`.
    """

    name: str
    entries: Int64[np.ndarray, " n"]
    frames: Int64[np.ndarray, " n"]
    latent_frames: Int64[np.ndarray, " n"]
    seconds: Float64[np.ndarray, " n"]
    count: Int64[np.ndarray, " n"]
    sums: Float64[np.ndarray, "n 3 c"]

    def to_bytes(self) -> bytes:
        """Returns the content of the index's file."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}
        return safetensors.numpy.save(arrays, {"format": _FORMAT})

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Index:
        """Returns the index whose file has this content.

        Raises:
          LatentsError: if it is none.
        """
        try:
            index = cls(name=name, **safetensors.numpy.load(content))
            lengths = {len(getattr(index, f.name)) for f in dataclasses.fields(cls)[1:]}
            if len(lengths) != 1 or index.sums.ndim != 3 or index.sums.shape[1] != 3:
                raise ValueError("its arrays do not belong together")
        except (safetensors.SafetensorError, TypeError, ValueError) as error:
            raise LatentsError(f"{name}{INDEX} is damaged: {one_line(error)}.") from error
        return index

    def select(self, chosen: np.ndarray) -> Index:
        """Returns the index of some of the records, by their places or by a mask."""
        arrays = {f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)[1:]}
        return Index(self.name, **arrays)


def read_indices(
    folder: Folder, plan: str = "", problems: dict[str, str] | None = None
) -> dict[str, Index]:
    """Returns the index of every whole shard of a dataset, by the shard's name without suffix.

    Args:
      folder: the dataset's folder.
      plan: what the names of writers begin with (see `Description.plan`). Other shards belong to
        another plan, which two processes made at the same time, and do not count.
      problems: is filled with what is wrong with a shard's index, by the shard's name. None raises
        it, and passes over shards without an index.

    Raises:
      LatentsError: if an index is damaged, and `problems` is None.
    """
    stems = [n.removesuffix(SHARD) for n in folder.names() if n.endswith(SHARD)]
    stems = [stem for stem in stems if stem.rpartition("/")[2].startswith(plan)]

    def content(stem: str) -> bytes | None:
        # Asked for even if it was not listed: a shard may be finished while names are listed.
        try:
            return folder.read(stem + INDEX)
        except FileNotFoundError:
            return None

    with concurrent.futures.ThreadPoolExecutor(_READERS) as threads:  # far places answer slowly
        contents = list(threads.map(content, sorted(stems)))
    indices = {}
    for stem, found in zip(sorted(stems), contents, strict=True):
        try:
            if found is not None:
                indices[stem] = Index.from_bytes(stem, found)
            elif problems is not None:
                problems[stem + SHARD] = f"{stem}{SHARD} has no index ({stem}{INDEX} is missing)."
        except LatentsError as error:
            if problems is None:
                raise
            problems[stem + SHARD] = str(error)
    return indices


def without_doubles(indices: Mapping[str, Index]) -> list[tuple[Index, np.ndarray]]:
    """Returns each shard's index with a mask of the records that count.

    Two writers may have done the same entry, as when one was taken for dead. Then the record in the
    shard whose name comes first counts.
    """
    seen: set[int] = set()
    masks = []
    for _, index in sorted(indices.items()):
        mask = np.array([int(e) not in seen for e in index.entries], bool)
        seen.update(index.entries.tolist())
        masks.append((index, mask))
    return masks


def total_statistics(indices: Iterable[tuple[Index, np.ndarray]]) -> Statistics:
    """Returns the statistics of all records that count, added in the order of their entries."""
    chosen = [index.select(mask) for index, mask in indices]
    if not chosen:
        return Statistics()
    order = np.argsort(np.concatenate([i.entries for i in chosen]), kind="stable")
    sums = np.concatenate([i.sums for i in chosen])[order]
    if not len(sums):
        return Statistics()
    # One after another, so that the last bits do not depend on the shards.
    mean, square, variance = np.add.accumulate(sums, axis=0)[-1]
    count = int(np.concatenate([i.count for i in chosen]).sum())
    return Statistics(count, mean, square, variance)


class ShardWriter:
    """Writes records of one bucket into shards.

    Args:
      folder: the dataset's folder.
      bucket: the bucket's name.
      writer: a name that no other writer of the dataset has or had.
      limits: when a shard is closed.
    """

    def __init__(self, folder: Folder, bucket: str, writer: str, limits: Limits | None = None):
        self._folder, self._stem = folder, f"{bucket}/{writer}"
        self._limits = limits or Limits()
        self._number = 0
        self._forget()

    def _forget(self):
        self._file, self._path, self._bytes, self._began = None, None, 0, 0.0
        self._rows: list[tuple[int, int, int, int]] = []
        self._seconds: list[float] = []
        self._sums: list[np.ndarray] = []

    def add(
        self,
        entry: int,
        record: bytes,
        frames: int,
        latent_frames: int,
        seconds: float,
        sums: Statistics,
    ) -> None:
        """Adds a record.

        Args:
          entry: the number of the entry in the dataset's plan.
          record: the record.
          frames: the number of frames of its clip.
          latent_frames: the number of its latent frames.
          seconds: the length of its clip, its frames over their rate.
          sums: the statistics of its latents.

        Raises:
          OSError: if the shard cannot be written.
        """
        from array_record.python.array_record_module import ArrayRecordWriter

        try:
            if self._file is None:
                self._path = self._folder.scratch(self._name + SHARD)
                self._began = time.monotonic()
                # Groups of one record: a record is read without its neighbours.
                options = "group_size:1,uncompressed"
                self._file = ArrayRecordWriter(os.fsencode(self._path), options)
            self._file.write(record)
        except RuntimeError as error:
            raise OSError(f"{self._name}{SHARD} cannot be written: {one_line(error)}") from error
        self._bytes += len(record)
        self._rows.append((entry, frames, latent_frames, sums.count))
        self._seconds.append(seconds)
        self._sums.append(np.stack([sums.mean, sums.square, sums.variance]))

    @property
    def _name(self):
        return f"{self._stem}-{self._number:05d}"

    @property
    def is_open(self) -> bool:
        """Whether a shard is being written."""
        return self._file is not None

    @property
    def began(self) -> float:
        """When the shard that is being written got its first record, by `time.monotonic`."""
        return self._began

    @property
    def due(self) -> bool:
        """Whether the shard that is being written is large or old enough to be closed."""
        if self._file is None:
            return False
        age = time.monotonic() - self._began
        return self._bytes >= self._limits.bytes or age >= self._limits.seconds

    def finish(self) -> list[int]:
        """Closes the shard that is being written, if there is one, and gives it its name.

        Returns:
          The entries that are in it.

        Raises:
          OSError: if the shard cannot be written.
        """
        if self._file is None:
            return []
        try:
            self._file.close()
        except RuntimeError as error:
            raise OSError(f"{self._name}{SHARD} cannot be written: {one_line(error)}") from error
        if not holds(self._path, len(self._rows)):  # a writer may be silent about a full disk
            raise OSError(f"{self._name}{SHARD} was not written to its end; is the disk full?")
        entries, frames, latent_frames, count = np.array(self._rows, np.int64).T.copy()
        seconds, sums = np.array(self._seconds), np.stack(self._sums)
        index = Index(self._name, entries, frames, latent_frames, seconds, count, sums)
        self._folder.write(self._name + INDEX, index.to_bytes())
        self._folder.take(self._name + SHARD, self._path)
        self._number += 1
        self._forget()
        return entries.tolist()

    def close(self) -> None:
        """Removes what was written of a shard that was not finished."""
        if self._file is not None:
            with contextlib.suppress(RuntimeError):
                self._file.close()
        if self._path is not None:
            self._folder.drop(self._path)
        self._forget()
