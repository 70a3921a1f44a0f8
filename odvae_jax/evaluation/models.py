"""What is compared: autoencoders of every layout, and the mean over blocks as their floor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from einops import reduce, repeat
from jaxtyping import Array, Float

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import digest
from odvae_jax.inference import decode, encode
from odvae_jax.parameters import named_parameters
from odvae_jax.tiling import TemporalTiling
from odvae_jax.training.raw_weights import load_raw
from odvae_jax.types import AnyArray


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BlockMean:
    """The mean of each block of pixels that one latent of a model stands for.

    Attributes:
      time_compression: frames of a block.
      space_compression: rows and columns of a block.
    """

    time_compression: int
    space_compression: int


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model that is compared.

    Attributes:
      label: in tables and figures.
      source: where it came from.
      model: the autoencoder, or the floor.
      digest: of its config and parameters.
    """

    label: str
    source: str
    model: ODVAE | BlockMean
    digest: str

    @property
    def time_compression(self) -> int:
        """How many frames one latent frame stands for."""
        if isinstance(self.model, BlockMean):
            return self.model.time_compression
        return self.model.config.time_compression

    @property
    def space_compression(self) -> int:
        """Rows, and columns, that one position of the latents stands for."""
        if isinstance(self.model, BlockMean):
            return self.model.space_compression
        return self.model.config.space_compression

    @property
    def dtype(self) -> str:
        """The dtype that the model computes in."""
        return "float32" if isinstance(self.model, BlockMean) else self.model.config.dtype

    @property
    def vcpr(self) -> int:
        """Positions of the video per position of the latents (VCPR, Table 1)."""
        return self.time_compression * self.space_compression**2

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(p.size for p in jax.tree.leaves(self.model))


def contender(label: str, source: str, model: ODVAE) -> Contender:
    """A model with its digest."""
    found = digest(model.config.to_dict(), named_parameters(model))
    return Contender(label, source, model, found)


def floor(time_compression: int, space_compression: int) -> Contender:
    """The mean over the blocks that one latent stands for: what a model must beat."""
    block = f"{time_compression}×{space_compression}×{space_compression}"
    label = f"mean of {block} blocks"
    return Contender(label, label, BlockMean(time_compression, space_compression), block)


def load_contenders(
    checkpoints: Sequence[str], *, raw: bool = False, **overrides: str
) -> list[Contender]:
    """Loads models, each named by `LABEL=PATH` or by a path alone, with labels that differ.

    Args:
      checkpoints: paths or hub ids, as `ODVAE.from_pretrained` takes them; of training runs, the
        EMA weights.
      raw: take training runs' raw weights instead, from their last checkpoints.
      **overrides: config fields, such as `dtype`.

    Raises:
      ValueError, FileNotFoundError: as `ODVAE.from_pretrained`; and for two equal labels.
    """
    named = []
    for text in checkpoints:
        label, equals, path = text.partition("=")
        named.append((label, path) if equals and not Path(text).exists() else ("", text))
    labels = [label or _shortest(path, [p for _, p in named]) for label, path in named]
    if doubled := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"several models are called {doubled}; name them with LABEL=PATH.")
    load = load_raw if raw else ODVAE.from_pretrained
    return [
        contender(label, path, load(path, **overrides))
        for label, (_, path) in zip(labels, named, strict=True)
    ]


def _shortest(path: str, paths: list[str]) -> str:
    """As many of a path's last parts as tell it from the others."""
    parts = Path(path).parts
    for count in range(1, len(parts) + 1):
        tail = parts[-count:]
        if sum(Path(p).parts[-count:] == tail for p in paths) == 1:
            return "/".join(tail)
    return path


def reconstruct(
    model: ODVAE | BlockMean, video: Float[Array, "b t h w 3"], tiling: TemporalTiling | None
) -> Float[Array, "b t h w 3"]:
    """A video in [-1, 1] through encoder and decoder; latents are the posterior's mean."""
    if isinstance(model, BlockMean):
        sides = model.time_compression, model.space_compression
        return jax.vmap(lambda clip: block_mean(clip, *sides))(video)
    latents = encode(model, video, tiling=tiling).mode()
    return decode(model, latents, tiling=tiling)


def block_mean(clip: Float[AnyArray, "t h w c"], time: int, space: int) -> Float[Array, "t h w c"]:
    """The clip with each block of `time` × `space` × `space` pixels averaged.

    The first frame's blocks are 1 × `space` × `space`.
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
    """239189991 as 239.19M."""
    return "–" if value == 0 else f"{value / 1e6:.2f}M" if value >= 1e4 else str(value)
