"""What is compared: autoencoders of every kind and layout, and the mean over blocks."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from einops import reduce, repeat
from jaxtyping import Array, Float

from odvae_jax import registry, shipped
from odvae_jax.baselines.base import (
    Baseline,
    BaselineConfig,
    ParameterCounts,
    parameter_counts,
)
from odvae_jax.baselines.ops_vae import OPSVAEConfig
from odvae_jax.checkpoints.native import CONFIG_FILE, digest
from odvae_jax.checkpoints.pretrained import RUN_MODEL_FOLDER
from odvae_jax.config import IMAGE_CHANNELS, without_scale
from odvae_jax.evaluation.outside import Outside
from odvae_jax.files import counted, printable
from odvae_jax.inference import decode, encode
from odvae_jax.parameters import Autoencoder, Config, named_parameters, with_config
from odvae_jax.tiling import TemporalTiling
from odvae_jax.training.raw_weights import load_raw
from odvae_jax.types import AnyArray

logger = logging.getLogger(__name__)
_WEIGHTS = ("raw", "ema")  # behind the @ of a training run
_BITS = 8  # per value of a video


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

    def taken(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the largest clip that consists of whole blocks, (T, H, W).

        Its frames are a multiple of the frames in a block, or one more: the first frame then has
        blocks of its own.

        Raises:
          ValueError: if the clip is smaller than a block.
        """
        t, side = self.time_compression, self.space_compression
        whole = frames - max(frames % t - 1, 0)
        return _at_least_one("a mean of blocks", (whole, height, width), (1, side, side))

    def blocks(self, frames: int, height: int, width: int) -> int:
        """Returns the number of blocks in a clip that consists of whole blocks."""
        side = self.space_compression
        return -(-frames // self.time_compression) * (height // side) * (width // side)


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is compared with others: a model, or whatever else gives reconstructions.

    Attributes:
      label: its name in tables and figures.
      source: the path, hub id or name that it was loaded from.
      model: the autoencoder, the mean over blocks, or what gives reconstructions from outside.
      digest: hexadecimal digits that tell the model's config and parameters from others; for the
        mean over blocks, the sides of a block.
      eight_bit: whether its reconstructions are rounded to 8 bits before they are measured.
      remarks: what a reader of the table has to know about it, in whole sentences.
    """

    label: str
    source: str
    model: Autoencoder | BlockMean | Outside
    digest: str
    eight_bit: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The label as it stands in tables, which marks reconstructions in 8 bits."""
        return f"{self.label} (8 bit)" if self.eight_bit else self.label

    @property
    def compression(self) -> tuple[int, int] | None:
        """The number of frames, and of rows and columns, per position of the latents.

        It is None if nothing is known of latents.
        """
        if isinstance(self.model, Outside):
            return None
        which = self.model if isinstance(self.model, BlockMean) else self.model.config
        return which.time_compression, which.space_compression

    @property
    def dtype(self) -> str:
        """The dtype that the model computes in."""
        if isinstance(self.model, BlockMean | Outside):
            return "float32"
        return self.model.config.dtype

    @property
    def vcpr(self) -> int | None:
        """The number of video positions per position of the latents (VCPR, Table 1), if known."""
        return None if self.compression is None else self.compression[0] * self.compression[1] ** 2

    @property
    def codes(self) -> int | None:
        """The number of codes that a latent is one of; None for continuous latents."""
        model = self.model
        return model.config.codes if isinstance(model, Baseline) else None

    @property
    def parameters(self) -> ParameterCounts:
        """The number of parameters, as the model's reference counts them and of the model alone."""
        if isinstance(self.model, BlockMean | Outside):
            return ParameterCounts(0, 0, 0)
        return count_parameters(self.model)

    def taken(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the largest clip that the model takes of a clip, (T, H, W).

        Raises:
          ValueError: if the clip is too short or too small for the model.
        """
        size = (frames, height, width)
        if isinstance(self.model, Outside):
            return size
        return (
            self.model.taken(*size)
            if isinstance(self.model, BlockMean)
            else taken(self.model.config, *size)
        )

    def by_values(self, frames: int, height: int, width: int) -> float | None:
        """Returns the compression of a clip by values, of a size that the model takes.

        It is the number of a video's values per value of the latents. Of codes it is the number of
        bits of a uint8 video per bit of the codes, of which each has log2 of the number of codes.
        It is None if nothing is known of latents.
        """
        if isinstance(self.model, Outside):
            return None
        values = frames * height * width * IMAGE_CHANNELS
        if isinstance(self.model, BlockMean):
            return values / (IMAGE_CHANNELS * self.model.blocks(frames, height, width))
        latents = math.prod(self.model.config.latent_shape((1, frames, height, width, 3)))
        return values / latents * (_BITS / math.log2(self.codes) if self.codes else 1)


def taken(config: Config, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Returns the largest clip that a model takes of a clip, (T, H, W).

    The clip is to be cut at its end, at the bottom and on the right.

    Args:
      config: the config of the model.
      frames, height, width: the size of the clip.

    Raises:
      ValueError: if the clip is too short or too small for the model.
    """
    if isinstance(config, BaselineConfig):
        return config.taken(frames, height, width)
    whole = (frames - 1) // config.time_compression * config.time_compression + 1
    side = config.space_compression
    return _at_least_one(f"a {config.name} model", (whole, height, width), (1, side, side))


def _at_least_one(name, size, least):
    t, h, w = (n // m * m for n, m in zip(size, least, strict=True))
    if min(t, h, w) < 1:
        raise ValueError(
            f"{name} takes no part of a clip of {counted(size[0], 'frame')} of "
            f"{size[1]}×{size[2]}: it needs at least {least[0]} of {least[1]}×{least[2]}."
        )
    return t, h, w


def count_parameters(model: Autoencoder) -> ParameterCounts:
    """Returns the number of parameters of a model, which may be abstract."""
    if isinstance(model, Baseline):
        return parameter_counts(model)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))
    return ParameterCounts(count, count, 0)


def contender(
    label: str, source: str, model: Autoencoder, *, remarks: Sequence[str] = ()
) -> Contender:
    """Returns a model as a contender, with the digest of its config and parameters.

    Args:
      label: the model's name in tables and figures. What cannot be printed of it is replaced.
      source: the path or hub id that the model was loaded from.
      model: the autoencoder.
      remarks: what a reader of the table has to know about it.
    """
    found = digest(without_scale(model.config.to_dict()), named_parameters(model))
    return Contender(printable(label), source, model, found, remarks=tuple(remarks))


def from_outside(label: str, source: str, model: Outside) -> Contender:
    """Returns reconstructions from outside as a contender.

    Args:
      label: its name in tables and figures. What cannot be printed of it is replaced.
      source: the folder or the name of the function.
      model: what gives the reconstructions.
    """
    kind = type(model).__name__.lower()
    return Contender(printable(label), source, model, f"{kind}-{model.digest}", eight_bit=True)


def rounded(c: Contender) -> Contender:
    """Returns a contender whose reconstructions are rounded to 8 bits before they are measured."""
    return c if c.eight_bit else dataclasses.replace(c, eight_bit=True, digest=f"8bit-{c.digest}")


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
    checkpoints: Sequence[str], *, verify: bool = True, **overrides: str
) -> list[Contender]:
    """Loads models and gives each a label of its own.

    Args:
      checkpoints: one `LABEL=MODEL`, or `MODEL` alone, per model; see `load_model`.
      verify: whether the files of models are compared with the digests that were written with them;
        checkpoints of runs always are.
      **overrides: config fields to change, such as `dtype`.

    Raises:
      ValueError: if two labels are equal, or a file holds no model that is known.
      FileNotFoundError: if a model is missing.
    """
    loaded = []
    for label, source in labels_and_sources(checkpoints):
        model, remarks = load_model(source, verify=verify, **overrides)
        loaded.append(contender(label, source, model, remarks=remarks))
    return loaded


def load_model(
    source: str, *, verify: bool = True, **arguments: Any
) -> tuple[Autoencoder, tuple[str, ...]]:
    """Loads a model as evaluation takes it, and returns it with remarks for a reader of its table.

    Of OPS-VAE, clips are taken whole, as the release's script for reconstructions does, whatever
    its file says about micro clips.

    Args:
      source: what `odvae_jax.from_pretrained` takes. For a training run, `RUN@ema` or `RUN` alone
        are the averaged weights that it has exported, and `RUN@raw` those of its last checkpoint.
      verify: whether the model's files are compared with the digests that were written with them.
      **arguments: `subfolder` and `revision` of a hub id, or config fields to change.

    Raises:
      ValueError: if the source holds no model that is known.
      FileNotFoundError: if it is missing, or is no training run where one is needed.
    """
    run, at, which = source.rpartition("@")
    is_run = at and which in _WEIGHTS and not Path(source).exists() and not shipped.on_hub(source)
    if not is_run:
        model = registry.load_autoencoder(source, verify=verify, **arguments)
        return _whole_clips(model, source)
    if from_hub := [n for n in ("subfolder", "revision") if arguments.get(n)]:
        raise ValueError(
            f"{printable(source)} is of a training run: leave out {' and '.join(from_hub)}."
        )
    if which == "raw":
        return load_raw(run, **arguments), ()
    if not any(Path(run).expanduser().glob(f"{RUN_MODEL_FOLDER}*/{CONFIG_FILE}")):
        raise FileNotFoundError(
            f"{printable(run)} holds no model that a training run has exported: leave out @ema, or "
            "take RUN@raw of a run that has none yet."
        )
    return registry.load_autoencoder(run, verify=verify, **arguments), ()


def _whole_clips(model: Autoencoder, source: str) -> tuple[Autoencoder, tuple[str, ...]]:
    micro = model.config.micro_frames if isinstance(model.config, OPSVAEConfig) else None
    if micro is None:
        return model, ()
    said = (
        f"OPS-VAE takes clips whole here, as the release's script for reconstructions does, not in "
        f"micro clips of {counted(micro, 'frame')}, as its file says."
    )
    logger.warning("%s: %s", printable(source), said)
    return with_config(model, micro_frames=None), (said,)


def labels_and_sources(checkpoints: Sequence[str], what: str = "models") -> list[tuple[str, str]]:
    """Returns a label and a source for each `LABEL=SOURCE`, or `SOURCE` alone.

    Without a label, it is as much of the source's end as tells it from the others.

    Args:
      checkpoints: the texts.
      what: what a message calls that which has the labels.

    Raises:
      ValueError: if two labels are equal.
    """
    named = []
    for text in checkpoints:
        label, equals, path = text.partition("=")
        named.append((label, path) if equals and not Path(text).exists() else ("", text))
    paths = [path for _, path in named]
    labels = [printable(label or _shortest(path, paths)) for label, path in named]
    check_labels(labels, what)
    return list(zip(labels, paths, strict=True))


def check_labels(labels: Sequence[str], what: str = "models") -> None:
    """Checks that labels differ.

    Args:
      labels: the labels.
      what: what a message calls that which has the labels.

    Raises:
      ValueError: if two are equal.
    """
    if doubled := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"several {what} are called {doubled}; name them with LABEL=PATH.")


def _shortest(path: str, paths: list[str]) -> str:
    """Returns as many of the last parts of a path as tell it from the other paths."""
    parts = Path(path).parts
    for count in range(1, len(parts) + 1):
        tail = parts[-count:]
        if sum(Path(p).parts[-count:] == tail for p in paths) == 1:
            return "/".join(tail)
    return path


def reconstruct(
    model: Autoencoder | BlockMean, video: Float[Array, "b t h w 3"], tiling: TemporalTiling | None
) -> Float[Array, "b t h w 3"]:
    """Returns a video in [-1, 1] after the encoder and the decoder.

    The latents are the posterior's mean. The result is float32 and not clipped to [-1, 1].

    Args:
      model: the autoencoder, or the mean over blocks.
      video: [B, T, H, W, 3] in [-1, 1], of a size that the model takes.
      tiling: how the video is cut in time; None takes it whole. Only OD-VAE takes another.
    """
    if isinstance(model, Baseline):
        return model.reconstruct(video)
    if isinstance(model, BlockMean):
        sides = model.time_compression, model.space_compression
        return jax.vmap(lambda clip: block_mean(clip, *sides))(video)
    latents = encode(model, video, tiling=tiling).mode()
    return decode(model, latents, tiling=tiling)


def block_mean(clip: Float[AnyArray, "t h w c"], time: int, space: int) -> Float[Array, "t h w c"]:
    """Returns a clip with each block of `time` × `space` × `space` pixels averaged.

    The blocks of the first frame are 1 × `space` × `space`, unless the number of frames is a
    multiple of `time`.
    """
    parts = [clip[:1]] if len(clip) % time else []
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
