"""Latents in files: safetensors with what it takes to decode them."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
from jaxtyping import Float, Float32

from odvae_jax import digests
from odvae_jax.data.finding import check_regular, find_files
from odvae_jax.files import WholeFile, counted, one_line, printable
from odvae_jax.latents.records import as_stored
from odvae_jax.latents.schema import (
    DTYPES,
    FORMAT,
    FORMATS,
    LatentsError,
    LatentsInfo,
    check_array,
    parse,
)

logger = logging.getLogger(__name__)
SUFFIX = ".safetensors"
# The bytes that are kept free for the header, whose content is known only when all is written.
_HEADER = 16384
# The array that holds a digest per block of latent frames, and what says how long a block is.
_DIGESTS, _BLOCK, _DIGEST = "digests", "digest_frames", "digest"
_BLOCK_BYTES = 2**22
_DIGEST_BYTES = 16


class LatentsWriter:
    """Writes the latents of one video as they come; the file appears complete or not at all.

    `finish` completes the file. `close` removes what was written of a file that was not finished.

    Args:
      path: the path of the file.
      dtype: the dtype that latents are stored in: "float32", "float16" or "bfloat16".
      content: what is stored: "mean", "moments" or "sample".

    Raises:
      BusyError: if another process is writing the file.
      OSError: if the file cannot be written.
    """

    def __init__(self, path: Path, *, dtype: str = "float32", content: str = "mean"):
        self._path, self._content, self._dtype = path, content, dtype
        self._shape: tuple[int, ...] | None = None
        self._count = self._block = 0
        self._waiting: list[np.ndarray] = []  # latent frames that have no digest yet
        self._digests = bytearray()
        self._whole = WholeFile(path)
        self._file = self._whole.file
        self._file.seek(8 + _HEADER)

    def write(self, latents: Float[np.ndarray, "n h w c"]) -> None:
        """Adds latents [n, h, w, C]; for moments, [n, h, w, 2 C].

        Raises:
          LatentsError: if values are not finite in the dtype that they are stored in.
          OSError: if the file cannot be written.
        """
        stored = as_stored(latents, self._dtype)
        if self._shape is None:
            self._shape = stored.shape[1:]
            self._block = max(_BLOCK_BYTES // max(stored[:1].nbytes, 1), 1)
        self._count += len(stored)
        self._file.write(stored)
        self._waiting += list(stored)
        while len(self._waiting) >= self._block:
            self._add_digest()

    def finish(self, info: LatentsInfo) -> None:
        """Writes what is known only in the end, checks the file, and gives it its name.

        Raises:
          LatentsError: if what the file says about itself is too long or cannot be true.
          OSError: if the file cannot be written.
        """
        if self._shape is None:
            raise LatentsError(f"{printable(self._path)} would hold no latents.")
        while self._waiting:
            self._add_digest()
        size = self._file.tell() - 8 - _HEADER
        self._file.write(self._digests)
        fields = {n: json.dumps(v) for n, v in dataclasses.asdict(info).items()}
        fields[_BLOCK] = json.dumps(self._block)
        fields[_DIGEST] = _digest_of(fields, self._digests)
        count = len(self._digests) // _DIGEST_BYTES
        header = {
            "__metadata__": {"format": FORMAT, **fields},
            self._content: {
                "dtype": DTYPES[self._dtype],
                "shape": [self._count, *self._shape],
                "data_offsets": [0, size],
            },
            _DIGESTS: {
                "dtype": "U8",
                "shape": [count, _DIGEST_BYTES],
                "data_offsets": [size, size + len(self._digests)],
            },
        }
        text = json.dumps(header).encode()
        if len(text) > _HEADER:
            raise LatentsError(
                f"{printable(self._path)}: the header needs {len(text)} bytes of {_HEADER}."
            )
        self._file.seek(0)
        self._file.write(_HEADER.to_bytes(8, "little") + text.ljust(_HEADER))
        self._file.flush()
        LatentsFile(self._whole.part)
        self._whole.finish()

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""
        self._whole.close()

    def _add_digest(self):
        block, self._waiting = self._waiting[: self._block], self._waiting[self._block :]
        self._digests += bytes.fromhex(digests.of_bytes(*map(_bytes_of, block)))


class LatentsFile:
    """An open file of latents, whose metadata were checked in full.

    The file has a digest per block of latent frames of some MB. What is read is compared with the
    digests of the blocks that it touches, each block once. Files of before digests were written are
    read without; the log says so once.

    Args:
      path: the path of the file.
      verify: whether metadata and data are compared with their digests.

    Attributes:
      path: the path of the file.
      info: what the file says about itself.
      shape: the shape of the stored array, [t, h, w, C], or [t, h, w, 2 C] for moments.
      has_digests: whether the file has digests to compare with.

    Raises:
      LatentsError: if there is no such file, or it is damaged, or holds no latents, or says of
        itself what cannot be true.
      ForeignError: if it is a whole safetensors file, but not one of latents.
    """

    def __init__(self, path: str | os.PathLike, *, verify: bool = True):
        self.path, self._verify = Path(path), verify
        self._name = printable(path)
        self._verified: set[int] = set()
        self._recent: tuple[int, np.ndarray] | None = None
        try:
            _check_regular(path)
            self._file = safetensors.safe_open(self.path, framework="numpy")
            self._read_header(dict(self._file.metadata() or {}))
        except FileNotFoundError:
            raise LatentsError(f"{self._name} does not exist.") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise LatentsError(
                f"{self._name} is damaged, or no file of latents: {one_line(error)}."
            ) from error

    def _read_header(self, fields: dict[str, str]) -> None:
        """Checks metadata and arrays against each other.

        Raises:
          LatentsError: if they cannot be those of a file of latents.
        """
        if (written := fields.pop("format", None)) not in FORMATS:
            raise ForeignError(
                f"{self._name} is a safetensors file, but holds no latents that odvae_jax wrote "
                f'("format": "{FORMAT}" is missing).'
            )
        try:
            digest, block = fields.pop(_DIGEST, None), fields.get(_BLOCK)
            arrays = set(self._file.keys())
            self.has_digests = bool({digest, block} - {None}) or _DIGESTS in arrays
            if self.has_digests:
                self._read_digests(digest, block, fields, arrays)
            fields.pop(_BLOCK, None)
            self.info = parse(fields, written)
            if arrays - {_DIGESTS} != {self.info.content}:
                raise LatentsError(
                    f"it holds the arrays {sorted(arrays)}; expected {self.info.content!r}"
                )
            self._slice = self._file.get_slice(self.info.content)
            self.shape = tuple(self._slice.get_shape())
            check_array(self.info, self._slice.get_dtype(), self.shape)
            if self.has_digests and len(self._digests) != -(-self.shape[0] // self._block):
                raise LatentsError(
                    f"it has {counted(len(self._digests), 'digest')} for "
                    f"{counted(self.shape[0], 'frame')}"
                )
        except LatentsError as error:
            raise LatentsError(f"{self._name} is damaged: {one_line(error)}.") from error
        if self._verify and not self.has_digests:
            _say_once_that_digests_are_missing()

    def _read_digests(self, digest, block, fields, arrays) -> None:
        if digest is None or block is None or _DIGESTS not in arrays:
            raise LatentsError("some of its digests are missing")
        stored = self._file.get_slice(_DIGESTS)
        if stored.get_dtype() != "U8" or stored.get_shape()[1:] != [_DIGEST_BYTES]:
            raise LatentsError("its digests have another shape or dtype")
        if not block.isdecimal() or not 0 < int(block[:20]) < 2**31:
            raise LatentsError(f"{_BLOCK} is {block[:20]!r}; expected a whole number of frames")
        self._digests, self._block = stored[:], int(block)
        if self._verify and _digest_of(fields, self._digests.tobytes()) != digest:
            raise LatentsError("its metadata are not those that were written")

    def read(self, start: int = 0, stop: int | None = None) -> Float32[np.ndarray, "n h w c"]:
        """Reads the latent frames from `start` up to `stop`, float32 [n, h, w, C].

        For moments it reads the mean. None for `stop` reads to the end.

        Raises:
          LatentsError: if what is stored has another digest than what was written.
        """
        return self._part(start, stop, 0)

    def read_logvar(
        self, start: int = 0, stop: int | None = None
    ) -> Float32[np.ndarray, "n h w c"]:
        """Reads the log-variance of the latent frames from `start` up to `stop`.

        Returns:
          float32 [n, h, w, C].

        Raises:
          LatentsError: if the file does not hold moments, or what is stored has another digest than
            what was written.
        """
        if self.info.content != "moments":
            raise LatentsError(f"{self._name} holds the {self.info.content}, not the moments.")
        return self._part(start, stop, 1)

    def _part(self, start, stop, which):
        stored = self._stored(*slice(start, stop).indices(self.shape[0])[:2])
        parts = 2 if self.info.content == "moments" else 1
        return np.split(stored.astype(np.float32), parts, axis=-1)[which]

    def _stored(self, start: int, stop: int) -> np.ndarray:
        """Returns stored latent frames, after the blocks that they are in were verified."""
        if stop <= start:
            return self._slice[:0]
        if not (self._verify and self.has_digests):
            return self._slice[start:stop]
        parts = []
        for number in range(start // self._block, (stop - 1) // self._block + 1):
            first = number * self._block
            low, high = max(start, first), min(stop, first + self._block)
            recent = self._recent
            if recent is not None and recent[0] == number:
                parts.append(recent[1][low - first : high - first])
            elif number in self._verified:
                parts.append(self._slice[low:high])
            else:
                parts.append(self._verified_block(number)[low - first : high - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _verified_block(self, number: int) -> np.ndarray:
        first = number * self._block
        block = self._slice[first : min(first + self._block, self.shape[0])]
        if digests.of_bytes(*map(_bytes_of, block)) != self._digests[number].tobytes().hex():
            raise LatentsError(
                f"{self._name} is damaged: its latent frames {first} to {first + len(block) - 1} "
                "are not those that were written."
            )
        self._verified.add(number)
        self._recent = number, block  # the next read likely goes on in it
        return block

    def blocks(self, length: int) -> Iterator[Float32[np.ndarray, "n h w c"]]:
        """Yields the latents in blocks, float32 [n, h, w, C].

        The first block has `length` + 1 latent frames, the others have `length`, and the last has
        what is left.

        Raises:
          LatentsError: if what is stored has another digest than what was written.
        """
        start, stop = 0, length + 1
        while start < self.shape[0]:
            yield self.read(start, min(stop, self.shape[0]))
            start, stop = stop, stop + length


class ForeignError(LatentsError):
    """A safetensors file is whole, but holds no latents of this package."""


def _check_regular(path) -> None:
    try:
        check_regular(path)
    except ValueError as error:
        raise LatentsError(str(error)) from error


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


def _digest_of(fields: Mapping[str, str], of_blocks: bytes | bytearray) -> str:
    """Returns the digest of metadata and of the digests of all blocks, in JSON as all metadata."""
    found = digests.of_bytes(json.dumps(sorted(fields.items())).encode(), bytes(of_blocks))
    return json.dumps(found)


@functools.cache
def _say_once_that_digests_are_missing() -> None:
    logger.warning("files of latents without digests, which older versions wrote, are not verified")


def find_latents(path: str | os.PathLike, *, problems: dict[str, str] | None = None) -> list[Path]:
    """Returns the files of latents anywhere below a folder, sorted; or the one file `path` is.

    Args:
      path: a folder, or one file.
      problems: is filled with what is wrong with folders and links below the path, by their paths
        (see `find_files`). None says it in the log.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is no file of latents below the folder.
    """
    kind = "file of latents"
    return list(map(Path, find_files(path, frozenset([SUFFIX]), kind, problems=problems)))
