"""The format of a packed record: a mark, the header's length, the header as JSON, the video."""

from __future__ import annotations

import json
import struct

from odvae_jax.data.video import VideoError

PACKED_SUFFIX = ".array_record"
"""The extension of files of packed videos."""
_MAGIC = b"odvae1"


def pack(header: dict, content: bytes) -> bytes:
    """Returns one record of the packed format.

    Args:
      header: `name`; `kind`, which is "h264" for an mp4 file and "raw" for the bytes of RGB frames,
        uint8 [T, H, W, 3]; `fps`, the frames per second; `frames`, `height` and `width`.
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
      VideoError: if `pack` did not make the record.
    """
    at = len(_MAGIC) + 4
    if record[: len(_MAGIC)] != _MAGIC:
        raise VideoError(f"{name} was not written by `odvae data pack`.")
    length = struct.unpack("<I", record[len(_MAGIC) : at])[0]
    return json.loads(record[at : at + length]), record[at + length :]
