"""The models that are compared: autoencoders of every layout, and the mean over blocks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from einops import reduce, repeat
from jaxtyping import Array, Float

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import digest
from odvae_jax.config import without_scale
from odvae_jax.files import printable
from odvae_jax.inference import decode, encode
from odvae_jax.parameters import named_parameters
from odvae_jax.tiling import TemporalTiling
from odvae_jax.training.raw_weights import load_raw
from odvae_jax.types import AnyArray


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BlockMean:
    """A model that replaces each block of pixels by its mean, as a floor for the autoencoders.

    A block holds the pixels that one position of an autoencoder's latents stands for.

    Attributes:
      time_compression: the number of frames in a block.
      space_compression: the number of rows and of columns in a block.
    """

    time_compression: int
    space_compression: int


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model that is compared with others.

    Attributes:
      label: the model's name in tables and figures.
      source: the path or hub id that the model was loaded from.
      model: the autoencoder, or the mean over blocks.
      digest: hexadecimal digits that tell the model's config and parameters from others; for the
        mean over blocks, the sides of a block.
    """

    label: str
    source: str
    model: ODVAE | BlockMean
    digest: str

    @property
    def time_compression(self) -> int:
        """The number of frames that one latent frame stands for, after the first."""
        if isinstance(self.model, BlockMean):
            return self.model.time_compression
        return self.model.config.time_compression

    @property
    def space_compression(self) -> int:
        """The number of rows, and of columns, that one position of the latents stands for."""
        if isinstance(self.model, BlockMean):
            return self.model.space_compression
        return self.model.config.space_compression

    @property
    def dtype(self) -> str:
        """The dtype that the model computes in."""
        return "float32" if isinstance(self.model, BlockMean) else self.model.config.dtype

    @property
    def vcpr(self) -> int:
        """The number of video positions per position of the latents (VCPR, Table 1)."""
        return self.time_compression * self.space_compression**2

    @property
    def parameters(self) -> int:
        """The number of parameters that the model has."""
        return sum(p.size for p in jax.tree.leaves(self.model))


def contender(label: str, source: str, model: ODVAE) -> Contender:
    """Returns a model as a contender, with the digest of its config and parameters.

    Args:
      label: the model's name in tables and figures. What cannot be printed of it is replaced.
      source: the path or hub id that the model was loaded from.
      model: the autoencoder.
    """
    found = digest(without_scale(model.config.to_dict()), named_parameters(model))
    return Contender(printable(label), source, model, found)


def floor(time_compression: int, space_compression: int) -> Contender:
    """Returns the mean over blocks as a contender, which every autoencoder must beat.

    Args:
      time_compression: the number of frames in a block.
      space_compression: the number of rows and of columns in a block.
    """
    block = f"{time_compression}×{space_compression}×{space_compression}"
    label = f"mean of {block} blocks"
    return Contender(label, label, BlockMean(time_compression, space_compression), block)


def load_contenders(
    checkpoints: Sequence[str], *, raw: bool = False, verify: bool = True, **overrides: str
) -> list[Contender]:
    """Loads models and gives each a label of its own.

    Args:
      checkpoints: one `LABEL=PATH`, or a path alone, per model. A path may also be a hub id, as
        `ODVAE.from_pretrained` takes it. Of a training run the EMA weights are loaded.
      raw: whether the raw weights of training runs are loaded instead, from their last checkpoints.
      verify: whether the files of models are compared with the digests that were written with them;
        checkpoints of runs always are.
      **overrides: config fields to change, such as `dtype`.

    Raises:
      ValueError: if two labels are equal, or a file holds no model that is known.
      FileNotFoundError: if a model is missing.
    """
    named = []
    for text in checkpoints:
        label, equals, path = text.partition("=")
        named.append((label, path) if equals and not Path(text).exists() else ("", text))
    paths = [path for _, path in named]
    labels = [printable(label or _shortest(path, paths)) for label, path in named]
    if doubled := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"several models are called {doubled}; name them with LABEL=PATH.")
    load = load_raw if raw else functools.partial(ODVAE.from_pretrained, verify=verify)
    return [
        contender(label, path, load(path, **overrides))
        for label, (_, path) in zip(labels, named, strict=True)
    ]


def _shortest(path: str, paths: list[str]) -> str:
    """Returns as many of the last parts of a path as tell it from the other paths."""
    parts = Path(path).parts
    for count in range(1, len(parts) + 1):
        tail = parts[-count:]
        if sum(Path(p).parts[-count:] == tail for p in paths) == 1:
            return "/".join(tail)
    return path


def reconstruct(
    model: ODVAE | BlockMean, video: Float[Array, "b t h w 3"], tiling: TemporalTiling | None
) -> Float[Array, "b t h w 3"]:
    """Returns a video in [-1, 1] after the encoder and the decoder.

    The latents are the posterior's mean. The result is float32 and not clipped to [-1, 1].

    Args:
      model: the autoencoder, or the mean over blocks.
      video: [B, T, H, W, 3] in [-1, 1].
      tiling: how the video is cut in time; None takes it whole.
    """
    if isinstance(model, BlockMean):
        sides = model.time_compression, model.space_compression
        return jax.vmap(lambda clip: block_mean(clip, *sides))(video)
    latents = encode(model, video, tiling=tiling).mode()
    return decode(model, latents, tiling=tiling)


def block_mean(clip: Float[AnyArray, "t h w c"], time: int, space: int) -> Float[Array, "t h w c"]:
    """Returns a clip with each block of `time` × `space` × `space` pixels averaged.

    The blocks of the first frame are 1 × `space` × `space`.
    """
    parts = [clip[:1]] if time > 1 else []
    grid = dict(y=space, x=space)
    means = [
        repeat(
            reduce(part, "(n t) (h y) (w x) c -> n h w c", "mean", t=t, **grid),
            "n h w c -> (n t) (h y) (w x) c",
            t=t,
            **grid,
        )
        for part, t in [(p, 1) for p in parts] + [(clip[len(parts) :], time)]
        if len(part)
    ]
    return jnp.concatenate(means)


def parameter_count(value: int) -> str:
    """Returns a number of parameters as text for a table, such as "239.19M" for 239189991."""
    return "–" if value == 0 else f"{value / 1e6:.2f}M" if value >= 1e4 else str(value)
