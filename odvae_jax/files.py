"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None


class WholeFile:
    """A file that appears under its name complete or not at all.

    No other process can write it at the same time.

    Args:
      path: the path of the file. Its folder is made if there is none.

    Attributes:
      file: an open file to write to.

    Raises:
      OSError: if the file cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._part = path, path.with_name(f".{path.name}.part")
        self.file: BinaryIO = os.fdopen(os.open(self._part, os.O_RDWR | os.O_CREAT, 0o666), "wb")
        try:
            if fcntl is not None:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                self.file.close()
                raise OSError(f"{path} is being written by another process.") from error
            # Some network disks cannot lock files; there the file is written without a lock.
        self.file.truncate()

    def finish(self) -> None:
        """Gives the file its name, after all of it has reached the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self._part, self._path)
        self.file.close()

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""
        if self.file.closed:
            return
        self._part.unlink(missing_ok=True)
        self.file.close()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears complete or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)
