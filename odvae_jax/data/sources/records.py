"""Records of array_record files, which several sources are stored in."""

from __future__ import annotations

import functools
import os

import numpy as np

from odvae_jax.data.finding import check_regular
from odvae_jax.data.sources.base import Source
from odvae_jax.data.video import VideoError, within
from odvae_jax.files import one_line, printable


class Records(Source):
    """The records of several array_record files, numbered over all of them.

    A file that is damaged counts as one record, which cannot be read.

    Args:
      paths: the paths of the files, which are the shards of one dataset.
      counts: the number of records in each file; None reads it from the files.

    Raises:
      ValueError: if all files are damaged, or there is no record.
    """

    def __init__(self, paths: list[str], counts: list[int] | None = None):
        self._paths = paths
        self._damaged: dict[str, str] = {}
        counts = [self._count(path) for path in paths] if counts is None else counts
        if len(self._damaged) == len(paths):
            raise ValueError("\n  ".join(list(self._damaged.values())[:20]))
        self._ends = np.cumsum(counts)
        if not len(self):
            raise ValueError(f"{printable(paths[0])} and what belongs to it hold no record.")

    def _count(self, path) -> int:
        try:
            return _count(path)
        except ValueError as error:
            self._damaged[path] = str(error)
            return 1

    def __len__(self):
        return int(self._ends[-1])

    def bytes_behind(self, index):
        """Returns the number of bytes in the shard that holds a record."""
        path = self._paths[self._shard(index)]
        return os.path.getsize(path) if os.path.exists(path) else 0

    def record(self, index: int) -> bytes:
        """Reads a record.

        Raises:
          VideoError: if the record cannot be read.
        """
        shard = self._shard(index)
        first, path = int(self._ends[shard - 1]) if shard else 0, self._paths[shard]
        if path in self._damaged:
            raise VideoError(self._damaged[path])
        try:
            return within(self.timeout, self.name(index), _read, path, index - first)
        except VideoError:
            raise
        except Exception as error:
            raise VideoError(f"{self.name(index)} cannot be read: {one_line(error)}.") from error

    def _shard(self, index):
        return int(np.searchsorted(self._ends, index, side="right"))


def _read(path, place) -> bytes:
    return _reader(path).read([place])[0]


def _count(path) -> int:
    """Returns the number of records of a file.

    Raises:
      ValueError: if the file is damaged.
    """
    try:
        reader = _reader(path)
        # A file that was cut short seems to be one without records.
        count, good = reader.num_records(), reader.ok()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{printable(path)} is no array_record file: {one_line(error)}.") from None
    if not good:
        raise ValueError(f"{printable(path)} is damaged; write it again, or remove it.")
    return count


@functools.lru_cache(maxsize=256)
def _reader(path):
    from array_record.python.array_record_module import ArrayRecordReader

    check_regular(path)
    # Records are read here and there, so groups of records read ahead would be wasted.
    return ArrayRecordReader(os.fsencode(path), options="readahead_buffer_size:0")
