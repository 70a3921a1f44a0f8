"""Files that a URL names, such as `s3://BUCKET/VIDEO.mp4`, through the library fsspec.

Parts of a file are fetched when they are read, so a clip of a long video costs little.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
from typing import Any

from odvae_jax.files import one_line, printable

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BLOCK = 2**20  # The number of bytes that are fetched at a time.
_BLOCKS = 32  # The number of these that are kept for each open file.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # which extra brings the driver


def is_url(path: str | os.PathLike) -> bool:
    """Returns whether a text is a URL; anything else is a path."""
    return isinstance(path, str) and _URL.match(path) is not None


def is_here_only(path: str) -> bool:
    """Returns whether what a path or URL names can be read in this process alone."""
    return path.startswith("memory://")


def open_url(url: str) -> UrlFile:
    """Opens the file that a URL names.

    Raises:
      OSError: if it cannot be opened; FileNotFoundError if there is none, or the driver is not
        installed.
      ValueError: if the protocol is not known.
    """
    system, path = _found(url)
    return UrlFile(url, _said(url, _open, system, path))


def read_url(url: str) -> bytes:
    """Returns all bytes of the file that a URL names.

    Errors are those of `open_url`.
    """
    system, path = _found(url)
    return _said(url, system.cat_file, path)


def size_of_url(url: str) -> int:
    """Returns the number of bytes in the file that a URL names, or 0 if it cannot be found out."""
    try:
        system, path = _found(url)
        return int(system.size(path) or 0)
    except Exception:
        return 0


def urls_below(url: str) -> list[str]:
    """Returns the URLs of all files anywhere below a folder, or the one file that a URL names.

    Raises:
      OSError: if it cannot be looked at; FileNotFoundError if nothing is there, or the driver is
        not installed.
      ValueError: if the protocol is not known.
    """
    system, path = _found(url)
    try:
        found = _said(url, functools.partial(system.find, detail=True), path)
        is_there = found or _said(url, system.exists, path)
    except FileNotFoundError:
        is_there = False
    if not is_there:
        raise FileNotFoundError(f"{printable(url)} does not exist; expected a folder, or a file.")
    files = [name for name, info in found.items() if info.get("type", "file") == "file"]
    return sorted(system.unstrip_protocol(name).replace(":///", "://", 1) for name in files)


class UrlFile(io.RawIOBase):
    """A file that a URL names, open for reading; whatever goes wrong raises OSError.

    Args:
      url: the URL.
      file: the open file.

    Attributes:
      name: the URL.
    """

    def __init__(self, url: str, file: Any):
        self.name, self._file = url, file

    def readable(self) -> bool:
        """Returns that it can be read."""
        return True

    def seekable(self) -> bool:
        """Returns whether `seek` works."""
        return self._file.seekable()

    def read(self, count: int = -1) -> bytes:
        """Returns the next bytes, at most `count` of them if it is not negative."""
        return _said(self.name, self._file.read, count)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place in the file, which is counted in bytes as for other files."""
        return _said(self.name, self._file.seek, place, whence)

    def tell(self) -> int:
        """Returns the place in the file, in bytes."""
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def _open(system, path):
    if "memory" in _protocols(system):  # where all who open a file share one place in it
        return io.BytesIO(system.cat_file(path))
    # Blocks, since a video's index and its frames lie apart and are read in turn.
    kept = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}
    return system.open(path, "rb", block_size=_BLOCK, **kept)


def _protocols(system) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else system.protocol


def _found(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and what that calls the file."""
    protocol = url.partition("://")[0]
    try:
        if "::" in url:  # one file system inside another
            return _system(url)
        # Drivers log in when they are made, and fsspec makes one for each thread.
        system, _ = _system("/".join(url.split("/", 3)[:3]))
        return system, system._strip_protocol(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        how = f"pip install 'odvae_jax[{extra}]'" if extra else one_line(error)
        raise FileNotFoundError(
            f"{printable(url)} cannot be read, since the driver for {protocol}:// is not "
            f"installed: {how}."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{printable(url)} cannot be read: {one_line(error)}; expected a path, or a URL of a "
            "protocol that fsspec knows, such as s3:// or gs://."
        ) from error


@functools.lru_cache(maxsize=64)
def _system(url: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(url)


def _said(url, function, *arguments):
    """Returns what a function returns; whatever it raises becomes OSError."""
    try:
        return function(*arguments)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
    except Exception as error:
        raise OSError(errno.EIO, one_line(error), url) from error
