"""What a dataset of latents holds: every record that counts, from the indices of its shards."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from odvae_jax.data.finding import check_regular
from odvae_jax.files import counted, one_line
from odvae_jax.latents.description import DATASET, Description, read_description
from odvae_jax.latents.records import NUMPY, Record, unpack_record
from odvae_jax.latents.schema import LatentsError, compression
from odvae_jax.latents.shards import SHARD, Index, read_indices, without_doubles
from odvae_jax.latents.storage import Folder

_OPEN = 256  # The number of shards that a process has open at the same time.


@dataclasses.dataclass(frozen=True)
class Opened:
    """A dataset as its description and its indices say.

    Attributes:
      folder: the dataset's folder.
      description: what the dataset says about itself.
      shards: the index of each shard, with a mask of the records that count, by bucket.
      problems: what is wrong with a shard, by the shard's name.
    """

    folder: Folder
    description: Description
    shards: list[list[tuple[Index, np.ndarray]]]
    problems: dict[str, str]


def open_dataset(folder: Folder, *, strict: bool = False) -> Opened:
    """Opens a dataset of latents, finished or not; no shard is opened for it.

    Args:
      folder: the dataset's folder.
      strict: whether a damaged index is an error. Else its shard is left out and named.

    Raises:
      LatentsError: if there is no dataset, its description is damaged, or, if `strict`, an index.
    """
    description = read_description(folder)
    if description is None:
        raise LatentsError(f"{folder.name} is no dataset of latents: it holds no {DATASET}.")
    problems: dict[str, str] = {}
    indices = read_indices(folder, description.plan, problems)
    numbers = {bucket.name: i for i, bucket in enumerate(description.buckets)}
    channels = description.shared["config"]["latent_channels"]
    for stem, index in list(indices.items()):
        if wrong := _wrong(index, numbers, channels):
            problems[stem + SHARD] = f"{stem}{SHARD} is left out: {wrong}."
            del indices[stem]
    shards: list[list[tuple[Index, np.ndarray]]] = [[] for _ in description.buckets]
    found = 0
    for index, mask in without_doubles(indices):
        shards[numbers[_bucket_of(index)]].append((index, mask))
        found += int(mask.sum())
    if description.records not in (None, found):
        problems[DATASET] = (
            f"{DATASET} promises {counted(description.records, 'record')}; there are {found}."
        )
    problems = {name: f"{folder.name}/{problem}" for name, problem in problems.items()}
    if strict and problems:
        raise LatentsError(next(iter(problems.values())))
    return Opened(folder, description, shards, problems)


def _bucket_of(index: Index) -> str:
    return index.name.rpartition("/")[0]


def _wrong(index: Index, buckets: dict[str, int], channels: int) -> str:
    """What cannot be true of an index; empty if nothing is known to be wrong."""
    if _bucket_of(index) not in buckets:
        return f"{DATASET} has no bucket of this name"
    if index.sums.shape[2] != channels:
        return f"its index is of {index.sums.shape[2]} channels, the dataset of {channels}"
    return ""


class Catalogue:
    """The records of a dataset that count, ordered by bucket and then by entry.

    The order does not depend on who wrote which shard. A pickle of it holds no open file.

    Args:
      opened: the dataset.
      buckets: the numbers of the buckets that are wanted.

    Attributes:
      folder: the dataset's folder.
      description: what the dataset says about itself.
      bucket: the number of each record's bucket.
      entries: the number of each record's entry in the dataset's plan.
      frames: the number of frames of each record's clip.
      latent_frames: the number of latent frames of each record.
    """

    bucket: Int64[np.ndarray, " n"]
    entries: Int64[np.ndarray, " n"]
    frames: Int64[np.ndarray, " n"]
    latent_frames: Int64[np.ndarray, " n"]

    def __init__(self, opened: Opened, buckets: Sequence[int]):
        self.folder, self.description = opened.folder, opened.description
        self._stems: list[str] = []
        self._counts: list[int] = []
        columns = collections.defaultdict(list)
        for number in buckets:
            for index, mask in opened.shards[number]:
                places = np.flatnonzero(mask)
                columns["bucket"].append(np.full(len(places), number))
                columns["shard"].append(np.full(len(places), len(self._stems)))
                columns["place"].append(places)
                for name in ("entries", "frames", "latent_frames"):
                    columns[name].append(getattr(index, name)[mask])
                self._stems.append(index.name)
                self._counts.append(len(mask))
        joined = {n: np.concatenate(parts).astype(np.int64) for n, parts in columns.items()}
        names = ("bucket", "entries", "frames", "latent_frames", "shard", "place")
        joined = joined or {name: np.zeros(0, np.int64) for name in names}
        order = np.lexsort((joined["entries"], joined["bucket"]))
        # One row per record, so that what is needed of a record comes with one access.
        self._rows = np.stack([joined[name][order] for name in names], axis=1)
        self.bucket, self.entries, self.frames, self.latent_frames = self._rows.T[:4]
        self._formats = _formats(self.description)
        self._readers = _Readers()

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, record: int) -> str:
        """Returns what messages call a record."""
        _, entry, _, _, shard, place = self._rows[record].tolist()
        return f"{self.folder.name}/{self._stems[shard]}{SHARD}, record {place} (entry {entry})"

    def read(self, record: int) -> Record:
        """Reads a record.

        Args:
          record: its number in this catalogue.

        Raises:
          LatentsError: if it or its shard is damaged, or it is not what the index says.
        """
        bucket, entry, _, latent_frames, shard, place = self._rows[record].tolist()
        try:
            reader = self._readers.get(self.folder, self._stems[shard], self._counts[shard])
            # A range of one is read faster than a list of one.
            found = unpack_record(reader.read(place, place + 1)[0], "it")
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise LatentsError(f"{self.name(record)} cannot be read: {one_line(error)}.") from error
        dtype, *sides = self._formats[bucket]
        latents, shape = found.latents, (latent_frames, *sides)
        if latents.shape != shape or latents.dtype != dtype or found.entry != entry:
            raise LatentsError(
                f"{self.name(record)} is not what the index of its shard says: it is entry "
                f"{found.entry}, {latents.dtype} {latents.shape}; expected {dtype} {shape}."
            )
        return found


def _formats(description: Description) -> list[tuple[np.dtype, int, int, int]]:
    """Returns the dtype of stored latents, and their rows, columns and channels, by bucket."""
    shared = description.shared
    _, space = compression(shared["config"])
    channels = shared["config"]["latent_channels"] * (1 + (shared["content"] == "moments"))
    return [
        (NUMPY[shared["store"]], -(-bucket.height // space), -(-bucket.width // space), channels)
        for bucket in description.buckets
    ]


class _Readers:
    """The shards that this process has open, the last that were used; none in a pickle."""

    def __init__(self):
        self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        return {}

    def __setstate__(self, state):
        self.__init__()

    def get(self, folder: Folder, stem: str, count: int) -> Any:
        """Returns a reader of a shard that holds so many records.

        Raises:
          OSError, ValueError, RuntimeError: if there is none.
        """
        with self._lock:
            if (reader := self._open.get(stem)) is not None:
                self._open.move_to_end(stem)
                return reader
        reader = _opened(folder.local(stem + SHARD), count)
        with self._lock:
            self._open[stem] = reader
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)  # it is closed when nobody reads in it any more
        return reader


def _opened(path: Path, count: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    check_regular(path)
    # Records are read here and there, so groups of records read ahead would be wasted.
    reader = ArrayRecordReader(os.fsencode(path), options="readahead_buffer_size:0")
    if not reader.ok() or reader.num_records() != count:  # one that was cut short seems empty
        raise ValueError(f"the shard has {reader.num_records()} of {counted(count, 'record')}")
    return reader
