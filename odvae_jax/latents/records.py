"""The format of one record of a dataset of latents.

A record is a mark, the length of a header, the header in JSON, and the latents. Its header has the
fields of `LatentsInfo` that differ between records. Those that all records share stand in the
dataset's description, and the sums over latents in the indices of shards. array_record, which keeps
the records, has checksums of its own.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float

from odvae_jax.files import one_line
from odvae_jax.latents.schema import (
    DTYPES,
    OPTIONAL,
    LatentsError,
    LatentsInfo,
    check_array,
    checked,
)

SHARED = (
    "model",
    "encoder",
    "config",
    "content",
    "scaling_factor",
    "tiling",
    "dtype",
    "store",
    "seed",
)
"""The fields of `LatentsInfo` that all records of a dataset have in common."""
_OWN = [f.name for f in dataclasses.fields(LatentsInfo) if f.name not in (*SHARED, "statistics")]
_MAGIC = b"odlat2"
_LENGTH = struct.Struct("<I")
_START = len(_MAGIC) + _LENGTH.size
_decode = json.JSONDecoder().raw_decode
NUMPY = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in DTYPES}
"""The dtypes of stored latents, each by its name."""


def as_stored(latents: Float[np.ndarray, "*shape"], store: str) -> Float[np.ndarray, "*shape"]:
    """Returns latents in the dtype that they are stored in.

    Args:
      latents: the latents.
      store: "float32", "float16" or "bfloat16".

    Raises:
      LatentsError: if values are not finite in that dtype.
    """
    with np.errstate(over="ignore"):  # it is said below
        stored = np.ascontiguousarray(latents, NUMPY[store])
    if bad := stored.size - int(np.isfinite(stored).sum()):
        raise LatentsError(f"{bad} of {stored.size} values of latents are not finite as {store}.")
    return stored


def pack_record(entry: int, info: LatentsInfo, stored: Float[np.ndarray, "t h w c"]) -> bytes:
    """Returns one record.

    Args:
      entry: the number of the entry of the dataset's plan.
      info: what is said about the latents.
      stored: the latents as `as_stored` returned them, [t, h, w, C]; for moments, [t, h, w, 2 C].

    Raises:
      LatentsError: if what is said cannot be true of these latents.
    """
    check_array(checked(dataclasses.asdict(info)), DTYPES[info.store], stored.shape)
    header = {"entry": entry, "shape": stored.shape, "store": info.store}
    for name in _OWN:
        value = getattr(info, name)
        if name not in OPTIONAL or value:
            header[name] = value
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, stored.tobytes()))


class Record(NamedTuple):
    """What one record holds.

    Attributes:
      entry: the number of the entry of the dataset's plan.
      latents: the latents as they are stored, [t, h, w, C]; for moments, [t, h, w, 2 C]. They are a
        view of the record that cannot be written to.
      header: the fields of `LatentsInfo` that differ between records, by their names.
    """

    entry: int
    latents: Float[np.ndarray, "t h w c"]
    header: dict[str, Any]

    @property
    def columns(self) -> dict[str, Any]:
        """What else the source says of the video, such as a caption, by the column's name."""
        return self.header.get("columns", {})

    def info(self, shared: Mapping[str, Any]) -> LatentsInfo:
        """Returns what is said about the latents, after all of it was checked.

        Args:
          shared: the fields that all records of the dataset have in common.

        Raises:
          LatentsError: if it cannot be true.
        """
        info = checked({**self.header, **shared})
        check_array(info, DTYPES[info.store], self.latents.shape)
        return info


def unpack_record(record: bytes, name: str) -> Record:
    """Returns what a record that `pack_record` made holds.

    Only what is needed to find the latents is checked; `Record.info` checks the rest.

    Args:
      record: the record.
      name: what the error message calls it.

    Raises:
      LatentsError: if it is no such record, or damaged.
    """
    try:  # in few steps: a training program may read ten thousand records per second
        if record[: len(_MAGIC)] != _MAGIC:
            raise ValueError("it does not begin with the mark of a record")
        begin = _START + _LENGTH.unpack_from(record, len(_MAGIC))[0]
        text = str(record[_START:begin], "utf-8")
        header, end = _decode(text)
        if end != len(text):
            raise ValueError("its header has another length")
        entry, store = header.pop("entry"), header.pop("store")
        t, h, w, c = shape = header.pop("shape")
        if not (isinstance(entry, int) and min(shape) > 0):
            raise ValueError(f"entry {entry!r:.40} and shape {shape!r:.40}")
        dtype = NUMPY[store]
        if len(record) - begin != t * h * w * c * dtype.itemsize:
            raise ValueError(f"{len(record) - begin} bytes of latents are not those of {shape}")
        latents = np.ndarray((t, h, w, c), dtype, record, begin)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise LatentsError(f"{name} is no record of latents: {one_line(error)}.") from error
    return Record(entry, latents, header)
