"""What is made of stored latents when they are read, and which frames they stand for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from odvae_jax.latents.records import NUMPY
from odvae_jax.latents.scale import Scale
from odvae_jax.latents.schema import DTYPES, InTime, LatentsError

VIEWS = ("stored", "mean", "moments", "sample")
"""What latents can be read as."""
# Which views can be made of what is stored.
_MADE_OF = {
    "mean": ("stored", "mean"),
    "sample": ("stored", "sample"),
    "moments": VIEWS,
}


@functools.lru_cache(maxsize=1024)
def frames_of(in_time: InTime, first: int, count: int, frames: int) -> Int64[np.ndarray, "count 2"]:
    """Returns the first and the last video frame that each of some latent frames stands for.

    Latent frame 0 of a clip stands for its frame 0. With a compression of c, latent frame j stands
    for the frames c (j - 1) + 1 to c j: of OD-VAE and CV-VAE, 4 j - 3 to 4 j; of an image model and
    SVD-VAE, frame j. The last latent frame stands for fewer if the clip's frames do not fill it.
    OPS-VAE counts groups of 4 frames from the end of each micro clip.

    Args:
      in_time: how the model's latent frames stand for frames (see `schema.in_time`).
      first: the number of the first of these latent frames in the clip.
      count: the number of latent frames.
      frames: the number of frames of the clip.

    Returns:
      The numbers of frames in the clip, [count, 2]; it cannot be written to.
    """
    numbers, c = np.arange(first, first + count), in_time.compression
    if in_time.micro_clip is None:
        firsts, lasts = c * (numbers - 1) + 1, np.minimum(c * numbers, frames - 1)
        begins = np.zeros_like(numbers)
    else:
        micro_clips, places = np.divmod(numbers, in_time.latents_per_micro_clip)
        begins = micro_clips * in_time.micro_clip
        missing = -np.minimum(in_time.micro_clip, frames - begins) % c
        firsts = begins + c * places - missing
        lasts = firsts + c - 1
    both = np.stack([np.maximum(firsts, begins), lasts], axis=1)
    both.setflags(write=False)
    return both


@dataclasses.dataclass(frozen=True)
class View:
    """What latents are read as.

    Attributes:
      content: what the dataset stores: "mean", "moments" or "sample".
      name: one of `VIEWS`.
      scale: what latents are normalised with; None leaves them as the encoder gave them.
      dtype: "float32", "float16" or "bfloat16"; None is float32, or of "stored" what is stored.

    Raises:
      ValueError: if there is no such view of what is stored.
    """

    content: str
    name: str
    scale: Scale | None
    dtype: str | None

    def __post_init__(self):
        if self.name not in VIEWS:
            raise ValueError(f"view={self.name!r} is not known; there are {list(VIEWS)}.")
        if self.name not in _MADE_OF[self.content]:
            raise LatentsError(
                f"the dataset stores the {self.content} of posteriors, so view={self.name!r} "
                f"cannot be had; there are {list(_MADE_OF[self.content])}. A dataset of moments "
                "gives all."
            )
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype={self.dtype!r} is not known; there are {list(DTYPES)}.")
        if self.name == "stored" and self.scale is not None:
            raise ValueError(
                "view='stored' gives values as they are stored; for normalised ones take "
                f"{list(_MADE_OF[self.content][1:])}."
            )

    def __call__(
        self, stored: Float[np.ndarray, "n h w c"], seed: Sequence[int]
    ) -> Float[np.ndarray, "n h w d"]:
        """Returns what is made of stored latents.

        Args:
          stored: the latents as they are stored.
          seed: what the noise of a sample depends on.
        """
        if self.name == "stored":
            return stored if self.dtype is None else stored.astype(self._numpy, copy=False)
        if self.content != "moments":
            made = stored.astype(np.float32)
        elif self.name == "mean":
            made = stored[..., : stored.shape[-1] // 2].astype(np.float32)
        elif self.name == "sample":
            made = _drawn(stored, seed)
        else:
            return self._moments(stored)
        if self.scale is not None:
            made = self.scale.normalise(made)
        return made.astype(self._numpy, copy=False)

    def _moments(self, stored):
        moments = stored.astype(np.float32)
        if self.scale is not None:
            mean, logvar = np.split(moments, 2, axis=-1)
            std = self.scale.std if self.scale.measured else (1 / self.scale.factor,)
            mean[...] = self.scale.normalise(mean)
            logvar -= 2 * np.log(np.asarray(std, np.float64)).astype(np.float32)
        return moments.astype(self._numpy, copy=False)

    @property
    def _numpy(self) -> np.dtype:
        return NUMPY[self.dtype or "float32"]


def _drawn(stored, seed):
    mean, logvar = np.split(stored.astype(np.float32), 2, axis=-1)
    noise = np.random.default_rng(seed).standard_normal(mean.shape, np.float32)
    noise *= np.exp(0.5 * logvar)
    noise += mean
    return noise
