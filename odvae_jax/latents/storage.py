"""Folders that datasets are written to: of this machine, or far places that fsspec knows.

A file appears there complete or not at all: here it is renamed at the end, there it is uploaded as
a whole.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from odvae_jax.files import printable


def is_url(text: str | os.PathLike) -> bool:
    """Whether a text is a URL, such as s3://bucket/folder, and no path of this machine."""
    return isinstance(text, str) and re.match(r"[a-z][a-z0-9+.-]+://", text) is not None


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
    def take(self, name: str, path: Path) -> None:
        """Moves a finished file of this machine, made under `scratch`, here under a name."""

    @abc.abstractmethod
    def scratch(self, name: str) -> Path:
        """Returns a path at which a file can be built before `take` moves it to its name."""

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
            path.unlink(missing_ok=True)


class LocalFolder(Folder):
    """A folder of this machine.

    Args:
      path: the path of the folder.

    Attributes:
      path: the path of the folder.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.name = Path(path), printable(path)

    def names(self):
        found = (p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return sorted(p.relative_to(self.path).as_posix() for p in found)

    def read(self, name):
        return (self.path / name).read_bytes()

    def scratch(self, name):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")

    def take(self, name, path):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, self.path / name)

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
      ValueError: if no driver for such URLs is installed.
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
                f"{self._url} needs a driver: {error}. The extra of the package installs those of "
                "s3:// and gs://: pip install 'odvae_jax[remote]'."
            ) from error
        self._root = root.rstrip("/")
        self.in_one_process = type(self._system).__name__ == "MemoryFileSystem"

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
        with contextlib.suppress(FileNotFoundError):
            found = self._system.find(self._root)
            return sorted(str(p).removeprefix(self._root).lstrip("/") for p in found)
        return []

    def read(self, name):
        return self._system.cat_file(f"{self._root}/{name}")

    def scratch(self, name):
        return self._copies_path / f"{secrets.token_hex(8)}.part"

    def take(self, name, path):
        self._system.put_file(str(path), f"{self._root}/{name}")
        path.unlink()

    def remove(self, name):
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(f"{self._root}/{name}")

    def local(self, name):
        path = self._copies_path / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
            with self._system.open(f"{self._root}/{name}", "rb") as far, part.open("wb") as near:
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
    return FarFolder(str(place)) if is_url(place) else LocalFolder(place)
