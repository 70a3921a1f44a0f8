"""Folders of a model, `config.json` and a safetensors file, which appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from odvae_jax.checkpoints import integrity
from odvae_jax.files import printable

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None

CONFIG_FILE = "config.json"
SCALE_FILE = "odvae_latents_scale.json"
"""The file with the scale of the latents of weights whose own layout cannot hold it."""
_WEIGHTS = re.compile(r"[\w-]+\.(safetensors|ckpt|pt|yaml)")
_LONGEST = 240  # bytes of a name that leaves room for a suffix


def write_folder(
    path: str | os.PathLike,
    config: dict[str, Any],
    weights_file: str,
    arrays: dict[str, np.ndarray],
    *,
    overwrite: bool,
    metadata: dict[str, str],
    beside: Mapping[str, str | None] = MappingProxyType({}),
    others_stay: bool = False,
) -> None:
    """Writes `config.json` and a safetensors file with digests into a folder.

    A folder that did not exist appears complete or not at all. In one that exists, the two files
    are replaced one after the other; if the process is killed in between, loading finds it by the
    digest of the config. Other processes can write the same folder at the same time: the files of
    the one that ends last stay. What a killed process left beside the folder is removed.

    Args:
      path: the folder.
      config: the content of `config.json`.
      weights_file: the name of the safetensors file.
      arrays: the arrays of the safetensors file by name.
      overwrite: whether files of these names are replaced.
      metadata: the metadata of the safetensors file.
      beside: texts of further files of the model by their names; None for one that a model which
        was there may have, and this one has not.
      others_stay: whether the folder may hold files of other names, which stay as they are.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set, or if it
        holds files of other names and `others_stay` is not set.
      OSError: if the folder cannot be written.
    """

    def write_weights(file: Path) -> None:
        digests = {integrity.KEY: integrity.recorded(config, arrays)}
        save_file(arrays, file, metadata={**metadata, **digests})
        _sort_metadata(file)
        # safetensors lets nobody else read what it writes.
        file.chmod((file.parent / CONFIG_FILE).stat().st_mode)

    files = {CONFIG_FILE: json.dumps(config, indent=2) + "\n", weights_file: write_weights}
    write_files(path, files, overwrite=overwrite, beside=beside, others_stay=others_stay)


def write_files(
    path: str | os.PathLike,
    files: Mapping[str, str | Callable[[Path], None]],
    *,
    overwrite: bool,
    beside: Mapping[str, str | None] = MappingProxyType({}),
    others_stay: bool = False,
) -> None:
    """Writes the files of a model into a folder, as `write_folder` does.

    Args:
      path: the folder.
      files: the content of each file by its name: a text, or a function that writes the file to a
        path.
      overwrite: whether files of these names are replaced.
      beside: texts of further files of the model by their names; None for one that a model which
        was there may have, and this one has not.
      others_stay: whether the folder may hold files of other names, which stay as they are.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set, or if it
        holds files of other names and `others_stay` is not set.
      OSError: if the folder cannot be written.
    """
    ours = None if others_stay else (*files, *beside)
    files = {**files, **{name: text for name, text in beside.items() if text is not None}}
    path = check_destination(path, ours, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    with _building(path) as folder:
        folder.chmod(0o755)  # mkdtemp lets nobody else in
        for name, content in files.items():
            if isinstance(content, str):
                (folder / name).write_text(content)
            else:
                content(folder / name)
        for name in files:
            _sync(folder / name)
        try:
            folder.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # It exists, perhaps since another process has written it in the meantime.
            check_destination(path, ours, overwrite=overwrite)
            with _locked(path):
                for name in beside:  # what is said of other weights goes first
                    (path / name).unlink(missing_ok=True)
                for name in files:
                    os.replace(folder / name, path / name)
        _sync(path.parent)


def check_destination(
    path: str | os.PathLike, ours: tuple[str, ...] | None, *, overwrite: bool
) -> Path:
    """Returns the real path of a folder that may be written, with links followed.

    Args:
      path: the folder.
      ours: the names of files that may be replaced; files of other names never are. None lets files
        of any other name be there.
      overwrite: whether they may be replaced.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set, or if it
        holds files of other names.
    """
    try:
        path = Path(path).resolve()
    except RuntimeError as error:  # of Python before 3.13, for links in a circle
        raise OSError(f"{printable(path)} is a link to itself; choose another path.") from error
    if not path.exists():
        return path
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name]
    if held and not overwrite:
        raise FileExistsError(
            f"{printable(path)} exists already; choose another path, or ask to overwrite it."
        )
    if ours is None:
        return path
    if strange := [printable(name) for name in held if name not in ours]:
        raise FileExistsError(
            f"{printable(path)} holds other files, which are not overwritten ({strange[:4]}); "
            "choose another path."
        )
    return path


def _prefix(path: Path) -> str:
    """How the names of the folders begin in which a folder is built."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return f".{name}."


@contextlib.contextmanager
def _building(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, locked while this process lives, and removed if it is left."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        lock = _lock(folder, wait=False)
        if lock != _TAKEN:
            break  # else another process took it for one that was left
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _remove_left(path: Path) -> None:
    """Removes the folders in which killed processes were building the folder `path`."""
    for folder in path.parent.glob(f"{_escaped(_prefix(path))}????????"):
        if not _is_ours(folder):
            continue
        lock = _lock(folder, wait=False)
        if isinstance(lock, int):  # nobody holds it, so whoever made it has ended
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what a model's folder holds while it is built."""
    try:
        names = [p.name for p in folder.iterdir()] if not folder.is_symlink() else ["a link"]
    except OSError:
        return False
    return all(
        name in (CONFIG_FILE, SCALE_FILE) or _WEIGHTS.fullmatch(name.lstrip(".")) for name in names
    )


_TAKEN = "taken"


def _lock(folder: Path, *, wait: bool) -> int | str | None:
    """Locks a folder, and returns what `_unlock` takes.

    It returns `_TAKEN` if another process has the lock or the folder is gone, and None where
    folders cannot be locked.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        return _TAKEN if isinstance(error, FileNotFoundError) else None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        os.stat(folder)
        return descriptor
    except OSError as error:
        os.close(descriptor)
        taken = error.errno in (errno.EAGAIN, errno.EACCES, errno.ENOENT)
        return _TAKEN if taken else None


def _unlock(lock: int | str | None) -> None:
    if isinstance(lock, int):
        os.close(lock)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits until no other process replaces files in a folder."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        _unlock(lock)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata of a safetensors file, which the library writes in a random order.

    So the same model always gives the same bytes.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        before = file.read(length)
        fields = json.loads(before)
        fields["__metadata__"] = dict(sorted(fields["__metadata__"].items()))
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _sync(path: Path) -> None:
    """Waits until a file or a folder has reached the disk, where that can be asked for."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
