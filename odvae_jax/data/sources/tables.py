"""Tables with a column of videos: `parquet:PATH[:COLUMN]`, one file or those below a folder.

They are read with pyarrow, which is imported when a table is opened.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax.data.finding import check_regular, look_below
from odvae_jax.data.once import warn_once
from odvae_jax.data.sources.base import as_json
from odvae_jax.data.sources.containers import Container, Containers
from odvae_jax.data.urls import is_here_only, is_url, open_url
from odvae_jax.data.video import EXTENSIONS, VideoError, within
from odvae_jax.files import one_line, printable

_GROUPS = 2  # The number of groups of rows whose videos are kept in memory.
_OTHER_MEDIA = ("Image", "Audio", "Pdf")  # as Hugging Face's datasets call what is no video


class Tables(Containers):
    """The rows of several Parquet or Arrow files with a column of videos.

    The column holds bytes, paths, or structures of both, as Hugging Face's datasets write them. A
    file that is damaged counts as one row, which cannot be read. A row of a Parquet file is read
    with the whole group of rows that holds it; the last two such groups stay in memory.

    Args:
      paths: the paths or URLs of the files, which all have the same columns.
      column: the name of the column of videos; an empty name takes the only one.

    Raises:
      FileNotFoundError: if pyarrow is not installed.
      ValueError: if all files are damaged, if there is no row, or not one such column.
    """

    def __init__(self, paths: list[str], column: str = ""):
        _check_pyarrow()
        self._damaged: dict[str, str] = {}
        self._groups: list[tuple[str, int, int]] = []  # path, number, first row in the file
        self.here_only = any(is_here_only(path) for path in paths)
        schema, counts, good = None, [], ""
        for path in paths:
            try:
                counted, found = within(self.timeout, printable(path), _look, path)
            except VideoError:
                raise
            except Exception as error:
                self._damaged[path] = f"{printable(path)} cannot be read: {_why(error)}."
                counted, found = [1], None
            firsts = np.cumsum([0, *counted]).tolist()
            self._groups += [(path, n, first) for n, first in enumerate(firsts[:-1])]
            counts += counted
            if schema is None and found is not None:
                schema, good = found, path
        if schema is None:
            raise ValueError("\n  ".join(list(self._damaged.values())[:20]))
        self._ends = np.cumsum(counts)
        if not len(self):
            raise ValueError(f"{printable(paths[0])} and what belongs to it hold no row.")
        self._column = _video_column(schema, good, column)
        self._others, self._labels = _other_columns(schema, good, self._column)

    def __len__(self):
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, index):
        path, _, first, row = self._place(index)
        return f"{printable(path)}, row {first + row}"

    def bytes_behind(self, index):
        return self._size(index, self._place(index)[0])

    def container(self, index):
        value = self._row(index, (self._column,), _videos)[self._column]
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if isinstance(value, str):
            value, path = None, value
        if value:
            return Container(value)
        if not path:
            raise VideoError(f"{self.name(index)} holds no video in its column {self._column!r}.")
        if not is_url(path):  # relative to the folder of the table
            path = os.path.join(os.path.dirname(self._place(index)[0]), path)
        return Container(path)

    def columns(self, index):
        if not self._others:
            return {}
        found = self._row(index, self._others, _columns)
        for name, labels in self._labels.items():
            value = found[name]
            known = isinstance(value, int) and 0 <= value < len(labels)
            found[f"{name}_name"] = labels[value] if known else None
        return as_json(found)

    def _place(self, index) -> tuple[str, int, int, int]:
        """Returns a row's file, its group, the group's first row, and its place in the group."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[which - 1]) if which else 0
        return *self._groups[which], index - before

    def _row(self, index, columns, kept) -> dict[str, Any]:
        path, group, _, place = self._place(index)
        if path in self._damaged:
            raise VideoError(self._damaged[path])
        try:
            where = path, group, place
            return within(self.timeout, self.name(index), _read, *where, columns, kept)
        except VideoError:
            raise
        except Exception as error:
            raise VideoError(f"{self.name(index)} cannot be read: {_why(error)}.") from error


def open_parquet(text: str, *, in_memory: bool = False) -> Tables:
    """Opens the rows of one Parquet file, or of those anywhere below a folder.

    Args:
      text: PATH or PATH:COLUMN, where PATH may be a URL. The column holds the videos; without it,
        there must be one column that may hold videos.
      in_memory: without effect; videos are read anew every time.

    Raises:
      FileNotFoundError: if there is no such path, or pyarrow is not installed.
      ValueError: if there is no Parquet file, no row, or not one such column.
    """
    path, column = split_column(text)
    found = look_below(path, frozenset([".parquet"]), "Parquet file")
    found.log()
    tables = Tables(found.files, column)
    tables.problems = found.sentences()
    return tables


def split_column(text: str) -> tuple[str, str]:
    """Returns the path and the column that PATH or PATH:COLUMN names; no column is empty."""
    path, colon, column = text.rpartition(":")
    if is_url(text):
        return (text, "") if column.startswith("//") else (path, column)
    if colon and not os.path.lexists(text) and os.path.lexists(path):
        return path, column
    return text, ""


def _check_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise FileNotFoundError(
            "pyarrow, which reads Parquet files and datasets, is not installed: "
            "pip install 'odvae_jax[parquet]'."
        ) from error


def _look(path) -> tuple[list[int], Any]:
    """Returns the number of rows in each group of a file, and its schema."""
    with _lock:
        file = _opened(path, _stamp(path))
        if isinstance(file, _Parquet):
            return file.counts, file.schema
        return [file.num_rows], file.schema


def _read(path, group, place, columns, kept) -> dict[str, Any]:
    # One thread reads a group, the others find it in memory.
    with _lock:
        stamp = _stamp(path)
        file = _opened(path, stamp)
        if isinstance(file, _Parquet):
            file = kept(path, stamp, group, columns)
        else:
            file = file.select(list(columns))
    return file.slice(place, 1).to_pylist()[0]


_lock = threading.Lock()


def _stamp(path) -> tuple[int, ...]:
    """Returns what changes when a file is replaced; nothing for a URL."""
    if is_url(path):
        return ()
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _why(error) -> str:
    return one_line(error).rstrip(".")


@functools.lru_cache(maxsize=64)
def _opened(path, stamp):
    """Returns a Parquet file, or the table of an Arrow file, which stays on the disk."""
    import pyarrow

    if is_url(path):
        return _Parquet(open_url(path))
    check_regular(path)
    with open(path, "rb") as file:
        mark = file.read(6)
    if mark[:4] == b"PAR1":
        return _Parquet(path)
    file = pyarrow.memory_map(path)
    if mark == b"ARROW1":
        return pyarrow.ipc.open_file(file).read_all()
    return pyarrow.ipc.open_stream(file).read_all()


class _Parquet:
    """An open Parquet file."""

    def __init__(self, path):
        import pyarrow.parquet

        self.file = pyarrow.parquet.ParquetFile(path)
        self.schema = self.file.schema_arrow
        groups = range(self.file.metadata.num_row_groups)
        self.counts = [self.file.metadata.row_group(group).num_rows for group in groups]


def _group(path, stamp, group, columns):
    return _opened(path, stamp).file.read_row_group(group, columns=list(columns))


# Apart, since groups of videos are large and those of other columns small.
_videos = functools.lru_cache(maxsize=_GROUPS)(_group)
_columns = functools.lru_cache(maxsize=16)(_group)


def _features(schema) -> dict[str, dict]:
    """Returns what Hugging Face's datasets noted of the columns; nothing if they wrote none."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f for name, f in noted.items() if isinstance(f, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _video_column(schema, path: str, column: str) -> str:
    """Returns the name of the column of videos.

    Raises:
      ValueError: if there is no such column, or no name was given and there are several.
    """
    kinds = {field.name: field.type for field in schema}
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    if column:
        if column not in kinds or not (_holds_bytes(kinds[column]) or _is_text(kinds[column])):
            raise ValueError(
                f"{printable(path)} has no column {column!r} of bytes, paths, or structures of "
                f"both; its columns are {listed}."
            )
        return column
    noted = {name: feature.get("_type") for name, feature in _features(schema).items()}
    found = [name for name in kinds if noted.get(name) == "Video"]
    found = found or [
        name
        for name, kind in kinds.items()
        if _holds_bytes(kind) and noted.get(name) not in _OTHER_MEDIA
    ]
    found = found or [name for name, kind in kinds.items() if _is_text(kind) and _names(path, name)]
    if len(found) != 1:
        raise ValueError(
            f"{printable(path)} has {len(found)} columns that may hold videos "
            f"({', '.join(found) or 'none'}); name one after the path, as in PATH:COLUMN. Its "
            f"columns are {listed}."
        )
    return found[0]


def _holds_bytes(kind) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return _holds_bytes(fields.get("bytes")) or ("path" in fields and _is_text(fields["path"]))
    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _names(path, column) -> bool:
    """Returns whether the first value of a column of texts is the name of a video file."""
    try:
        value = _read(path, 0, 0, (column,), _columns)[column]
    except IndexError:  # there is no row
        return False
    return value is not None and Path(value).suffix.lower() in EXTENSIONS


def _other_columns(schema, path, column) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Returns the columns that JSON can hold, and the names of the values of those of labels."""
    kept = [f.name for f in schema if f.name != column and _is_plain(f.type)]
    names = collections.Counter(f.name for f in schema)
    kept = [name for name in kept if names[name] == 1]
    left = [name for name in names if name != column and name not in kept]
    if left:
        warn_once(
            f"columns of {path}",
            f"{printable(path)}: the columns {left} are left out; they hold what JSON cannot.",
        )
    noted = _features(schema)
    labels = {name: noted.get(name, {}).get("names") for name in kept}
    return tuple(kept), {name: found for name, found in labels.items() if isinstance(found, list)}


def _is_plain(kind) -> bool:
    """Returns whether JSON can hold the values of a type."""
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_null)
    return _is_text(kind) or any(is_plain(kind) for is_plain in plain)
