"""The format of a packed record: a mark, the header's length, the header as JSON, the video."""

from __future__ import annotations

import json
import struct

from odvae_jax.data.video import VideoError
from odvae_jax.files import one_line

PACKED_SUFFIX = ".array_record"
"""The extension of files of packed videos."""
_MAGIC = b"odvae1"
_HEADER = {"name": str, "kind": str, "fps": (int, float)}
_HEADER |= {"frames": int, "height": int, "width": int}


def pack(header: dict, content: bytes) -> bytes:
    """Returns one record of the packed format.

    Args:
      header: `name`; `kind`, which is "h264" for an mp4 file and "raw" for the bytes of RGB frames,
        uint8 [T, H, W, 3]; `fps`, the frames per second; `frames`, `height` and `width`; and
        perhaps `columns`, what else is known of the video.
      content: the video.
    """
    text = json.dumps(header).encode()
    return _MAGIC + struct.pack("<I", len(text)) + text + content


def unpack(record: bytes, name: str) -> tuple[dict, bytes]:
    """Returns the header and the content of a record that `pack` made.

    Args:
      record: the record.
      name: what the error message calls it.

    Raises:
      VideoError: if `pack` did not make the record, or it is damaged.
    """
    at = len(_MAGIC) + 4
    if record[: len(_MAGIC)] != _MAGIC:
        raise VideoError(f"{name} was not written by `odvae data pack`.")
    try:
        length = struct.unpack("<I", record[len(_MAGIC) : at])[0]
        header = json.loads(record[at : at + length])
        for key, kinds in _HEADER.items():
            if not isinstance(header[key], kinds) or isinstance(header[key], bool):
                raise ValueError(key)
        if not all(0 < header[n] < 2**31 for n in ("fps", "frames", "height", "width")):
            raise ValueError("numbers")
        if not isinstance(header.get("columns", {}), dict):
            raise ValueError("columns")
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VideoError(f"{name} has a damaged header: {one_line(error)}.") from error
    return header, record[at + length :]
