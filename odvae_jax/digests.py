"""Digests of files and arrays, by which flipped and missing bytes are found.

A digest is BLAKE2b (RFC 7693) of 128 bits, as 32 hexadecimal digits. It finds damage; it does not
prove who wrote a file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from odvae_jax.files import printable

GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Numbers of errors that say that a file is not there, not that it could not be read just now."""
RETRY_AFTER = 1.0
"""Seconds after which a file that could not be read is tried once more."""
_AT_ONCE = 2**23  # bytes of a file that are in memory


def of_bytes(*parts: Any) -> str:
    """Returns the digest of bytes, or of other contiguous memory, one part after another."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(memoryview(part).cast("B"))
    return found.hexdigest()


def of_file(path: str | os.PathLike) -> str:
    """Returns the digest of a file's content.

    Raises:
      OSError: if the file cannot be read.
    """
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        while part := file.read(_AT_ONCE):
            found.update(part)
    return found.hexdigest()


def of_folder(folder: Path, *, threads: int = 4) -> dict[str, list]:
    """Returns the size in bytes and the digest of every file below a folder.

    Args:
      folder: the folder.
      threads: the number of files that are read at the same time.

    Returns:
      [size, digest] by the file's path below the folder, with "/" between its parts, sorted.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda n: [(folder / n).stat().st_size, of_file(folder / n)], names))
    return dict(zip(names, found, strict=True))


def differences(folder: Path, recorded: Mapping[str, Any], *, threads: int = 4) -> list[str]:
    """Compares the files below a folder with what `of_folder` returned for it before.

    Args:
      folder: the folder.
      recorded: [size, digest] by the file's path below the folder.
      threads: the number of files that are read at the same time.

    Returns:
      A sentence part for every file that is missing, has another size or another content, such as
      "state/d/1f is missing"; an empty list if all are as they were. Files that were not recorded
      are not looked at.

    Raises:
      OSError: naming the file, if one is there and cannot be read, a second time a second later.
        That is no difference: the file may be whole.
    """

    def compared(item) -> str | None:
        name, record = item
        try:
            return _difference(folder / name, printable(name), *record)
        except OSError:
            time.sleep(RETRY_AFTER)
        try:
            return _difference(folder / name, printable(name), *record)
        except OSError as error:  # reading, unlike opening, names no file
            raise OSError(error.errno, error.strerror, os.fspath(folder / name)) from error

    with ThreadPoolExecutor(threads) as pool:
        return [found for found in pool.map(compared, sorted(recorded.items())) if found]


def _difference(path: Path, shown: str, size: int, digest: str) -> str | None:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{shown} is missing"
        if found.st_size != size:
            return f"{shown} has {found.st_size} bytes, not {size}"
        return None if of_file(path) == digest else f"{shown} has changed bytes"
    except OSError as error:
        if error.errno in GONE:
            return f"{shown} is missing"
        raise
