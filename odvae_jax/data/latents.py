"""Latents in files: safetensors with what it takes to decode them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from odvae_jax.data.finding import find_files
from odvae_jax.files import WholeFile

SUFFIX = ".safetensors"
FORMAT = "odvae_jax latents 1"
CONTENTS = ("mean", "moments", "sample")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_HEADER = 16384  # bytes kept for it: what it says is known only when all is written


class LatentsError(ValueError):
    """A file that cannot be used as latents; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class LatentsInfo:
    """What a file of latents says of itself.

    Attributes:
      source: the video's name.
      model: what `ODVAE.from_pretrained` was given.
      encoder: digest of the encoder that made them.
      config: of the model.
      content: "mean" of the posterior, a "sample", or "moments": mean and log-variance side by side
        in the channels.
      scaling_factor: that a diffusion model multiplies them by; they are stored unscaled.
      frames, height, width: of the video that they decode to, without what was padded.
      fps: frames a second.
      tiling: how they were made, and are decoded: the fields of each tiling by its name.
      dtype: that was computed in.
      store: dtype that they are stored in.
      seed: of a sample; None for others.
      prepared: short side and cut of the video, None where it was left as it was.
      statistics: sums over the latents, see `Statistics`.
      problem: what ended the video too early; empty if nothing did.
    """

    source: str
    model: str
    encoder: str
    config: dict[str, Any]
    content: str
    scaling_factor: float
    frames: int
    height: int
    width: int
    fps: float
    tiling: dict[str, dict[str, int]]
    dtype: str
    store: str
    seed: int | None
    prepared: dict[str, int | None]
    statistics: dict[str, Any]
    problem: str = ""


@dataclasses.dataclass
class Statistics:
    """Sums over the positions of latents, a channel each, in float64.

    Attributes:
      count: positions.
      mean, square: sums of the posterior's mean and of its square.
      variance: sum of the posterior's variance.
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    square: np.ndarray | float = 0.0
    variance: np.ndarray | float = 0.0

    def add(self, mean: np.ndarray, logvar: np.ndarray) -> None:
        """Counts latents [..., C] in."""
        axes = tuple(range(mean.ndim - 1))
        self.count += mean[..., 0].size
        self.mean = self.mean + mean.sum(axes, dtype=np.float64)
        self.square = self.square + np.square(mean, dtype=np.float64).sum(axes)
        self.variance = self.variance + np.exp(logvar.astype(np.float64)).sum(axes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {n: np.asarray(v).tolist() for n, v in dataclasses.asdict(self).items()}

    @classmethod
    def total(cls, parts: Iterable[dict[str, Any]]) -> Statistics:
        """Of several files."""
        total = cls()
        for part in parts:
            total.count += part["count"]
            for name in ("mean", "square", "variance"):
                setattr(total, name, getattr(total, name) + np.asarray(part[name]))
        return total

    def table(self) -> str:
        """Mean and standard deviation a channel, and the scale that makes the latter 1."""
        mean = self.mean / self.count
        variance = np.maximum(self.square / self.count - mean**2, 0)
        sampled = variance + self.variance / self.count
        lines = [f"{'channel':>8}{'mean':>10}{'std':>10}{'std, sampled':>14}"]
        for i, row in enumerate(zip(mean, np.sqrt(variance), np.sqrt(sampled), strict=True)):
            lines.append(f"{i:8}{row[0]:10.4f}{row[1]:10.4f}{row[2]:14.4f}")
        # Over all channels together, about their common mean.
        spread = float(np.sqrt(np.mean(sampled + mean**2) - np.mean(mean) ** 2))
        lines.append(f"scaling factor, 1 / std of all sampled latents: {1 / spread:.5f}")
        return "\n".join(lines)


class LatentsWriter:
    """Writes latents of one video as they come; the file appears whole or not at all.

    `finish` ends it; `close` leaves nothing of a file that was not finished.

    Args:
      path: of the file.
      dtype: that they are stored in.
      content: one of CONTENTS.
    """

    def __init__(self, path: Path, *, dtype: str = "float32", content: str = "mean"):
        self._path, self._content, self._dtype = path, content, dtype
        self._shape: tuple[int, ...] | None = None
        self._count = 0
        self._whole = WholeFile(path)
        self._file = self._whole.file
        self._file.seek(8 + _HEADER)

    def write(self, latents: np.ndarray) -> None:
        """Adds latents [n, h, w, C]."""
        self._shape = latents.shape[1:]
        self._count += len(latents)
        self._file.write(
            np.ascontiguousarray(latents, getattr(ml_dtypes, self._dtype, self._dtype))
        )

    def finish(self, info: LatentsInfo) -> None:
        """Writes what is known in the end, and gives the file its name."""
        size = self._file.tell() - 8 - _HEADER
        fields = dataclasses.asdict(info).items()
        header = {
            "__metadata__": {"format": FORMAT, **{n: json.dumps(v) for n, v in fields}},
            self._content: {
                "dtype": _DTYPES[self._dtype],
                "shape": [self._count, *self._shape],
                "data_offsets": [0, size],
            },
        }
        text = json.dumps(header).encode()
        if len(text) > _HEADER:
            raise LatentsError(f"{self._path}: the header needs {len(text)} bytes of {_HEADER}.")
        self._file.seek(0)
        self._file.write(_HEADER.to_bytes(8, "little") + text.ljust(_HEADER))
        self._whole.finish()

    def close(self) -> None:
        """Leaves nothing of a file that was not finished."""
        self._whole.close()


class LatentsFile:
    """An open file of latents.

    Attributes:
      info: what it says of itself.
      shape: of the stored array, [t, h, w, C] or, of moments, [t, h, w, 2 C].

    Raises:
      LatentsError: if it is no such file, or a damaged one.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._file = safetensors.safe_open(self.path, framework="numpy")
            metadata = self._file.metadata() or {}
            if metadata.pop("format", None) != FORMAT:
                raise LatentsError(
                    f"{path} is a safetensors file, but holds no latents that odvae_jax wrote "
                    f'("format": "{FORMAT}" is missing).'
                )
            self.info = LatentsInfo(**{name: json.loads(v) for name, v in metadata.items()})
            self._slice = self._file.get_slice(self.info.content)
            self.shape = tuple(self._slice.get_shape())
        except FileNotFoundError:
            raise LatentsError(f"{path} does not exist.") from None
        except (safetensors.SafetensorError, OSError, json.JSONDecodeError, TypeError) as error:
            raise LatentsError(f"{path} is damaged, or no file of latents: {error}.") from error

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Latents `start` to `stop` in float32, [n, h, w, C]; of moments the mean."""
        return self._part(start, stop, 0)

    def read_logvar(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The log-variance, where moments are stored, [n, h, w, C].

        Raises:
          LatentsError: where they are not.
        """
        if self.info.content != "moments":
            raise LatentsError(f"{self.path} holds the {self.info.content}, not the moments.")
        return self._part(start, stop, 1)

    def _part(self, start, stop, which):
        stored = self._slice[start : self.shape[0] if stop is None else stop]
        parts = 2 if self.info.content == "moments" else 1
        return np.split(stored.astype(np.float32), parts, axis=-1)[which]

    def blocks(self, step: int) -> Iterator[np.ndarray]:
        """Latents in blocks of `step` + 1, then `step` each, then the rest."""
        start, stop = 0, step + 1
        while start < self.shape[0]:
            yield self.read(start, min(stop, self.shape[0]))
            start, stop = stop, stop + step


def find_latents(path: str | os.PathLike) -> list[Path]:
    """Files of latents below a folder, sorted; or the one file itself.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is none below it.
    """
    return list(map(Path, find_files(path, frozenset([SUFFIX]), "file of latents")))
