"""What all baselines share: their common face, the fields of their configs, and codes."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from odvae_jax import checks, registry
from odvae_jax.config import (
    IMAGE_CHANNELS,
    MOST_CHANNELS,
    ODVAEConfig,
    check_scale,
    fields_of,
    numeric,
    positive_integers,
    without_scale,
)
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.scale import Scale
from odvae_jax.sharding import check_rows, sharding_of, with_automatic_axes
from odvae_jax.types import AnyArray

_MOST_SCORES = 2**28  # the most scores of codes in memory at once; they take 1 GiB


class Buffer(nnx.Param):
    """Values that a model needs and that are saved with it, but that no gradient has trained.

    Reference implementations do not count them as parameters.
    """


class Constant(Buffer):
    """A buffer that no count of a model's size has, such as the statistics of batch norms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """The fields that the configs of all baselines have; the defaults are the released model.

    Attributes:
      width: the channels that the widths of all levels are multiples of.
      dtype: the dtype of the computation, as in `ODVAEConfig`. Statistics of norms, what a code or
        a posterior is made of, and the decoded video are float32 in any case.
      param_dtype: the dtype of the parameters.
      precision: the precision of float32 convolutions and products, as in `ODVAEConfig`.

    Raises:
      ValueError: if a field has a value that no model can have. The message names the field.
    """

    model: ClassVar[str]
    """The model's name in `config.json`, a key of `odvae_jax.baselines.MODELS`."""
    name: ClassVar[str]
    """The model's name in tables, such as "VQGAN"."""
    time_compression: ClassVar[int] = 1
    """The number of frames per latent frame."""
    space_compression: ClassVar[int] = 8
    """The number of rows, and of columns, per position of the latents."""
    first_frames: ClassVar[int] = 0
    """The frames that a clip has beside a multiple of `frame_step`: 0, or 1 for 4k + 1."""
    frame_step: ClassVar[int] = 1
    """The step between the numbers of frames that the model takes."""
    latent_channels: ClassVar[int | None] = None
    """The channels of a latent; None for codes."""
    needs_frames: ClassVar[bool] = False
    """Whether the decoder must be told how many frames a clip had."""
    changeable: ClassVar[tuple[str, ...]] = ("dtype", "param_dtype", "precision")
    """Fields that weights do not decide."""
    without_influence: ClassVar[tuple[str, ...]] = changeable
    """Fields that do not decide what a clip is encoded to, but for rounding."""

    width: int = 128
    dtype: jax.typing.DTypeLike = "float32"
    param_dtype: jax.typing.DTypeLike = "float32"
    precision: Literal["default", "high", "highest"] = "default"

    def __post_init__(self):
        numeric(self)
        positive_integers(self, "width")
        if self.width > MOST_CHANNELS // 16:
            raise ValueError(
                f"width={self.width} makes a layer of more than {MOST_CHANNELS} channels."
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BaselineConfig:
        """Returns the config with these fields, and with defaults for the others.

        Raises:
          ValueError: if a field does not exist. The message has the nearest that does.
        """
        return cls(**fields_of(cls, fields))

    def to_dict(self) -> dict[str, Any]:
        """Returns every field, as values that JSON can hold."""
        return dataclasses.asdict(self)

    @property
    def codes(self) -> int | None:
        """The number of codes that a latent is one of; None for continuous latents."""
        return None

    @property
    def scale(self) -> Scale | None:
        """How latents are normalised for a diffusion model; None for codes."""
        return None

    @property
    def training_parameters(self) -> int:
        """The parameters that the reference counts, and that only its training needs."""
        return 0

    def layers(self, **fields: Any) -> ODVAEConfig:
        """Returns what the layers of `odvae_jax.layers` are told of this model: its dtypes.

        Args:
          **fields: other fields of the image model's config, such as `groups` or `dtype`.
        """
        numbers = {n: getattr(self, n) for n in ("dtype", "param_dtype", "precision")}
        return ODVAEConfig.image(**{"width": fields.get("groups", 32), **numbers, **fields})

    def taken(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the largest clip that the model takes of a clip, (T, H, W).

        The clip is to be cut at its end, at the bottom and on the right.

        Raises:
          ValueError: if the clip is too short or too small for the model.
        """
        step, first, side = self.frame_step, self.first_frames, self.space_compression
        t = (frames - first) // step * step + first
        h, w = (n // side * side for n in (height, width))
        least = (first or step, side, side)
        if any(n < m for n, m in zip((t, h, w), least, strict=True)):
            raise ValueError(
                f"{self.name} takes no part of a clip of {frames} frames of {height}×{width}: it "
                f"needs at least {least[0]} of {side}×{side}."
            )
        return t, h, w

    def clip_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the smallest size that the model takes that holds these frames, rows and columns.

        `taken` is the largest size that they hold.
        """
        step, first, side = self.frame_step, self.first_frames, self.space_compression
        t = max(-(-(frames - first) // step) * step, 0 if first else step) + first
        return t, -(-height // side) * side, -(-width // side) * side

    def latent_frames(self, frames: int) -> int:
        """Returns the number of latent frames of a clip that the model takes."""
        return -(-frames // self.time_compression)

    def frames_of(self, latent_frames: int, frames: int | None = None) -> int:
        """Returns the number of frames that latents are decoded to.

        Args:
          latent_frames: the number of latent frames.
          frames: the number of frames of the clip that was encoded; None if it is not known.

        Raises:
          ValueError: if a clip of `frames` frames does not have so many latent frames.
        """
        first = self.first_frames
        decoded = (latent_frames - first) * self.time_compression + first
        if frames not in (None, decoded):
            raise ValueError(
                f"frames={frames} does not fit {latent_frames} latent frames, which {self.name} "
                f"decodes to {decoded}: leave frames out, or give the latents of that clip."
            )
        return decoded

    def latent_shape(self, video_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the latents of a video of shape [B, T, H, W, 3].

        It is [B, t, h, w, C], or [B, t, h, w] for codes.
        """
        b, t, h, w, _ = video_shape
        side = self.space_compression
        shape = (b, self.latent_frames(t), h // side, w // side)
        return shape if self.latent_channels is None else (*shape, self.latent_channels)

    def video_shape(
        self, latent_shape: tuple[int, ...], frames: int | None = None
    ) -> tuple[int, int, int, int, int]:
        """Returns the shape of the video that latents of a shape are decoded to.

        Args:
          latent_shape: the shape of the latents, [B, t, h, w, C] or [B, t, h, w].
          frames: the number of frames of the clip that was encoded; None if it is not known.
        """
        b, t, h, w = latent_shape[:4]
        side = self.space_compression
        return (b, self.frames_of(t, frames), h * side, w * side, IMAGE_CHANNELS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousConfig(BaselineConfig):
    """The fields of the config of a baseline with a Gaussian posterior over latents.

    Attributes:
      latent_channels: channels of a latent.
      scaling_factor: one number that latents are multiplied by before diffusion, if their mean and
        deviation per channel were not measured.
      latents_mean: the mean of sampled latents per channel; None if nobody measured it. It changes
        nothing that a model computes.
      latents_std: their standard deviation per channel; given if `latents_mean` is.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        *BaselineConfig.changeable,
        "scaling_factor",
        "latents_mean",
        "latents_std",
    )
    without_influence: ClassVar[tuple[str, ...]] = changeable

    latent_channels: int = 4
    scaling_factor: float = 0.18215
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        positive_integers(self, "latent_channels")
        if self.latent_channels > MOST_CHANNELS:
            raise ValueError(
                f"latent_channels={self.latent_channels} is more than {MOST_CHANNELS}."
            )
        check_scale(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field, as values that JSON can hold.

        The mean and the deviation of latents are there only if they were measured.
        """
        fields = super().to_dict()
        return fields if self.scale.measured else without_scale(fields)

    @property
    def scale(self) -> Scale:
        """How latents are normalised: per channel if that was measured, else by the factor."""
        return Scale(self.latents_mean, self.latents_std, self.scaling_factor)


@jax.tree_util.register_pytree_node_class
class Codes:
    """What a model with a quantiser encodes a clip to; a pytree of one array.

    Attributes:
      codes: the number of the code at each position, int32 [B, t, h, w].
    """

    codes: Int[AnyArray, "b t h w"]

    def __init__(self, codes: Int[AnyArray, "b t h w"]):
        self.codes = codes

    def mode(self) -> Int[AnyArray, "b t h w"]:
        """Returns the codes, which `decode` takes."""
        return self.codes

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """Returns the codes as a leaf, for JAX."""
        return (self.codes,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Iterable[Any]) -> Codes:
        """Makes codes of what `tree_flatten` returned, for JAX, with leaves of any kind."""
        codes = object.__new__(cls)
        (codes.codes,) = children
        return codes

    def __repr__(self) -> str:
        return f"Codes({self.codes!r})"


class Baseline(nnx.Module, registry.Saved):
    """An autoencoder of the paper's Table 1 beside OD-VAE, with the face that all have.

    A subclass has a `config_class`, builds its layers in `__init__`, and defines `to_latents` and
    `to_video`. It is a pytree: pass it to `jax.jit` as an argument.

    Args:
      config: the config of the model; its defaults are the released model.

    Attributes:
      config: the config of the model.

    Raises:
      ValueError: if `config` is not of the model's class of configs.
    """

    config_class: ClassVar[type[BaselineConfig]]

    def __init__(self, config: BaselineConfig):
        if not isinstance(config, self.config_class):
            wanted = self.config_class.__name__
            raise ValueError(
                f"config is a {type(config).__name__}, not a {wanted}: use {wanted}()."
            )
        self.config = config

    def encode(self, video: Float[AnyArray, "b t h w 3"]) -> DiagonalGaussian | Codes:
        """Returns the posterior over the latents of a video, or its codes.

        Args:
          video: floating point in [-1, 1], [B, T, H, W, 3], of a shape that the model takes:
            `config.taken` tells which.

        Raises:
          ValueError: if the shape or the dtype is another, with the nearest shape that would do; or
            if the rows are spread over too many devices.
        """
        self.check_video(video)
        latents = encode_clip(self, video)
        return Codes(latents) if self.config.codes else DiagonalGaussian.from_moments(latents)

    def decode(
        self,
        latents: Float[AnyArray, "b t h w c"] | Int[AnyArray, "b t h w"],
        *,
        frames: int | None = None,
    ) -> Float[Array, "b u v x 3"]:
        """Returns the video of latents, or of codes: float32, about [-1, 1], not clipped.

        Args:
          latents: what the mode of an encoding is: floating point [B, t, h, w, C], unscaled, or
            codes, whole numbers [B, t, h, w].
          frames: the number of frames of the clip that was encoded. Most models do not need it.

        Raises:
          ValueError: if `latents` are not of the model's kind and channels, if `frames` does not
            fit them or the model needs it, or if the rows are spread over too many devices.
        """
        self._check_latents(latents)
        shape = tuple(jnp.shape(latents))
        frames = self.config.frames_of(shape[1], frames)
        check_rows("latents", shape, sharding_of(latents), 1)
        return decode_clip(self, latents, frames)

    def reconstruct(self, video: Float[AnyArray, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
        """Returns the video that the decoder makes of the mode of a video's encoding, in float32.

        Args:
          video: floating point in [-1, 1], [B, T, H, W, 3], of a shape that the model takes.

        Raises:
          ValueError: if the shape or the dtype is another, with the nearest shape that would do; or
            if the rows are spread over too many devices.
        """
        return self.decode(self.encode(video).mode(), frames=jnp.shape(video)[1])

    def to_latents(self, video: Float[Array, "b t h w 3"]) -> Array:
        """Returns moments [B, t, h, w, 2 C] in float32, or codes int32 [B, t, h, w].

        It is a plain function that neither checks nor compiles.
        """
        raise NotImplementedError

    def to_video(self, latents: Array, frames: int) -> Float[Array, "b u v y 3"]:
        """Returns what `decode` returns, as a plain function that neither checks nor compiles."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **arguments: Any) -> Baseline:
        """Loads a model of this class, from this package's layout or the published ones.

        Args:
          source: a folder, a file of weights or a hub id; see `odvae_jax.from_pretrained`.
          **arguments: `revision`, `subfolder`, `verify`, or config fields to change that change no
            parameter's shape, such as `dtype="bfloat16"`.

        Raises:
          FileNotFoundError: if the source or one of its files is missing.
          ValueError: if the files hold no such model, are damaged, or hold values that are not
            finite.
        """
        return registry.load_as(cls, source, **arguments)

    def check_video(self, video: Any) -> None:
        """Checks that a video can be encoded.

        Raises:
          ValueError: if it cannot, with the nearest shape that can, or if its rows are spread over
            too many devices.
        """
        c = self.config
        shape = checks.check_floats(video)
        checks.check_clip_shape(shape, c.frame_step, c.first_frames, c.space_compression)
        check_rows("video", shape, sharding_of(video), c.space_compression)

    def _check_latents(self, latents: Any) -> None:
        c = self.config
        if c.codes is None:
            checks.check_channels(latents, c.latent_channels)
            return
        checks.check_array("latents", latents)
        shape, dtype = tuple(jnp.shape(latents)), jnp.result_type(latents)
        if len(shape) != 4 or 0 in shape or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"latents are {dtype} of shape {shape}; {c.name} decodes codes, int32 [B, t, h, w]."
            )
        if isinstance(latents, np.ndarray) and not 0 <= latents.min() <= latents.max() < c.codes:
            raise ValueError(
                f"codes are {latents.min()} to {latents.max()}; this model has codes 0 to "
                f"{c.codes - 1}: they are another model's."
            )


class ParameterCounts(NamedTuple):
    """How large a model is.

    Attributes:
      reference: the parameters that the reference implementation counts, as the paper does.
      autoencoder: the parameters of the autoencoder alone.
      codebook: the values of a codebook that is no parameter, since no gradient has trained it.
    """

    reference: int
    autoencoder: int
    codebook: int


def parameter_counts(model: Baseline) -> ParameterCounts:
    """Returns the number of parameters of a model; it may be abstract."""
    leaves = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Param))

    def count(left_out: type) -> int:
        return sum(math.prod(p.shape) for p in leaves if not isinstance(p, left_out))

    own = count(Buffer)
    return ParameterCounts(own + model.config.training_parameters, own, count(Constant) - own)


@jax.jit
def encode_clip(model: Baseline, video: Float[Array, "b t h w 3"]) -> Array:
    """Returns moments or codes of whole clips in [-1, 1]; it is compiled and checks nothing."""
    shape = model.config.latent_shape(video.shape)
    run = type(model).to_latents
    return with_automatic_axes(run, (model, video), shape)(model, video)


@functools.partial(jax.jit, static_argnames="frames")
def decode_clip(model: Baseline, latents: Array, frames: int) -> Float[Array, "b t h w 3"]:
    """Returns the video of latents or codes; it is compiled and checks nothing."""
    shape = model.config.video_shape(latents.shape, frames)
    run = functools.partial(_to_video, frames=frames)
    return with_automatic_axes(run, (model, latents), shape)(model, latents)


def _to_video(model, latents, frames):
    return model.to_video(latents, frames)


def in_chunks(
    run: Callable[[Array], Array], x: Float[Array, "b t *rest"], length: int | None
) -> Shaped[Array, "b u *out"]:
    """Returns a function's results for the chunks of a clip, joined in time; no chunk sees another.

    Args:
      run: maps a chunk [B, n, ...] to its result [B, m, ...].
      x: the clip.
      length: the frames of a chunk, of which the last one may have fewer; None takes the clip
        whole.
    """
    t = x.shape[1]
    whole = 1 if length is None or length >= t else t // length
    if whole == 1:
        length = t if length is None else min(length, t)
    parts, rest = x[:, : whole * length], x[:, whole * length :]
    if whole == 1:
        results = [run(parts)]
    else:  # one after another, in one loop of the program
        b = x.shape[0]
        parts = jnp.moveaxis(parts.reshape(b, whole, length, *x.shape[2:]), 1, 0)
        y = jnp.moveaxis(jax.lax.map(run, parts), 0, 1)
        results = [y.reshape(b, -1, *y.shape[3:])]
    if rest.shape[1]:
        results.append(run(rest))
    return jnp.concatenate(results, axis=1)


def best_codes(
    scores: Callable[[Float[Array, "b t h w c"]], Float[Array, "b t h w n"]],
    features: Float[Array, "b t h w c"],
    codes: int,
) -> Int[Array, "b t h w"]:
    """Returns the code with the highest score at each position, the first one of equals, as int32.

    Where all scores together would take much memory, they are computed frame by frame.

    Args:
      scores: maps features to the score of each code.
      features: the features of a clip.
      codes: the number of codes.
    """

    def best(frames):
        return jnp.argmax(scores(frames), axis=-1).astype(jnp.int32)

    b, t, h, w, _ = features.shape
    return in_chunks(best, features, None if b * t * h * w * codes <= _MOST_SCORES else 1)
