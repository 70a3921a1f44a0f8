"""Video files: `folder:PATH`, the videos anywhere below a folder; or the entries of a manifest.

A manifest is a file .csv or .jsonl with a column path, and optionally start and end in seconds.
Its other columns are captions, labels or whatever else is known of a video. The folder, the
manifest and the paths in it may be URLs.
"""

from __future__ import annotations

import collections
import csv
import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from odvae_jax.data.finding import look_below, open_regular
from odvae_jax.data.sources.base import as_json, cut
from odvae_jax.data.sources.containers import Container, Containers
from odvae_jax.data.urls import is_here_only, is_url, read_url
from odvae_jax.data.video import EXTENSIONS, VideoError, VideoReader, to_rgb
from odvae_jax.files import one_line, printable

Entry = tuple[str, float | None, float | None]
"""The path of a video file, and the start and end of what is used of it, in seconds from the first
frame; None for the start or end of the file."""
_PLACE = ("path", "start", "end", None)  # None holds what csv finds beyond the last column


class Files(Containers):
    """Video files, or parts of video files.

    Args:
      entries: each video's path, and the start and end of what is used of it, in seconds from the
        first frame; None for the start or end of the file.
      columns: what else is known of each video, by the column's name; an empty list for nothing.
      in_memory: whether the decoded videos are kept in memory; for a few short ones.
      wrong: why an entry cannot be used, by its number.
    """

    def __init__(
        self,
        entries: list[Entry],
        *,
        columns: Sequence[Mapping[str, Any]] = (),
        in_memory: bool = False,
        wrong: Mapping[int, str] = MappingProxyType({}),
    ):
        self._entries, self._columns, self._wrong = entries, columns, dict(wrong)
        self.here_only = any(is_here_only(path) for path, _, _ in entries)
        self._cache: dict | None = {} if in_memory else None
        self._locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)

    def __len__(self):
        return len(self._entries)

    def __getstate__(self):
        cache = None if self._cache is None else {}
        return {n: v for n, v in self.__dict__.items() if n != "_locks"} | {"_cache": cache}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._locks = collections.defaultdict(threading.Lock)

    def name(self, index):
        path, start, end = self._entries[index]
        part = "" if start is None and end is None else f" [{start or 0:g} to {end or 'end'} s]"
        return printable(path) + part

    def container(self, index):
        if index in self._wrong:
            raise VideoError(self._wrong[index])
        return Container(*self._entries[index])

    def columns(self, index):
        self.container(index)
        return dict(self._columns[index]) if self._columns else {}

    def bytes_behind(self, index):
        return self._size(index, self._entries[index][0])

    def frames(self, index, sampling, stride, where):
        if self._cache is None:
            return super().frames(index, sampling, stride, where)
        container = self.container(index)
        how = sampling.short_side, sampling.cover
        video, frames = self._decoded(container.content, *how)
        extent = self._extent(index, video, container)
        return cut(lambda _: frames, extent, sampling, stride, where)

    def _decoded(self, path, *how):
        with self._locks[path]:
            if (path, how) not in self._cache:
                with VideoReader(path, threads=0, timeout=self.timeout) as video:
                    frames = [
                        (time, to_rgb([frame], *how)[0])
                        for time, frame in video.frames_in_order(None)
                    ]
                self._cache[path, how] = video, frames
        return self._cache[path, how]


def open_files(text: str, *, in_memory: bool = False) -> Files:
    """Opens the videos anywhere below a folder, the entries of a manifest, or one video.

    Args:
      text: the path or URL of the folder, the manifest (.csv or .jsonl) or the video.
      in_memory: whether the decoded videos are kept in memory; for a few short ones.

    Raises:
      FileNotFoundError: if there is no such path, or the driver for a URL is not installed.
      OSError: if what a URL names cannot be read.
      ValueError: if there is no video below the folder, or the manifest is not one, or no row of it
        is good.
    """
    path = Path(text)
    is_file = is_url(text) or (path.exists() and not path.is_dir())
    if path.suffix.lower() in (".csv", ".jsonl") and is_file:
        entries, columns, wrong = _manifest(text)
        return Files(entries, columns=columns, in_memory=in_memory, wrong=wrong)
    found = look_below(text, EXTENSIONS, "video")
    found.log()
    files = Files([(p, None, None) for p in found.files], in_memory=in_memory)
    files.problems = found.sentences()
    return files


def _manifest(path: str) -> tuple[list[Entry], list[dict], dict[int, str]]:
    """Reads the entries of a manifest; paths in it are relative to its folder.

    Returns:
      The entries, the other columns of each, and what is wrong with some entries, by their number.
      The path of such an entry is that of the manifest with the number of the row.
    """
    shown = printable(path)
    try:
        binary = io.BytesIO(read_url(path)) if is_url(path) else open_regular(path)
        with io.TextIOWrapper(binary, newline="", encoding="utf-8-sig") as file:
            if path.lower().endswith(".jsonl"):
                rows = [_parsed(line) for line in file if line.strip()]
            else:
                rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{shown} is not a manifest: {one_line(error)}.") from error
    if rows and all(isinstance(row, str) for row in rows):
        raise ValueError(f"{shown} is not a manifest: row 1 is no JSON: {rows[0]}.")
    columns = next((list(row) for row in rows if isinstance(row, dict)), [])
    if "path" not in columns:
        raise ValueError(
            f"{shown}: expected a column path, and optionally start and end in seconds; found "
            f"{columns or 'no rows'}. Write a first line such as `path,start,end`."
        )
    entries, others, wrong = [], [], {}
    for number, row in enumerate(rows, 1):
        try:
            start, end = (_seconds(row.get(name)) for name in ("start", "end"))
            if not row["path"] or (end is not None and end <= (start or 0)):
                raise ValueError
            others.append({n: as_json(v) for n, v in row.items() if n not in _PLACE})
            entries.append((_beside(path, row["path"]), start, end))
        except (KeyError, TypeError, ValueError, AttributeError):
            wrong[len(entries)] = (
                f"{shown}: row {number} is {one_line(Exception(row), 200)}; expected a path, and "
                "start and end as numbers of seconds with 0 <= start < end, or empty."
            )
            del others[len(entries) :]
            others.append({})
            entries.append((f"{path}, row {number}", None, None))
    if len(wrong) == len(entries):
        raise ValueError("\n  ".join(list(wrong.values())[:20]))
    return entries, others, wrong


def _beside(manifest: str, path: str) -> str:
    """Returns a path or URL of a manifest; a path is relative to the manifest's folder."""
    if is_url(path):
        return path
    if is_url(manifest):
        return path if os.path.isabs(path) else f"{manifest.rpartition('/')[0]}/{path}"
    return str(Path(manifest).parent / path)


def _parsed(line: str):
    """Returns a row of a manifest in JSON; as text if it is no JSON."""
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return line.strip()[:200]


def _seconds(value) -> float | None:
    if value in (None, ""):
        return None
    seconds = float(value)
    if not 0 <= seconds < np.inf:
        raise ValueError
    return seconds
