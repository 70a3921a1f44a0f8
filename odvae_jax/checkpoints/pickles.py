"""Reading PyTorch and NumPy pickles without PyTorch, and without executing what they say.

A pickle is a program that may call any function that can be imported. This reader looks up only
what tensors are made of. Every other global becomes an inert object, which accepts whatever the
pickle does to it, executes nothing, and is reported. Tensors of PyTorch's zip format are mapped
from the file, not copied.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import mmap
import os
import pickle
import re
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

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
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class PickleError(ValueError):
    """A file is no pickle of tensors, or is damaged. The message says why."""


@dataclasses.dataclass
class Pickle:
    """The content of a pickle.

    Attributes:
      content: the object that was pickled, with NumPy arrays in place of tensors.
      inert: the globals that were made inert instead of being looked up, each as "module.name".
    """

    content: Any
    inert: list[str]


class Inert:
    """A stand-in for an object of a class that is not looked up; it keeps and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        """Returns another inert object, whatever the arguments are."""
        return Inert()

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        """Does nothing with an item, as pickles of lists ask for it."""
        pass

    def extend(self, items):
        """Does nothing with items, as pickles of lists ask for it."""
        pass

    def add(self, item):
        """Does nothing with an item, as pickles of sets ask for it."""
        pass

    def __hash__(self):
        return id(self)

    def __eq__(self, other):
        return self is other


def read_pickle(path: str | os.PathLike) -> Pickle:
    """Reads a file that `torch.save` wrote, in either format, or a plain pickle of NumPy arrays.

    Tensors become NumPy arrays. Those of bfloat16 have the dtype of ml_dtypes.

    Raises:
      PickleError: if the file is none of these, or is damaged.
    """
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            return _read_stream(file)
        except PickleError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise PickleError(f"{type(error).__name__}: {error}") from error


class _Sealed:
    """Something that a pickle may name, call or be given, but not change."""

    def __setstate__(self, state):
        raise PickleError(f"the pickle tries to change a {type(self).__name__.strip('_')}")


class _Function(_Sealed):
    """A function of this package that a pickle may call."""

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)


class _StorageType(_Sealed):
    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class _Dtype(_StorageType):
    pass


class _Storage(_Sealed):
    """Memory that tensors are views of; in the legacy format it is filled after them."""

    def __init__(self, values: np.ndarray):
        self.values = values


class _NumpyDtype(_Sealed):
    """The dtype of plain numbers; NumPy's own dtype could be given a state that reads anywhere."""

    def __init__(self, code, *_):
        if not (isinstance(code, str) and re.fullmatch(r"[<>|=]?[fiu][1248]|[|]?b1", code)):
            raise PickleError(f"an array of dtype {code!r}, which is not a plain number's")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise PickleError("an array of a structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _NumpyArray(_Sealed):
    """An array whose state comes later in the pickle; `value` is None until then."""

    value: np.ndarray | None = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _array_of(data, dtype, shape, "F" if fortran else "C")


def _array_of(data, dtype, shape, order):
    if not isinstance(dtype, _NumpyDtype):
        raise PickleError("an array without a plain dtype")
    if isinstance(data, str):  # bytes of the oldest protocols
        data = data.encode("latin1")
    shape = tuple(map(int, shape))
    if not isinstance(data, (bytes, bytearray)) or min(shape, default=0) < 0:
        raise PickleError("an array that is no numbers")
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise PickleError("an array whose bytes do not fill its shape")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _rebuild_tensor(storage, offset, size, stride, *_):
    if not isinstance(storage, _Storage):
        return Inert()
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    offset = int(offset)
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise PickleError("a tensor with a negative size or stride")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    values = storage.values
    if 0 in size:
        return np.empty(size, values.dtype)
    if last >= values.size:
        raise PickleError("a tensor reaches past the end of its storage")
    steps = tuple(s * values.dtype.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def _rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, *_):
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        return Inert()
    return _rebuild_tensor(_Storage(storage.values.view(dtype.dtype)), offset, size, stride)


def _rebuild_parameter(data, *_):
    return data


def _encode(text, encoding="latin1", *_):
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _numpy_frombuffer(data, dtype, shape, order, *_):
    return _array_of(data, dtype, shape, "F" if order == "F" else "C")


def _numpy_scalar(dtype, data):
    return _array_of(data, dtype, (), "C")[()]


def _plain_dict(*_):
    return {}


_NUMPY = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): _Function(_plain_dict),
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("_codecs", "encode"): _Function(_encode),
    ("numpy", "ndarray"): _Function(_NumpyArray),
    ("numpy", "dtype"): _Function(_NumpyDtype),
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("torch.storage", "UntypedStorage"): _StorageType(np.uint8),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
    **{("torch", name): _Dtype(dtype) for name, dtype in _TORCH_DTYPES.items()},
    **{(f"{numpy}.multiarray", "_reconstruct"): _Function(_NumpyArray) for numpy in _NUMPY},
    **{(f"{numpy}.multiarray", "scalar"): _Function(_numpy_scalar) for numpy in _NUMPY},
    **{(f"{numpy}.numeric", "_frombuffer"): _Function(_numpy_frombuffer) for numpy in _NUMPY},
}


def _with_arrays(content):
    """Puts the arrays where their placeholders stand, in nested dictionaries, lists and tuples."""
    if isinstance(content, _NumpyArray):
        return content.value if content.value is not None else Inert()
    if isinstance(content, dict):
        return {key: _with_arrays(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_with_arrays(value) for value in content)
    return content


class _Unpickler(pickle.Unpickler):
    """Looks up the allowed globals only; `load_storage` gives the memory behind a persistent id."""

    def __init__(self, file: io.BufferedIOBase, load_storage=None):
        super().__init__(file, encoding="latin1")
        self.load_storage = load_storage
        self.inert: set[str] = set()

    def find_class(self, module, name):
        module = module.replace("__builtin__", "builtins")
        found = _ALLOWED.get((module, name))
        if found is not None:
            return found
        self.inert.add(f"{module}.{name}")
        return type(name, (Inert,), {})

    def persistent_load(self, identity):
        if self.load_storage is None:
            raise PickleError("a reference to something outside the pickle")
        return self.load_storage(identity)


def _read_zip(file: io.BufferedIOBase) -> Pickle:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        programs = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(programs) != 1:
            raise PickleError("a zip file without the data.pkl that torch.save writes")
        root = programs[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in entries and archive.read(order).strip() != b"little":
            raise PickleError("tensors with big-endian bytes, which are not supported")
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        storages: dict[str, _Storage] = {}

        def load_storage(identity):
            _, kind, key, _, _ = identity
            if not isinstance(kind, _StorageType):
                return Inert()
            if key not in storages:
                entry = entries[f"{root}data/{key}"]
                dtype = kind.dtype
                if entry.compress_type == zipfile.ZIP_STORED:
                    header = memory[entry.header_offset : entry.header_offset + 30]
                    name_length, extra_length = struct.unpack("<HH", header[26:30])
                    start = entry.header_offset + 30 + name_length + extra_length
                    values = np.frombuffer(memory, dtype, entry.file_size // dtype.itemsize, start)
                else:
                    values = np.frombuffer(archive.read(entry), dtype)
                storages[key] = _Storage(values)
            return storages[key]

        unpickler = _Unpickler(io.BytesIO(archive.read(programs[0])), load_storage)
        return Pickle(_with_arrays(unpickler.load()), sorted(unpickler.inert))


def _read_stream(file: io.BufferedIOBase) -> Pickle:
    """A plain pickle, or the format that torch.save wrote before 1.6.

    The latter is five pickles, then the storages.
    """
    first = _Unpickler(file)
    content = first.load()
    if not isinstance(content, int) or content != _LEGACY_MAGIC:
        return Pickle(_with_arrays(content), sorted(first.inert))
    for _ in range(2):  # protocol version, system
        _Unpickler(file).load()
    storages: dict[str, _Storage] = {}

    def load_storage(identity):
        if identity[0] != "storage" or identity[5] is not None:
            raise PickleError("a legacy file with shared or module storage, which is not supported")
        _, kind, key, _, size, _ = identity
        if not isinstance(kind, _StorageType):
            raise PickleError("a legacy file with a storage of unknown dtype")
        return storages.setdefault(key, _Storage(np.zeros(size, kind.dtype)))

    unpickler = _Unpickler(file, load_storage)
    content = unpickler.load()
    for key in _Unpickler(file).load():
        (size,) = struct.unpack("<q", file.read(8))
        values = storages[key].values
        data = file.read(values.nbytes)
        if size != values.size or len(data) != values.nbytes:
            raise PickleError("the file ends before its tensors do")
        values[:] = np.frombuffer(data, values.dtype)
    return Pickle(_with_arrays(content), sorted(unpickler.inert))
