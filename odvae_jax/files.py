"""Files that appear complete or not at all, and file names that can be printed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None

NAME_BYTES = 255
"""The most bytes that the usual file systems take for the name of a file."""
_MOMENT = 0.1  # seconds


class BusyError(OSError):
    """A file cannot be written now, since another process is writing it."""


class WholeFile:
    """A file that appears under its name complete or not at all.

    No other process can write it at the same time. On disks that cannot lock files others can;
    there the file of the one that ends last stays.

    Args:
      path: the path of the file. Its folder is made if there is none.

    Attributes:
      file: an open file to write to.

    Raises:
      BusyError: if another process is writing the file.
      OSError: if the file cannot be written.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._part = path, part_of(path)
        while True:
            self.file: BinaryIO = _opened(self._part)
            try:
                try:
                    locked = self._lock()
                except BusyError:  # whoever removes what killed runs left locks it for a moment
                    time.sleep(_MOMENT)
                    locked = self._lock()
            except BaseException:
                self.file.close()
                raise
            if not locked:
                # Some network disks cannot lock files: there each writer has a file of its own.
                self._part.unlink(missing_ok=True)
                self.file.close()
                self._part = part_of(path.with_name(f"{path.name}.{secrets.token_hex(8)}"))
                self.file = _opened(self._part)
                break
            if self._is_ours():
                break
            # Between opening and locking, the writer before gave this file its name.
            self.file.close()
        self.file.truncate()

    @property
    def part(self) -> Path:
        """The path of the file while it is written."""
        return self._part

    def finish(self) -> None:
        """Gives the file its name, after all of it has reached the disk.

        Raises:
          OSError: if the file cannot be written, or was removed or replaced meanwhile.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        if not self._is_ours():
            raise OSError(f"{printable(self._part)} was removed while it was written.")
        os.replace(self._part, self._path)
        self.file.close()

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""
        if self.file.closed:
            return
        if self._is_ours():
            self._part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what cannot be written any more is not wanted
            self.file.close()

    def _lock(self) -> bool:
        """Locks the open file; says whether files can be locked here."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BusyError(
                    f"{printable(self._path)} is being written by another process."
                ) from error
            return False
        return True

    def _is_ours(self) -> bool:
        """Whether the open file is still the one that has the name of the part file."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self._part))
        except FileNotFoundError:
            return False


def _opened(part: Path) -> BinaryIO:
    """Opens or makes a part file; a link in its place is removed and never followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.fdopen(os.open(part, flags, 0o666), "wb")
    except OSError as error:
        if error.errno != errno.ELOOP or not part.is_symlink():
            raise
    part.unlink(missing_ok=True)
    return os.fdopen(os.open(part, flags, 0o666), "wb")


def part_of(path: Path) -> Path:
    """Returns the path that a file has while it is written: hidden, in the same folder."""
    name = f".{path.name}.part"
    if len(os.fsencode(name)) > NAME_BYTES:
        digest = hashlib.blake2b(os.fsencode(path.name), digest_size=16).hexdigest()
        name = f".{digest}.part"
    return path.with_name(name)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears complete or not at all, after it has reached the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def counted(number: int, one: str, more: str = "") -> str:
    """Returns a number and what it counts, for a message: "1 file", "2 files".

    Args:
      number: the number.
      one: the words behind it if it is 1, such as "file" or "video was skipped".
      more: those behind any other number; by default `one` with an s.
    """
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def printable(path: str | os.PathLike) -> str:
    r"""Returns a path as text that every terminal and file can take.

    Bytes of a name that are not UTF-8 become `\xNN`, and so do line breaks and other control
    characters.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def one_line(error: BaseException, length: int = 500) -> str:
    """Returns what an error says in one printable line, with its type if it says nothing."""
    text = " ".join(str(error).split())
    text = text.encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    if not text:
        return type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"


def line_about(path: str | os.PathLike, error: BaseException) -> str:
    """Returns what is wrong with a file in one printable line that names the file.

    Args:
      path: the path of the file.
      error: what was raised. If its message names the file, the name does not stand there twice.
    """
    name, text = printable(path), str(error) or type(error).__name__
    line = one_line(Exception(text.replace(os.fspath(path), name)), length=500 + len(name))
    return line if name in line else f"{name}: {line}"
