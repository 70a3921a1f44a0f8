"""Weight files of every kind as NumPy arrays by name, and errors that say what is wrong."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from odvae_jax.checkpoints.pickles import PickleError, read_pickle

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
        self._file = safetensors.safe_open(path, framework="numpy")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_weight_file(path: str | os.PathLike) -> WeightFile:
    """Opens a safetensors file or a pickle of tensors; nothing in a pickle is executed.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is a Git LFS pointer, is truncated, or is not a file of weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a file of weights.")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the weights themselves: "
            "run `git lfs pull` where it was cloned."
        )
    if path.suffix == ".safetensors":
        try:
            return WeightFile(path, _Safetensors(path))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is truncated or not a safetensors file: {error}.") from error
    try:
        pickle = read_pickle(path)
    except PickleError as error:
        raise ValueError(f"{path} is truncated or not a pickle of tensors: {error}.") from error
    if not isinstance(pickle.content, Mapping):
        kind = type(pickle.content).__name__
        raise ValueError(f"{path} is a pickle, but of a {kind}, not of weights by name.")
    return WeightFile(path, pickle.content, tuple(pickle.inert))


def tensors(content: Mapping[str, Any]) -> dict[str, Any] | Mapping[str, Any]:
    """Returns those entries of a mapping whose names are text and whose values are arrays."""
    if isinstance(content, _Safetensors):
        return content
    return {n: v for n, v in content.items() if isinstance(n, str) and isinstance(v, np.ndarray)}


def others(content: Mapping[str, Any], chosen: str | None = None) -> list[str]:
    """Returns the names of the entries of a mapping that `tensors` leaves out.

    Args:
      content: the mapping.
      chosen: the name of one entry that is left out too, because its content is used.
    """
    if isinstance(content, _Safetensors):
        return []
    taken = {chosen, *tensors(content)}
    return [str(name) for name in content if name not in taken]
