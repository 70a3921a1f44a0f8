"""Weight files of every kind as NumPy arrays by name, and errors that say what is wrong."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from odvae_jax.checkpoints.pickles import PickleError, read_pickle
from odvae_jax.files import one_line, printable

JSON_BYTES = 16 * 2**20
"""The size of the largest JSON file that is read."""
_JSON_LEVELS = 32
_LFS_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights.

    Attributes:
      path: the path of the file.
      content: a mapping. Of a safetensors file it maps names to tensors, which are read when they
        are looked up. Of a pickle it may be nested and hold values of any kind.
      inert: the globals of a pickle that were not looked up, each as "module.name".
    """

    path: Path
    content: Mapping[str, Any]
    inert: tuple[str, ...] = ()


class _Safetensors(Mapping):
    """Tensors of a safetensors file, each read when it is looked up."""

    def __init__(self, path: Path):
        self._path = path
        self._file = safetensors.safe_open(path, framework="numpy")
        self._names = dict.fromkeys(self._file.keys())

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts by name that the file's header holds beside its tensors."""
        return self._file.metadata() or {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        try:
            return self._file.get_tensor(name)
        except Exception as error:  # the library raises many classes for dtypes that NumPy lacks
            dtype = self._file.get_slice(name).get_dtype()
            raise ValueError(
                f"{printable(self._path)}: {shown(name)} is of {dtype}, which cannot be read "
                f"({one_line(error, 100)}); expected float32, float16 or bfloat16."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Shards(Mapping):
    """Tensors of several files; those of safetensors files are read when they are looked up."""

    def __init__(self, homes: Mapping[str, Mapping[str, np.ndarray]]):
        self._homes = homes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._homes[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


_LAZY = (_Safetensors, _Shards)
_SPREAD = (".safetensors", ".bin")
INDEX = ".index.json"
"""How the name of a file ends that lists the files over which weights are spread."""


def shards_of(index: Path) -> dict[str, str]:
    """Returns the file of each tensor by the tensor's name, as an index lists them.

    Raises:
      ValueError: if the index is damaged, or names what is no file of weights beside it.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{printable(index)} has no weight_map; expected files by tensor.")
    for file in listed.values():
        plain = isinstance(file, str) and Path(file).name == file
        if not plain or not file.endswith(_SPREAD):
            raise ValueError(
                f"{printable(index)} names {shown(file)}; expected safetensors files beside it, or "
                "files that end in .bin."
            )
    return listed


def _read_shards(index: Path) -> WeightFile:
    listed = shards_of(index)
    read = {name: read_weight_file(index.parent / name) for name in sorted({*listed.values()})}
    files = {name: tensors(file.content) for name, file in read.items()}
    if absent := [name for name, file in listed.items() if name not in files[file]]:
        raise ValueError(
            f"{printable(index)} lists {[shown(n) for n in absent[:4]]} in files that do not hold "
            "them: copy or download all files anew."
        )
    more = [n for file, content in files.items() for n in content if listed.get(n) != file]
    if more:
        raise ValueError(
            f"{printable(index)} does not list {[shown(n) for n in more[:4]]}, which its files "
            "hold: copy or download all files anew."
        )
    inert = dict.fromkeys(name for file in read.values() for name in file.inert)
    content = _Shards({name: files[file] for name, file in listed.items()})
    return WeightFile(index, content, tuple(inert))


def read_weight_file(path: str | os.PathLike) -> WeightFile:
    """Opens a safetensors file, the index of several, or a pickle of tensors.

    Nothing in a pickle is executed.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is a Git LFS pointer, is truncated, or is not a file of weights.
    """
    path = Path(path)
    name = printable(path)
    if not path.is_file():
        raise FileNotFoundError(f"{name} does not exist; expected a file of weights.")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_LFS_POINTER):
        raise ValueError(
            f"{name} is a Git LFS pointer, not the weights themselves: "
            "run `git lfs pull` where it was cloned."
        )
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        try:
            return WeightFile(path, _Safetensors(path))
        except OSError:  # it cannot be read
            raise
        except Exception as error:  # the library's own, or Python's for what is no UTF-8
            raise ValueError(
                f"{name} is truncated or not a safetensors file: {one_line(error)}."
            ) from error
    try:
        pickle = read_pickle(path)
    except PickleError as error:
        raise ValueError(f"{name} is truncated or not a pickle of tensors: {error}.") from error
    if not isinstance(pickle.content, Mapping):
        kind = type(pickle.content).__name__
        raise ValueError(f"{name} is a pickle, but of a {kind}, not of weights by name.")
    return WeightFile(path, pickle.content, tuple(pickle.inert))


def tensors(content: Mapping[str, Any]) -> dict[str, Any] | Mapping[str, Any]:
    """Returns those entries of a mapping whose names are text and whose values are arrays."""
    if isinstance(content, _LAZY):
        return content
    return {n: v for n, v in content.items() if isinstance(n, str) and isinstance(v, np.ndarray)}


def others(content: Mapping[str, Any], chosen: str | None = None) -> list[str]:
    """Returns the names of the entries of a mapping that `tensors` leaves out.

    Args:
      content: the mapping.
      chosen: the name of one entry that is left out too, because its content is used.
    """
    if isinstance(content, _LAZY):
        return []
    taken = {chosen, *tensors(content)}
    return [shown(name) for name in content if name not in taken]


def shown(value: Any) -> str:
    """Returns what a file holds as short text that can be printed anywhere."""
    return one_line(Exception(value if isinstance(value, str) else repr(value)), 100)


def metadata_of(file: WeightFile) -> Mapping[str, str]:
    """Returns the texts by name that a safetensors file holds beside its tensors."""
    return file.content.metadata if isinstance(file.content, _Safetensors) else {}


def parts_of(path: Path) -> dict[str, memoryview]:
    """Returns the bytes of each tensor of a safetensors file, mapped from the file.

    The file must be one that `read_weight_file` takes.
    """
    with path.open("rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    (length,) = struct.unpack("<Q", memory[:8])
    fields = json.loads(bytes(memory[8 : 8 + length]))
    places = {n: f["data_offsets"] for n, f in fields.items() if n != "__metadata__"}
    start = 8 + length
    return {n: memory[start + a : start + b] for n, (a, b) in places.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      ValueError: if the file holds no JSON object, is larger than 16 MB or nested deeper than 32
        levels, or holds numbers that are not finite.
    """
    name = printable(path)
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{name} has {size:,} bytes; expected a config of at most {JSON_BYTES:,}.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} is not JSON, or is cut short: {one_line(error, 200)}. Copy, download or save "
            "it anew."
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name} holds a {type(fields).__name__}, not a JSON object.")
    if not _is_shallow(fields, _JSON_LEVELS):
        raise ValueError(f"{name} is nested deeper than {_JSON_LEVELS} levels, as no config is.")
    return fields


def _not_json(constant):
    raise ValueError(f"{constant} is no number")


def _is_shallow(value, levels):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)
