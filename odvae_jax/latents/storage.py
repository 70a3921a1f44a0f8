"""Folders that datasets are written to: of this machine, or far places that fsspec knows.

A file appears there complete or not at all: here it is renamed at the end, there it is uploaded as
a whole.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from odvae_jax.data.urls import is_url
from odvae_jax.files import one_line, printable

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None

_PART = ".part"  # what unfinished files end with
_DAY = 86400.0  # seconds


@functools.cache
def _here() -> str:
    """What tells this machine from others, in names of files."""
    return hashlib.blake2b(os.fsencode(socket.gethostname()), digest_size=4).hexdigest()


def _lock(file: BinaryIO) -> None:
    """Locks an open file as long as it is open.

    Raises:
      OSError: if another process has locked it, or files cannot be locked here.
    """
    if fcntl is None:
        raise OSError("files cannot be locked on this platform.")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Folder(abc.ABC):
    """A folder in which files appear complete or not at all. Names may hold "/".

    Attributes:
      name: what messages call the folder.
      in_one_process: whether the folder's files are those of this process alone.
    """

    name: str
    in_one_process = False

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Returns the names of all finished files anywhere below the folder, sorted.

        If there is no such folder, there are none.
        """

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Returns the content of a file.

        Raises:
          FileNotFoundError: if there is no such file.
        """

    @abc.abstractmethod
    def scratch(self, name: str) -> Path:
        """Makes an empty file in which another one can be built, and returns its path.

        `take` moves it to its name, or `drop` removes it.

        Raises:
          OSError: if it cannot be made.
        """

    @abc.abstractmethod
    def take(self, name: str, path: Path) -> None:
        """Moves a finished file that was built in one of `scratch` here under a name.

        Raises:
          OSError: if it cannot be moved; then nothing of it is here.
        """

    def drop(self, path: Path) -> None:
        """Removes a file that `scratch` made, if it is there."""
        path.unlink(missing_ok=True)

    @abc.abstractmethod
    def tidy(self) -> None:
        """Removes unfinished files of writers that were killed, where they can be told."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

    @abc.abstractmethod
    def local(self, name: str) -> Path:
        """Returns the path of a file on this machine; of a far file, that of a copy.

        Raises:
          FileNotFoundError: if there is no such file.
        """

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Returns the number of bytes of a file.

        Raises:
          FileNotFoundError: if there is no such file.
        """

    def write(self, name: str, content: bytes) -> None:
        """Writes a file; one that has the name is replaced."""
        path = self.scratch(name)
        try:
            path.write_bytes(content)
            self.take(name, path)
        finally:
            self.drop(path)


class LocalFolder(Folder):
    """A folder of this machine.

    Unfinished files are hidden, and locked by the process that writes them, so that those of
    processes that were killed can be told from others. Those of other machines are taken for
    unfinished for good after a day, since a lock need not be seen there. Where files cannot be
    locked, they stay.

    Args:
      path: the path of the folder.

    Attributes:
      path: the path of the folder.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.name = Path(path), printable(path)
        self._locks: dict[Path, BinaryIO] = {}

    def __getstate__(self):
        return {**self.__dict__, "_locks": {}}

    def names(self):
        found = (p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return sorted(p.relative_to(self.path).as_posix() for p in found)

    def read(self, name):
        return (self.path / name).read_bytes()

    def scratch(self, name):
        final = self.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = final.with_name(f".{final.name}.{_here()}.{secrets.token_hex(4)}{_PART}")
            file = path.open("xb")
            with contextlib.suppress(OSError):
                _lock(file)
            if path.exists():  # else it was tidied away before it was locked
                self._locks[path] = file
                return path
            file.close()

    def take(self, name, path):
        os.fsync(self._locks[path].fileno())
        os.replace(path, self.path / name)
        self._locks.pop(path).close()

    def drop(self, path):
        super().drop(path)
        if (file := self._locks.pop(path, None)) is not None:
            file.close()

    def tidy(self):
        for path in self.path.rglob(f".*{_PART}"):
            with contextlib.suppress(OSError), path.open("r+b") as file:
                _lock(file)
                age = time.time() - os.fstat(file.fileno()).st_mtime
                if f".{_here()}." in path.name or age > _DAY:
                    path.unlink()

    def remove(self, name):
        (self.path / name).unlink(missing_ok=True)

    def local(self, name):
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"{printable(path)} does not exist.")
        return path

    def size(self, name):
        return (self.path / name).stat().st_size


class FarFolder(Folder):
    """A folder that fsspec knows by its URL.

    Args:
      url: the URL, such as s3://bucket/folder.

    Raises:
      ValueError: if no driver for such URLs is installed, or none is known.
    """

    def __init__(self, url: str):
        self.name, self._url = url.rstrip("/"), url
        self._given: Path | None = None
        self._open()

    def _open(self):
        import fsspec

        try:
            self._system, root = fsspec.core.url_to_fs(self._url)
        except ImportError as error:
            raise ValueError(
                f"{printable(self._url)} needs a driver: {one_line(error)}. Extras of the package "
                "install those of s3:// and gs://: pip install 'odvae_jax[s3]' or 'odvae_jax[gs]'."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{printable(self._url)} cannot be written: {one_line(error)}; expected a path, or "
                "a URL of a protocol that fsspec knows, such as s3:// or gs://."
            ) from error
        self._root = root.rstrip("/")
        self.in_one_process = type(self._system).__name__ == "MemoryFileSystem"

    @contextlib.contextmanager
    def _saying(self, name, done):
        """Turns whatever a driver raises into an OSError that names the file."""
        try:
            yield
        except Exception as error:
            place = printable(f"{self.name}/{name}".rstrip("/"))
            if isinstance(error, FileNotFoundError) and done != "written":
                raise FileNotFoundError(f"{place} does not exist.") from error
            raise OSError(f"{place} cannot be {done}: {one_line(error)}") from error

    def __getstate__(self):
        return {"name": self.name, "_url": self._url, "_given": self._copies_path}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._open()

    @functools.cached_property
    def _copies(self) -> tempfile.TemporaryDirectory:
        return tempfile.TemporaryDirectory(prefix="odvae-", ignore_cleanup_errors=True)

    @property
    def _copies_path(self) -> Path:
        """Where copies of files are; processes that the folder was sent to share them."""
        if self._given is not None and self._given.is_dir():
            return self._given
        return Path(self._copies.name)

    def names(self):
        self._system.invalidate_cache()
        with contextlib.suppress(FileNotFoundError), self._saying("", "listed"):
            found = self._system.find(self._root)
            return sorted(str(p).removeprefix(self._root).lstrip("/") for p in found)
        return []

    def read(self, name):
        with self._saying(name, "read"):
            return self._system.cat_file(f"{self._root}/{name}")

    def scratch(self, name):
        path = self._copies_path / f"{secrets.token_hex(8)}{_PART}"
        path.touch()
        return path

    def take(self, name, path):
        with self._saying(name, "written"):
            self._system.put_file(str(path), f"{self._root}/{name}")
        path.unlink()

    def tidy(self):
        return  # what is unfinished lies in the temporary folders of those that write it

    def remove(self, name):
        with contextlib.suppress(FileNotFoundError), self._saying(name, "removed"):
            self._system.rm_file(f"{self._root}/{name}")

    def local(self, name):
        path = self._copies_path / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
            url = f"{self._root}/{name}"
            with (
                self._saying(name, "read"),
                self._system.open(url, "rb") as far,
                part.open("wb") as near,
            ):
                shutil.copyfileobj(far, near, 2**22)
            os.replace(part, path)
        return path

    def size(self, name):
        return self._system.size(f"{self._root}/{name}")


def open_folder(place: str | os.PathLike) -> Folder:
    """Returns the folder that a path or a URL names; it need not exist yet.

    Raises:
      ValueError: if no driver for the URL is installed.
    """
    return FarFolder(place) if is_url(place) else LocalFolder(place)
