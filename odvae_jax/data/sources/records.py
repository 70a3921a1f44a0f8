"""Records of array_record files, which several sources are stored in."""

from __future__ import annotations

import functools
import os

import numpy as np

from odvae_jax.data.sources.base import Source
from odvae_jax.data.video import VideoError


class Records(Source):
    """The records of several array_record files, numbered over all of them.

    Args:
      paths: the paths of the files, which are the shards of one dataset.
      counts: the number of records in each file; None reads it from the files.
    """

    def __init__(self, paths: list[str], counts: list[int] | None = None):
        self._paths = paths
        counts = [_reader(path).num_records() for path in paths] if counts is None else counts
        self._ends = np.cumsum(counts)

    def __len__(self):
        return int(self._ends[-1])

    def bytes_behind(self, index):
        """Returns the number of bytes in the shard that holds a record."""
        return os.path.getsize(self._paths[self._shard(index)])

    def record(self, index: int) -> bytes:
        """Reads a record.

        Raises:
          VideoError: if the record cannot be read.
        """
        shard = self._shard(index)
        first = int(self._ends[shard - 1]) if shard else 0
        try:
            return _reader(self._paths[shard]).read([index - first])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise VideoError(f"{self.name(index)} cannot be read: {error}.") from error

    def _shard(self, index):
        return int(np.searchsorted(self._ends, index, side="right"))


@functools.lru_cache(maxsize=256)
def _reader(path):
    from array_record.python.array_record_module import ArrayRecordReader

    # Records are read here and there, so groups of records read ahead would be wasted.
    return ArrayRecordReader(path, options="readahead_buffer_size:0")
