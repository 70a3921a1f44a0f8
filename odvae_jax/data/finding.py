"""Files of one kind below a folder."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from odvae_jax.files import printable

logger = logging.getLogger(__name__)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def find_files(path: str | os.PathLike, extensions: frozenset[str], what: str) -> list[str]:
    """Returns the files with given extensions anywhere below a folder, sorted.

    Links to folders are followed. Only regular files and links to them are returned, since reading
    anything else may block for ever; what was left out is counted in the log.

    Args:
      path: a folder, or one file, which is then returned alone, whatever its extension.
      extensions: the extensions to look for, in lower case and with their dot.
      what: what the error messages call such a file, in the singular.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is no such file below the folder, or `path` is neither a file nor a
        folder.
    """
    root, shown = Path(path), printable(path)
    if not os.path.exists(root):
        raise FileNotFoundError(f"{shown} does not exist; expected a folder of {what}s, or one.")
    if not root.is_dir():
        check_regular(root)
        return [str(root)]
    files = dict(_entries_below(root))
    # macOS leaves notes beside files on disks of other systems; their names begin with "._".
    named = [p for p in files if p.suffix.lower() in extensions and not p.name.startswith("._")]
    found = [str(p) for p in sorted(named) if files[p]]
    if left_out := len(named) - len(found):
        logger.warning(
            "%d of %d %ss below %s are left out: they are no regular files, nor links to any",
            left_out,
            len(named),
            what,
            shown,
        )
    if not found:
        raise ValueError(
            f"no {what} below {shown}: found {len(files)} files, looked for {sorted(extensions)}."
        )
    return found


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


def _entries_below(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yields whatever is below a folder and is no folder, and whether it is a regular file.

    Each folder is visited once, even if links form a circle.
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
            logger.warning("%s cannot be looked into: %s", printable(folder), error.strerror)


def _is(question) -> bool:
    try:
        return question()
    except OSError:  # a link in a circle
        return False
