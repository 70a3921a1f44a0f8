"""The config of a model, one frozen dataclass, and the table of variants (section 3.2, Fig. 2)."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from odvae_jax.files import counted
from odvae_jax.scale import Scale

IMAGE_CHANNELS = 3
MOST_CHANNELS = 2**16
"""The most channels that a layer can have; a config with more is damaged or hostile."""
MOST_BLOCKS = 256
"""The most residual blocks that an encoder or a decoder can have."""
GROUP_NORM_EPSILON = 1e-6

Kind = Literal["2d", "3d", "mixed"]
"""How a part convolves: "2d" per frame; "3d" causally over frames; "mixed" (residual blocks only):
the first convolution 3D, the second per frame."""

Interpolation = Literal["nearest", "linear"]
"""How frames, rows or columns are doubled."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """One row of the table of variants: levels, blocks and strides, and which parts are 2D or 3D.

    Tuples run from level 0 (full resolution) to the lowest resolution. `downsample[i]` follows
    level i of the encoder, and `upsample[i]` precedes level i of the decoder; there is one fewer of
    them than there are levels. A row of one's own is used as `ODVAEConfig(structure=Structure(…))`.

    Attributes:
      encoder_in: the encoder's input convolution.
      encoder_levels: residual blocks of each level of the encoder.
      downsample: convolutions of the downsampling after each level but the last.
      middle: residual blocks and attention at the lowest resolution, in encoder and decoder.
      decoder_levels: residual blocks of each level of the decoder.
      upsample: convolutions of the upsampling before each level but the last.
      ends: the encoder's output convolution, and the decoder's input and output convolutions.
      time_strides: by how much each resampling changes the number of frames, 1 or 2.
      space_strides: by how much each resampling changes rows and columns, 1 or 2.
      width_multipliers: channels of each level, in units of the width.
      encoder_blocks: residual blocks per level of the encoder.
      decoder_blocks: residual blocks per level of the decoder.
      decoder_width: channels of the decoder's level 0; None for those of the encoder.
      quant: whether a 1×1 convolution stands between the encoder and the moments, and another one
        between the latents and the decoder, as in SD-VAE.

    Raises:
      ValueError: for a row that no model can have, naming the field and what it may be.
    """

    encoder_in: Kind
    encoder_levels: tuple[Kind, ...]
    downsample: tuple[Kind, ...]
    middle: Kind
    decoder_levels: tuple[Kind, ...]
    upsample: tuple[Kind, ...]
    ends: Kind
    time_strides: tuple[int, ...]
    space_strides: tuple[int, ...] = (2, 2, 2)
    width_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    decoder_width: int | None = None
    quant: bool = True

    def __post_init__(self):
        for name in _TUPLES:
            if not isinstance(getattr(self, name), tuple):  # others cannot be compared or hashed
                _refuse(name, getattr(self, name), "a tuple")
        for name in ("width_multipliers", "time_strides", "space_strides"):
            value = getattr(self, name)
            if not all(_is_positive(v) for v in value):
                _refuse(name, value, "positive integers")
            object.__setattr__(self, name, tuple(map(int, value)))  # no NumPy integers
        levels = len(self.width_multipliers)
        if not levels:
            _refuse("width_multipliers", self.width_multipliers, "one positive integer per level")
        if max(self.width_multipliers) > MOST_CHANNELS:
            _refuse("width_multipliers", self.width_multipliers, f"at most {MOST_CHANNELS}")
        for name in ("encoder_blocks", "decoder_blocks"):
            if not _is_positive(getattr(self, name)):
                _refuse(name, getattr(self, name), "a positive integer")
            if getattr(self, name) * levels > MOST_BLOCKS:
                _refuse(name, getattr(self, name), f"at most {MOST_BLOCKS} on all levels together")
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.decoder_width is not None:
            if not _is_positive(self.decoder_width):
                _refuse("decoder_width", self.decoder_width, "a positive integer or None")
            object.__setattr__(self, "decoder_width", int(self.decoder_width))
        if not isinstance(self.quant, bool):
            _refuse("quant", self.quant, "True or False")
        for names, count, may_be in (
            (("encoder_levels", "decoder_levels"), levels, ("2d", "3d", "mixed")),
            (("downsample", "upsample"), levels - 1, ("2d", "3d")),
            (("time_strides", "space_strides"), levels - 1, (1, 2)),
        ):
            for name in names:
                value = getattr(self, name)
                if len(value) != count or not all(v in may_be for v in value):
                    wanted = f"{count} values, each one of {list(may_be)}: width_multipliers"
                    _refuse(name, value, f"{wanted} make {levels} levels")
        if self.middle not in ("2d", "3d", "mixed"):
            _refuse("middle", self.middle, "'2d', '3d' or 'mixed'")
        for name in ("encoder_in", "ends"):
            if getattr(self, name) not in ("2d", "3d"):
                _refuse(name, getattr(self, name), "'2d' or '3d'")
        for i, (kind, time) in enumerate(zip(self.downsample, self.time_strides, strict=True)):
            if kind == "2d" and time > 1:
                _refuse("downsample", self.downsample, f"'3d' at {i}, where the time stride is 2")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Structure:
        """The row with these fields, as JSON holds them; defaults for the others.

        Raises:
          ValueError: for a field that is missing or does not exist, naming the nearest that does.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ValueError(f"structure has no field {name!r}; {_nearest(name, known)}")
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING and field.name not in fields:
                raise ValueError(f"structure lacks the field {field.name!r}.")
        lists = {name: tuple(v) for name, v in fields.items() if isinstance(v, list)}
        return cls(**fields | lists)

    @property
    def time_compression(self) -> int:
        """How many frames one latent frame stands for, after the first."""
        return math.prod(self.time_strides)

    @property
    def space_compression(self) -> int:
        """How many rows, and how many columns, one position of the latents stands for."""
        return math.prod(self.space_strides)

    @property
    def is_image(self) -> bool:
        """Whether every part works on each frame alone, as SD-VAE does."""
        kinds = {*self.encoder_levels, *self.downsample, *self.decoder_levels, *self.upsample}
        return kinds | {self.encoder_in, self.middle, self.ends} == {"2d"}


_TUPLES = ("encoder_levels", "downsample", "decoder_levels", "upsample")
_TUPLES += ("time_strides", "space_strides", "width_multipliers")
LEVELS = ("width_multipliers", "space_strides", "encoder_blocks", "decoder_blocks", "decoder_width")
LEVELS += ("quant",)
"""Fields of a `Structure` in which a 2D model and the model inflated from it must agree."""


def _is_positive(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0


def _refuse(name, value, expected):
    raise ValueError(f"structure.{name}={value!r} cannot be; expected {expected}.")


_VARIANT_1 = Structure(
    encoder_in="3d",
    encoder_levels=("3d", "3d", "3d", "3d"),
    downsample=("3d", "3d", "3d"),
    middle="3d",
    decoder_levels=("3d", "3d", "3d", "3d"),
    upsample=("2d", "3d", "3d"),
    ends="3d",
    time_strides=(1, 2, 2),
)
_VARIANT_4 = dataclasses.replace(
    _VARIANT_1,
    encoder_in="2d",
    encoder_levels=("2d", "2d", "3d", "3d"),
    downsample=("2d", "3d", "3d"),
)
STRUCTURES: dict[str, Structure] = {
    "image": Structure(
        encoder_in="2d",
        encoder_levels=("2d", "2d", "2d", "2d"),
        downsample=("2d", "2d", "2d"),
        middle="2d",
        decoder_levels=("2d", "2d", "2d", "2d"),
        upsample=("2d", "2d", "2d"),
        ends="2d",
        time_strides=(1, 1, 1),
    ),
    "v1": _VARIANT_1,
    "v2": dataclasses.replace(
        _VARIANT_1,
        encoder_levels=("mixed", "mixed", "mixed", "mixed"),
        middle="mixed",
        decoder_levels=("mixed", "mixed", "mixed", "mixed"),
    ),
    "v3": dataclasses.replace(_VARIANT_4, decoder_levels=("2d", "2d", "3d", "3d")),
    "v4": _VARIANT_4,
}

_DTYPES = ("float32", "bfloat16", "float16")
_CHOICES = {
    "upsample": ("nearest", "linear"),
    "norm": ("clip", "frame"),
    "time_upsample": ("linear", "nearest"),
    "remat": ("none", "blocks", "convolutions"),
}


def one_of(config: Any, name: str, choices: tuple[Any, ...]) -> None:
    """Checks that a field of a config has one of a few values.

    Raises:
      ValueError: if it has another one. The message lists them.
    """
    if getattr(config, name) not in choices:
        raise ValueError(
            f"{name}={getattr(config, name)!r} is not known; it may be one of {list(choices)}."
        )


def numeric(config: Any) -> None:
    """Checks the fields of a config that say how a model computes: dtypes and the precision.

    The dtypes, `dtype` and `param_dtype`, become their names.

    Raises:
      ValueError: if a field has a value that is not supported. The message names the field.
    """
    one_of(config, "precision", ("default", "high", "highest"))
    for name in ("dtype", "param_dtype"):
        value = getattr(config, name)
        try:
            dtype = jnp.dtype(value)
        except TypeError as error:
            near = difflib.get_close_matches(str(value), _DTYPES, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{name}={value!r} names no dtype.{hint} There are {list(_DTYPES)}."
            ) from error
        if dtype.name not in _DTYPES:
            raise ValueError(f"{name}={dtype.name!r} is not supported; there are {list(_DTYPES)}.")
        object.__setattr__(config, name, dtype.name)


def positive_integers(config: Any, *names: str) -> None:
    """Checks that fields of a config are positive integers, and makes them plain ones.

    Raises:
      ValueError: if one is not. The message names the field.
    """
    for name in names:
        value = getattr(config, name)
        if not _is_positive(value):
            raise ValueError(f"{name}={value!r} must be a positive integer.")
        object.__setattr__(config, name, int(value))


def check_scale(config: Any) -> None:
    """Checks the scale of a config's latents, and makes mean and deviation tuples of floats.

    Args:
      config: a config with the fields `latent_channels`, `scaling_factor`, `latents_mean` and
        `latents_std`.

    Raises:
      ValueError: if the factor is not a positive number, or mean and deviation are not one number
        per channel each.
    """
    factor = config.scaling_factor
    if not isinstance(factor, (int, float)) or isinstance(factor, bool):
        raise ValueError(f"scaling_factor={factor!r} must be a positive number.")
    if not 0 < factor < float("inf"):
        raise ValueError(f"scaling_factor={factor!r} must be a positive number.")
    try:
        scale = Scale(config.latents_mean, config.latents_std, factor)
    except ValueError as error:
        raise ValueError(f"latents_mean and latents_std: {error}") from error
    if scale.measured and len(scale.mean) != config.latent_channels:
        raise ValueError(
            f"latents_mean and latents_std have {counted(len(scale.mean), 'value')}; expected "
            f"latent_channels={config.latent_channels}, one per channel."
        )
    object.__setattr__(config, "latents_mean", scale.mean)
    object.__setattr__(config, "latents_std", scale.std)


def fields_of(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns fields of a config as JSON holds them, with tuples for lists.

    Raises:
      ValueError: if the config has no such field. The message has the nearest that it has.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            raise ValueError(f"model config field {name!r} is not known; {_nearest(name, known)}")
    return {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}


@dataclasses.dataclass(frozen=True)
class ODVAEConfig:
    """The hyper-parameters of a model; made with `ODVAEConfig.variant(n)` or `ODVAEConfig.image()`.

    Attributes:
      structure: "v1" to "v4" (the paper's variants), "image" (the 2D ancestor, applied per frame),
        or a row of one's own, a `Structure`.
      width: channels of level 0; the other levels have 2, 4 and 4 times as many, unless the row
        says otherwise.
      latent_channels: channels of a latent.
      groups: groups of every group norm; must divide `width`.
      upsample: "nearest" or "linear" (half-pixel centres) doubling in space where frames are
        doubled too (decoder levels 3 and 2 of the variants); elsewhere always the nearest. Released
        checkpoints are "linear"; training from SD-VAE starts with "nearest", which keeps an image's
        reconstruction exactly SD-VAE's (Eq. 4).
      norm: "clip" takes the statistics of 3D parts over all frames, as the released model does;
        "frame" takes them per frame everywhere, which makes the encoder strictly causal.
      time_upsample: "linear" (released) or "nearest", which with norm "frame" makes the decoder
        strictly causal.
      scaling_factor: one number that latents are multiplied by before diffusion, if their mean and
        deviation per channel were not measured. 0.18215, the default, is SD-VAE's.
      latents_mean: the mean of sampled latents per channel, as `odvae calibrate` or a training run
        measured it; None if nobody did. It changes nothing that a model computes.
      latents_std: their standard deviation per channel; given if `latents_mean` is.
      dtype: the dtype of the computation, "float32", "bfloat16" or "float16" (kept as the name).
        Norm statistics, the posterior and the decoded video are float32 in any case.
      param_dtype: the dtype of the parameters.
      precision: the precision of float32 convolutions and products: "default" is what the platform
        does fastest (TF32 on a GPU, bfloat16 on a TPU), "highest" is full float32.
      remat: what a gradient computes again instead of keeping it in memory. "none": nothing;
        "convolutions": all of a residual block but its convolutions, of which the first one's
        output is kept; "blocks": whole residual blocks.

    Raises:
      ValueError: if a field has a value that no model can have. The message names the field and
        what it may be.
    """

    structure: str | Structure = "v4"
    width: int = 128
    latent_channels: int = 4
    groups: int = 32
    upsample: Interpolation = "nearest"
    norm: Literal["clip", "frame"] = "clip"
    time_upsample: Interpolation = "linear"
    scaling_factor: float = 0.18215
    dtype: jax.typing.DTypeLike = "float32"
    param_dtype: jax.typing.DTypeLike = "float32"
    precision: Literal["default", "high", "highest"] = "default"
    remat: Literal["none", "blocks", "convolutions"] = "none"
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    first_frames: ClassVar[int] = 1  # the frames that a clip has beside a multiple of `frame_step`
    codes: ClassVar[None] = None  # latents are continuous
    needs_frames: ClassVar[bool] = False  # the decoder is not told how many frames there were

    def __post_init__(self):
        object.__setattr__(self, "structure", _known(self.structure))
        for name, choices in _CHOICES.items():
            one_of(self, name, choices)
        numeric(self)
        positive_integers(self, "width", "latent_channels", "groups")
        check_scale(self)
        if max(self.encoder_widths + self.decoder_widths) > MOST_CHANNELS:
            raise ValueError(
                f"width={self.width} makes a layer of more than {MOST_CHANNELS} channels."
            )
        if self.latent_channels > MOST_CHANNELS:
            raise ValueError(
                f"latent_channels={self.latent_channels} is more than {MOST_CHANNELS}."
            )
        if self.width % self.groups:
            raise ValueError(
                f"width={self.width} is not a multiple of groups={self.groups}: "
                "choose a width that is, or fewer groups."
            )
        if self.decoder_width % self.groups:
            raise ValueError(
                f"structure.decoder_width={self.decoder_width} is not a multiple of "
                f"groups={self.groups}: choose a width that is, or fewer groups."
            )

    @classmethod
    def variant(cls, n: int, **overrides: Any) -> ODVAEConfig:
        """Returns the config of the paper's variant `n`, 1 to 4 (section 3.2).

        Any field can be overridden.

        Raises:
          ValueError: if `n` is not 1 to 4, or an override is unknown or has an impossible value.
        """
        if n not in (1, 2, 3, 4):
            raise ValueError(f"variant {n!r} is not known; the paper has variants 1, 2, 3 and 4.")
        if "structure" in overrides:
            raise ValueError(
                f"structure is decided by variant({n}); use ODVAEConfig(structure=...)."
            )
        return cls.from_dict({**overrides, "structure": f"v{n}"})

    @classmethod
    def image(cls, **overrides: Any) -> ODVAEConfig:
        """Returns the config of SD-VAE, the 2D ancestor.

        It compresses each frame by itself, 8 × 8 in space and not in time. Any field can be
        overridden.
        """
        return cls.from_dict({**overrides, "structure": "image"})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ODVAEConfig:
        """Returns the config with these fields, and with defaults for the others.

        Raises:
          ValueError: if a field does not exist. The message has the nearest that does.
        """
        fields = fields_of(cls, fields)
        row = fields.get("structure")
        if isinstance(row, dict):
            fields["structure"] = Structure.from_dict(row)
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field, as values that JSON can hold.

        The mean and the deviation of latents are there only if they were measured.
        """
        fields = dataclasses.asdict(self)
        if self.parts.quant and isinstance(self.structure, Structure):
            del fields["structure"]["quant"]  # as rows were written before there was the field
        return fields if self.scale.measured else without_scale(fields)

    @property
    def parts(self) -> Structure:
        """The row of the table of variants, or the row of one's own."""
        return STRUCTURES.get(self.structure, self.structure)

    @property
    def name(self) -> str:
        """The row's name in messages: "v1" to "v4", "image", or "custom"."""
        return self.structure if isinstance(self.structure, str) else "custom"

    @property
    def scale(self) -> Scale:
        """How latents are normalised: per channel if that was measured, else by the factor."""
        return Scale(self.latents_mean, self.latents_std, self.scaling_factor)

    @property
    def time_compression(self) -> int:
        """The number of frames per latent frame after the first: 4, or 1 for the image model."""
        return self.parts.time_compression

    @property
    def frame_step(self) -> int:
        """The step between the numbers of frames that the model takes, beside `first_frames`."""
        return self.time_compression

    @property
    def space_compression(self) -> int:
        """The number of rows, and of columns, per position of the latents: 8 in named models."""
        return self.parts.space_compression

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder."""
        return tuple(self.width * m for m in self.parts.width_multipliers)

    @property
    def decoder_width(self) -> int:
        """Channels of the decoder's level 0."""
        return self.parts.decoder_width or self.width

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the decoder."""
        return tuple(self.decoder_width * m for m in self.parts.width_multipliers)

    @property
    def streams(self) -> bool:
        """Whether clips can come in chunks: no norm takes its statistics over frames."""
        return self.norm == "frame" or self.parts.is_image

    def clip_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the smallest size a model takes that holds these frames, rows and columns.

        For the paper's variants it has 4k + 1 frames, and multiples of 8 rows and columns.
        """
        t, s = self.time_compression, self.space_compression
        return -(-(frames - 1) // t) * t + 1, -(-height // s) * s, -(-width // s) * s

    def latent_shape(self, video_shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """Returns the shape of the latents of a video of shape [B, T, H, W, 3]."""
        b, t, h, w, _ = video_shape
        return (
            b,
            (t - 1) // self.time_compression + 1,
            h // self.space_compression,
            w // self.space_compression,
            self.latent_channels,
        )

    def video_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """Returns the shape of the video of latents of shape [B, t, h, w, C]."""
        b, t, h, w, _ = latent_shape
        return (
            b,
            (t - 1) * self.time_compression + 1,
            h * self.space_compression,
            w * self.space_compression,
            IMAGE_CHANNELS,
        )


def without_scale(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config without those of the scale, which no computation needs."""
    return {n: v for n, v in fields.items() if n not in ("latents_mean", "latents_std")}


def _known(structure: Any) -> str | Structure:
    """A row by its name if the table has it, else as a `Structure`."""
    if isinstance(structure, Structure):
        return next((name for name, row in STRUCTURES.items() if row == structure), structure)
    if not isinstance(structure, str) or structure not in STRUCTURES:
        near = difflib.get_close_matches(str(structure), STRUCTURES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? It" if near else "it"
        raise ValueError(
            f"structure={structure!r} is not known; {hint} may be one of {list(STRUCTURES)}, or a "
            "Structure of your own."
        )
    return structure


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}? There are {known}." if near else f"There are {known}."
