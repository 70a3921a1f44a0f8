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
from jaxtyping import Float, Float32

from odvae_jax.data.finding import find_files
from odvae_jax.files import WholeFile

SUFFIX = ".safetensors"
FORMAT = "odvae_jax latents 1"
CONTENTS = ("mean", "moments", "sample")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# The bytes that are kept free for the header, whose content is known only when all is written.
_HEADER = 16384


class LatentsError(ValueError):
    """A file cannot be used as latents. The message names the file and says why."""


@dataclasses.dataclass(frozen=True)
class LatentsInfo:
    """What a file of latents says about itself.

    Attributes:
      source: the name of the video's file.
      model: what `ODVAE.from_pretrained` was given for the model.
      encoder: the digest of the encoder that made the latents.
      config: the config of the model.
      content: "mean" for the posterior's mean, "sample" for a sample of the posterior, or "moments"
        for mean and log-variance, side by side in the channels.
      scaling_factor: the number that a diffusion model multiplies latents by. The latents are
        stored without it.
      frames: the number of frames that the latents decode to, without those that were padded.
      height, width: the sides of these frames in pixels, without rows and columns that were padded.
      fps: the frames per second of the video.
      tiling: how the clip was cut when it was encoded, and is when it is decoded: the fields of
        each tiling by the tiling's name.
      dtype: the dtype that the latents were computed in.
      store: the dtype that the latents are stored in.
      seed: the seed of a sample; None for other content.
      prepared: the short side that the video was scaled to and the size that was cut out, in
        pixels; None for what was left as it was.
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
    """Sums over the positions of latents, per channel, in float64.

    Attributes:
      count: the number of positions.
      mean: the sum of the posterior's mean, [C].
      square: the sum of the square of the posterior's mean, [C].
      variance: the sum of the posterior's variance, [C].
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    square: np.ndarray | float = 0.0
    variance: np.ndarray | float = 0.0

    def add(
        self, mean: Float[np.ndarray, "*positions c"], logvar: Float[np.ndarray, "*positions c"]
    ) -> None:
        """Adds the mean and the log-variance of posteriors, each [..., C]."""
        axes = tuple(range(mean.ndim - 1))
        self.count += mean[..., 0].size
        self.mean = self.mean + mean.sum(axes, dtype=np.float64)
        self.square = self.square + np.square(mean, dtype=np.float64).sum(axes)
        self.variance = self.variance + np.exp(logvar.astype(np.float64)).sum(axes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the sums as values that JSON can hold."""
        return {n: np.asarray(v).tolist() for n, v in dataclasses.asdict(self).items()}

    @classmethod
    def total(cls, parts: Iterable[dict[str, Any]]) -> Statistics:
        """Returns the statistics of several files together, from what `to_dict` returned."""
        total = cls()
        for part in parts:
            total.count += part["count"]
            for name in ("mean", "square", "variance"):
                setattr(total, name, getattr(total, name) + np.asarray(part[name]))
        return total

    def table(self) -> str:
        """Returns a table of the mean and the standard deviation per channel.

        Below it stands the scaling factor that makes the standard deviation of all sampled latents
        together 1.
        """
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
    """Writes the latents of one video as they come; the file appears complete or not at all.

    `finish` completes the file. `close` removes what was written of a file that was not finished.

    Args:
      path: the path of the file.
      dtype: the dtype that latents are stored in: "float32", "float16" or "bfloat16".
      content: what is stored: "mean", "moments" or "sample".

    Raises:
      OSError: if the file cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, *, dtype: str = "float32", content: str = "mean"):
        self._path, self._content, self._dtype = path, content, dtype
        self._shape: tuple[int, ...] | None = None
        self._count = 0
        self._whole = WholeFile(path)
        self._file = self._whole.file
        self._file.seek(8 + _HEADER)

    def write(self, latents: Float[np.ndarray, "n h w c"]) -> None:
        """Adds latents [n, h, w, C]; for moments, [n, h, w, 2 C]."""
        self._shape = latents.shape[1:]
        self._count += len(latents)
        self._file.write(
            np.ascontiguousarray(latents, getattr(ml_dtypes, self._dtype, self._dtype))
        )

    def finish(self, info: LatentsInfo) -> None:
        """Writes what is known only in the end, and gives the file its name.

        Raises:
          LatentsError: if what the file says about itself is too long.
        """
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
        """Removes what was written, unless the file was finished."""
        self._whole.close()


class LatentsFile:
    """An open file of latents.

    Args:
      path: the path of the file.

    Attributes:
      path: the path of the file.
      info: what the file says about itself.
      shape: the shape of the stored array, [t, h, w, C], or [t, h, w, 2 C] for moments.

    Raises:
      LatentsError: if there is no such file, or it is damaged, or holds no latents.
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

    def read(self, start: int = 0, stop: int | None = None) -> Float32[np.ndarray, "n h w c"]:
        """Reads the latent frames from `start` up to `stop`, float32 [n, h, w, C].

        For moments it reads the mean. None for `stop` reads to the end.
        """
        return self._part(start, stop, 0)

    def read_logvar(
        self, start: int = 0, stop: int | None = None
    ) -> Float32[np.ndarray, "n h w c"]:
        """Reads the log-variance of the latent frames from `start` up to `stop`.

        Returns:
          float32 [n, h, w, C].

        Raises:
          LatentsError: if the file does not hold moments.
        """
        if self.info.content != "moments":
            raise LatentsError(f"{self.path} holds the {self.info.content}, not the moments.")
        return self._part(start, stop, 1)

    def _part(self, start, stop, which):
        stored = self._slice[start : self.shape[0] if stop is None else stop]
        parts = 2 if self.info.content == "moments" else 1
        return np.split(stored.astype(np.float32), parts, axis=-1)[which]

    def blocks(self, length: int) -> Iterator[Float32[np.ndarray, "n h w c"]]:
        """Yields the latents in blocks, float32 [n, h, w, C].

        The first block has `length` + 1 latent frames, the others have `length`, and the last has
        what is left.
        """
        start, stop = 0, length + 1
        while start < self.shape[0]:
            yield self.read(start, min(stop, self.shape[0]))
            start, stop = stop, stop + length


def find_latents(path: str | os.PathLike) -> list[Path]:
    """Returns the files of latents anywhere below a folder, sorted; or the one file `path` is.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is no file of latents below the folder.
    """
    return list(map(Path, find_files(path, frozenset([SUFFIX]), "file of latents")))
