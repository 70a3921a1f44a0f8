"""Reading PyTorch and NumPy pickles without PyTorch, and without executing what they say.

A pickle is a program that may call any function that can be imported. This reader looks up only
what tensors are made of. Every other global becomes an inert object, which accepts whatever the
pickle does to it, executes nothing, and is reported. Tensors of PyTorch's zip format are mapped
from the file, not copied. `opcodes.py` runs the program, and bounds its time and its memory.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from odvae_jax.checkpoints.opcodes import (
    Function,
    Inert,
    Machine,
    PickleError,
    Sealed,
    plain_items,
)
from odvae_jax.files import one_line

__all__ = ["Inert", "Pickle", "PickleError", "read_pickle"]

_STORAGE_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_TORCH_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_AXES = 32  # more than any tensor has
_KEY = 200  # characters of the name of a storage
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass
class Pickle:
    """The content of a pickle.

    Attributes:
      content: the object that was pickled, with NumPy arrays in place of tensors.
      inert: what was made inert instead of being looked up, each as "module.name".
    """

    content: Any
    inert: list[str]


def read_pickle(path: str | os.PathLike) -> Pickle:
    """Reads a file that `torch.save` wrote, in either format, or a plain pickle of NumPy arrays.

    Tensors become NumPy arrays. Those of bfloat16 have the dtype of ml_dtypes. Time and memory are
    proportional to the size of the file, whatever it holds.

    Raises:
      PickleError: if the file is none of these, or is damaged.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise PickleError("the file is empty")
        try:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _read_zip(file, memory) if zipfile.is_zipfile(file) else _read_stream(memory)
        except PickleError:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise PickleError(f"{type(error).__name__}: {one_line(error)}") from error


class _Name(Sealed):
    """A class that is known and of which nothing is needed."""


class _Namespace(Sealed):
    """The fields of an `argparse.Namespace`, which becomes a dictionary when they come."""

    def __init__(self, *_):
        pass

    def build(self, machine, state):
        if not isinstance(state, dict):
            raise PickleError("a Namespace whose fields are no dictionary")
        return state


class _StorageType(Sealed):
    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class _Dtype(_StorageType):
    pass


class _Storage(Sealed):
    """Memory that tensors are views of; in the legacy format it is filled after them."""

    def __init__(self, values: np.ndarray):
        self.values = values


class _NumpyDtype(Sealed):
    """The dtype of plain numbers; NumPy's own dtype could be given a state that reads anywhere."""

    def __init__(self, _, code, *__):
        if not (isinstance(code, str) and re.fullmatch(r"[<>|=]?[fiu][1248]|[|]?b1", code)):
            raise PickleError(f"an array of dtype {code!r:.40}, which is not a plain number's")
        self.dtype = np.dtype(code)

    def build(self, machine, state):
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise PickleError("an array of a structured dtype")
        self.dtype = self.dtype.newbyteorder(order)
        return self


class _NumpyArray(Sealed):
    """An array whose state comes later in the pickle."""

    def __init__(self, *_):
        pass

    def build(self, machine, state):
        _, shape, dtype, fortran, data = state
        return _array_of(machine, data, dtype, shape, "F" if fortran else "C")


def _array_of(machine, data, dtype, shape, order):
    if not isinstance(dtype, _NumpyDtype):
        raise PickleError("an array without a plain dtype")
    if isinstance(data, str):  # bytes of the oldest protocols
        data = machine.encode(data)
    if not isinstance(data, bytes):
        raise PickleError("an array that is no numbers")
    shape = _sizes(shape)
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise PickleError("an array whose bytes do not fill its shape")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _sizes(numbers) -> tuple[int, ...]:
    """The sizes or strides of axes as a tuple of integers that are not negative."""
    if not isinstance(numbers, (tuple, list)) or len(numbers) > _AXES:
        raise PickleError("a shape that is none")
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise PickleError("a tensor with a negative size or stride, or with one that is no integer")
    return tuple(map(int, numbers))


def _rebuild_tensor(machine, storage, offset, size, stride, *_):
    if not isinstance(storage, _Storage):
        return Inert()
    size, stride, (offset,) = _sizes(size), _sizes(stride), _sizes((offset,))
    if len(size) != len(stride):
        raise PickleError("a tensor with fewer strides than axes")
    values = storage.values
    if 0 in size:
        return np.zeros(0, values.dtype).reshape(_empty(size))
    if offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) >= values.size:
        raise PickleError("a tensor reaches past the end of its storage")
    if math.prod(size) > values.size:  # it repeats some values, as no weight does
        machine.inert.add("torch.Tensor.expand")
        return Inert()
    steps = tuple(s * values.dtype.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def _empty(size):
    """A shape without elements, in which no other size is more than NumPy can count."""
    if math.prod(n for n in size if n) >= 2**31:
        raise PickleError("an empty tensor with huge sizes")
    return size


def _rebuild_tensor_v3(machine, storage, offset, size, stride, requires_grad, hooks, dtype, *_):
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        return Inert()
    values = storage.values.view(dtype.dtype)
    return _rebuild_tensor(machine, _Storage(values), offset, size, stride)


def _rebuild_parameter(_, data, *__):
    return data


def _encode(machine, text, encoding="latin1", *_):
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError(f"bytes encoded as {encoding!r:.40}")
    return machine.encode(text)


def _bytes(machine, text=b"", encoding="latin1"):
    return _encode(machine, text, encoding) if isinstance(text, str) else text


def _numpy_frombuffer(machine, data, dtype, shape, order, *__):
    return _array_of(machine, data, dtype, shape, "F" if order == "F" else "C")


def _numpy_scalar(machine, dtype, data):
    return _array_of(machine, data, dtype, (), "C")[()]


def _plain_dict(*_):
    return {}


def _ordered_dict(machine, pairs: Sequence = (), *_):
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    machine.pay(len(pairs))
    return plain_items(pairs)


def _torch_size(_, sizes=(), *__):
    return _sizes(sizes)


_NUMPY = ("numpy.core", "numpy._core")
_NAMES = ("set", "frozenset", "complex", "slice", "list", "dict", "int", "float", "object")
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Function(_ordered_dict),
    ("collections", "defaultdict"): Function(_plain_dict),
    **{("builtins", name): _Name() for name in _NAMES},
    **{("builtins", name): Function(_bytes) for name in ("bytes", "bytearray")},
    ("_codecs", "encode"): Function(_encode),
    ("argparse", "Namespace"): Function(_Namespace),
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): Function(_NumpyDtype),
    ("torch", "Size"): Function(_torch_size),
    ("torch._utils", "_rebuild_tensor"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("torch.storage", "UntypedStorage"): _StorageType(np.uint8),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
    **{("torch", name): _Dtype(dtype) for name, dtype in _TORCH_DTYPES.items()},
    **{(f"{numpy}.multiarray", "_reconstruct"): Function(_NumpyArray) for numpy in _NUMPY},
    **{(f"{numpy}.multiarray", "scalar"): Function(_numpy_scalar) for numpy in _NUMPY},
    **{(f"{numpy}.numeric", "_frombuffer"): Function(_numpy_frombuffer) for numpy in _NUMPY},
}


def _read_zip(file: io.BufferedIOBase, memory: mmap.mmap) -> Pickle:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    programs = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(programs) != 1:
        raise PickleError("a zip file without the data.pkl that torch.save writes")
    root = programs[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and memory[slice(*_place(order, memory))].strip() != b"little":
        raise PickleError("tensors with big-endian bytes, which are not supported")
    storages: dict[str, _Storage] = {}

    def load_storage(identity):
        _, kind, key, _, _ = identity
        if not isinstance(kind, _StorageType):
            return Inert()
        key = _key(key)
        if key not in storages:
            if f"{root}data/{key}" not in entries:
                raise PickleError("a tensor whose storage is missing")
            start, end = _place(entries[f"{root}data/{key}"], memory)
            count = (end - start) // kind.dtype.itemsize
            storages[key] = _Storage(np.frombuffer(memory, kind.dtype, count, start))
        return storages[key]

    program = memory[slice(*_place(entries[programs[0]], memory))]
    if zlib.crc32(program) != entries[programs[0]].CRC:
        raise PickleError("the bytes of its data.pkl have changed")
    machine = Machine(program, known=_KNOWN, load=load_storage)
    return Pickle(machine.run(), sorted(machine.inert))


def _place(entry: zipfile.ZipInfo, memory: mmap.mmap) -> tuple[int, int]:
    """Where the bytes of a file in a zip archive begin and end; they are never compressed."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise PickleError("compressed data, which torch.save never writes")
    if not 0 <= entry.header_offset <= len(memory) - 30:
        raise PickleError("the file ends before its tensors do")
    header = memory[entry.header_offset : entry.header_offset + 30]
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if header[:4] != b"PK\3\4" or start + entry.file_size > len(memory):
        raise PickleError("the file ends before its tensors do")
    return start, start + entry.file_size


def _key(key: Any) -> str:
    """The name of a storage."""
    if not isinstance(key, (str, int)) or (isinstance(key, str) and len(key) > _KEY):
        raise PickleError("a storage without a name")
    return str(key)


def _read_stream(memory: mmap.mmap) -> Pickle:
    """A plain pickle, or the format that torch.save wrote before 1.6.

    The latter is five pickles, then the storages.
    """
    first = Machine(memory, known=_KNOWN)
    content = first.run()
    if not isinstance(content, int) or content != _LEGACY_MAGIC:
        return Pickle(content, sorted(first.inert))
    machine = first
    for _ in range(2):  # protocol version, system
        machine = Machine(memory, machine.at, known=_KNOWN, steps=machine.steps)
        machine.run()
    storages: dict[str, _Storage] = {}
    declared = 0

    def load_storage(identity):
        nonlocal declared
        if identity[0] != "storage" or identity[5] is not None:
            raise PickleError("a legacy file with shared or module storage, which is not supported")
        _, kind, key, _, size, _ = identity
        if not isinstance(kind, _StorageType):
            raise PickleError("a legacy file with a storage of unknown dtype")
        key = _key(key)
        if key not in storages:
            (size,) = _sizes((size,))
            declared += size * kind.dtype.itemsize
            if declared > len(memory):
                raise PickleError("the file ends before its tensors do")
            storages[key] = _Storage(np.zeros(size, kind.dtype))
        return storages[key]

    program = Machine(memory, machine.at, known=_KNOWN, load=load_storage, steps=machine.steps)
    content = program.run()
    keys = Machine(memory, program.at, known=_KNOWN, steps=program.steps)
    _fill(storages, keys.run(), memory, keys.at)
    return Pickle(content, sorted(program.inert))


def _fill(storages: dict[str, _Storage], keys: Any, memory: mmap.mmap, at: int) -> None:
    """Fills the storages of a legacy file with what follows its pickles, from `at` on."""
    if not isinstance(keys, list) or {_key(key) for key in keys} != storages.keys():
        raise PickleError("a legacy file whose list of storages is another's")
    for key in keys:
        values = storages[_key(key)].values
        size, at = memory[at : at + 8], at + 8
        if len(size) < 8 or struct.unpack("<q", size)[0] != values.size:
            raise PickleError("the file ends before its tensors do")
        if at + values.nbytes > len(memory):
            raise PickleError("the file ends before its tensors do")
        values[:] = np.frombuffer(memory, values.dtype, values.size, at)
        at += values.nbytes
