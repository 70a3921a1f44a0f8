"""Files of one kind below a folder."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from odvae_jax.data.urls import is_url, urls_below
from odvae_jax.files import counted, printable

logger = logging.getLogger(__name__)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclasses.dataclass
class Found:
    """What is below a folder.

    Attributes:
      path: the folder.
      what: what messages call a file of the kind that was looked for, in the singular.
      files: the paths of the regular files of this kind, and of links to them, sorted.
      odd: the number of others that are named like this kind, such as named pipes, and links that
        lead nowhere.
      folders: why a folder cannot be read, by its path.
      links: what is wrong with a link that leads nowhere, by its path; these are among `odd`.
    """

    path: str
    what: str
    files: list[str]
    odd: int
    folders: dict[str, str]
    links: dict[str, str]

    def sentences(self) -> tuple[str, ...]:
        """Returns what is wrong with folders and links, each with its path as one sentence."""
        problems = self.folders | self.links
        return tuple(f"{printable(path)} {text}." for path, text in problems.items())

    def log(self) -> None:
        """Counts what was left out in the log, and names the folders that cannot be read."""
        for path, problem in self.folders.items():
            logger.warning("%s %s", printable(path), problem)
        self._log_count(self.odd)

    def log_others(self) -> None:
        """Counts in the log what was left out and is not in `links`."""
        self._log_count(self.odd - len(self.links))

    def _log_count(self, count):
        if count:
            logger.warning(
                "%d of %d %ss below %s are left out: they are no regular files, nor links to any",
                count,
                len(self.files) + self.odd,
                self.what,
                printable(self.path),
            )


def look_below(path: str | os.PathLike, extensions: frozenset[str], what: str) -> Found:
    """Returns the files with given extensions anywhere below a folder, and what was left out.

    Links to folders are followed. Only regular files and links to them are taken, since reading
    anything else may block for ever.

    Args:
      path: a folder, or one file, which is then taken alone, whatever its extension; a path, or a
        URL of a protocol that fsspec knows.
      extensions: the extensions to look for, in lower case and with their dot.
      what: what the messages call such a file, in the singular.

    Raises:
      FileNotFoundError: if `path` does not exist, or the driver for a URL is not installed.
      OSError: if what a URL names cannot be looked at.
      ValueError: if there is no such file below the folder, or `path` is neither a file nor a
        folder.
    """
    if is_url(path):
        return _look_far(path, extensions, what)
    root, shown = Path(path), printable(path)
    if not os.path.exists(root):
        raise FileNotFoundError(
            f"{shown} does not exist; expected a folder of {what}s, or one {what}."
        )
    if not root.is_dir():
        check_regular(root)
        return Found(str(path), what, [str(root)], 0, {}, {})
    folders: dict[str, str] = {}
    files = dict(_entries_below(root, folders))
    # macOS leaves notes beside files on disks of other systems; their names begin with "._".
    named = [p for p in files if p.suffix.lower() in extensions and not p.name.startswith("._")]
    found = [str(p) for p in sorted(named) if files[p]]
    odd = sorted(p for p in named if not files[p])
    links = {str(p): problem for p in odd if (problem := _lost_link(p))}
    below = Found(str(path), what, found, len(odd), folders, links)
    _check_found(below, len(files), extensions)
    return below


def _look_far(url: str, extensions: frozenset[str], what: str) -> Found:
    """Returns what `look_below` does for the folder, or the file, that a URL names."""
    files = urls_below(url)
    last = url.rstrip("/").rpartition("/")[2]
    if len(files) == 1 and files[0].rpartition("/")[2] == last:  # the file itself
        return Found(url, what, files, 0, {}, {})
    names = {file: file.rpartition("/")[2] for file in files}
    found = [
        file
        for file, name in names.items()
        if os.path.splitext(name)[1].lower() in extensions and not name.startswith("._")
    ]
    below = Found(url, what, found, 0, {}, {})
    _check_found(below, len(files), extensions)
    return below


def _check_found(below: Found, count: int, extensions: frozenset[str]) -> None:
    """Raises ValueError if nothing was found among so many files."""
    if not below.files:
        reasons = "".join(f"\n  {sentence}" for sentence in below.sentences())
        raise ValueError(
            f"no {below.what} below {printable(below.path)}: found {counted(count, 'file')}, "
            f"looked for {sorted(extensions)}.{reasons}"
        )


def _lost_link(path: Path) -> str:
    """Returns what is wrong with a link that leads nowhere; "" for anything else."""
    try:
        if path.is_symlink():
            path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        if error.errno == errno.ENOENT:
            return f"is a link to {printable(os.readlink(path))}, which does not exist"
        return f"is a link that cannot be followed: {error.strerror}"
    return ""


def find_files(
    path: str | os.PathLike,
    extensions: frozenset[str],
    what: str,
    *,
    problems: dict[str, str] | None = None,
) -> list[str]:
    """Returns the files with given extensions anywhere below a folder, sorted.

    Links to folders are followed. Only regular files and links to them are returned, since reading
    anything else may block for ever; what was left out is counted in the log.

    Args:
      path: a folder, or one file, which is then returned alone, whatever its extension.
      extensions: the extensions to look for, in lower case and with their dot.
      what: what the error messages call such a file, in the singular.
      problems: is filled with what is wrong with folders below `path` that cannot be read and with
        links that lead nowhere or back to themselves, by the path; the words follow the path in a
        sentence. None says it in the log.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is no such file below the folder, or `path` is neither a file nor a
        folder.
    """
    found = look_below(path, extensions, what)
    if problems is None:
        found.log()
    else:
        problems.update(found.folders | found.links)
        found.log_others()
    return found.files


def check_regular(path: str | os.PathLike) -> None:
    """Raises an error if a path is no regular file, nor a link to one.

    Raises:
      OSError: if there is nothing, or it cannot be looked at.
      ValueError: if it is something else, such as a named pipe.
    """
    _check_mode(os.stat(path).st_mode, path)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading bytes.

    It does not block at what is no regular file.

    Raises:
      OSError: if there is nothing, or it cannot be opened.
      ValueError: if it is something else, such as a named pipe.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_mode(os.fstat(number).st_mode, path)
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def _check_mode(mode: int, path) -> None:
    if (kind := stat.S_IFMT(mode)) != stat.S_IFREG:
        raise ValueError(
            f"{printable(path)} is {_KINDS.get(kind, 'no file')}; expected a regular file."
        )


def _entries_below(root: Path, problems: dict[str, str]) -> Iterator[tuple[Path, bool]]:
    """Yields whatever is below a folder and is no folder, and whether it is a regular file.

    Each folder is visited once, even if links form a circle. One that cannot be read is noted in
    `problems`; what was found in it before is yielded.
    """
    seen, waiting = set(), [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:  # which mostly know what they are without a look
                for entry in entries:
                    if _is(entry.is_dir):
                        waiting.append(folder / entry.name)
                    else:
                        yield folder / entry.name, _is(entry.is_file)
        except OSError as error:
            problems[str(folder)] = f"cannot be looked into: {error.strerror}"


def _is(question) -> bool:
    try:
        return question()
    except OSError:  # a link in a circle
        return False
