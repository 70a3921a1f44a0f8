"""Writing files that `torch.load` reads, without PyTorch: what Lightning's checkpoints are."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}
_ROOT = "archive"
_ALIGNED = 64  # bytes, as PyTorch aligns tensors, so that it can map them


def write_torch_file(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes a dictionary as `torch.save` does, in its zip format.

    Args:
      path: the file.
      content: dictionaries, lists, tuples, texts, numbers, None, NumPy arrays of float32, float16,
        bfloat16 or int64, which become tensors, and `argparse.Namespace`.

    Raises:
      OSError: if the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    program = pickle.PROTO + b"\x02" + _code(content, arrays) + pickle.STOP
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", program)
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(arrays):
            _add(archive, f"data/{key}", np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: Any) -> None:
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")  # of 1980, so that equal models make equal files
    start = archive.fp.tell() + 30 + len(entry.filename)
    missing = -(start + 4) % _ALIGNED
    entry.extra = struct.pack("<HH", 0x4246, missing) + b"Z" * missing
    with archive.open(entry, "w", force_zip64=False) as file:
        file.write(memoryview(data))


def _code(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The opcodes that put a value on the stack; its arrays are appended to `arrays`."""
    if value is None or isinstance(value, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(data)) + data
    if isinstance(value, dict):
        items = b"".join(_code(v, arrays) for pair in value.items() for v in pair)
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + _codes(value, arrays) + pickle.APPENDS
    if isinstance(value, tuple):
        return pickle.MARK + _codes(value, arrays) + pickle.TUPLE
    if isinstance(value, argparse.Namespace):
        new = _name("argparse", "Namespace") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
        return new + _code(vars(value), arrays) + pickle.BUILD
    return _tensor(value, arrays)


def _codes(values, arrays: list[np.ndarray]) -> bytes:
    return b"".join(_code(value, arrays) for value in values)


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    key = str(len(arrays))
    arrays.append(array)
    kind = _name("torch", _STORAGES[array.dtype])
    identity = _codes(("storage",), arrays) + kind + _codes((key, "cpu", array.size), arrays)
    storage = pickle.MARK + identity + pickle.TUPLE + pickle.BINPERSID
    strides = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = storage + _codes((0, array.shape, strides, False), arrays) + hooks
    rebuild = _name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
