"""What a model is.

One frozen dataclass, and the variants as rows of a table (section 3.2, Fig. 2).
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

# Shared by all variants, and taken over from SD-VAE.
WIDTH_MULTIPLIERS = (1, 2, 4, 4)
ENCODER_BLOCKS = 2
DECODER_BLOCKS = 3
IMAGE_CHANNELS = 3
SPACE_COMPRESSION = 8
GROUP_NORM_EPSILON = 1e-6

Kind = Literal["2d", "3d", "mixed"]
"""Convolutions of a part.

Per frame, causal 3D, or (a residual block only) the first 3D, the second per frame.
"""


Interpolation = Literal["nearest", "linear"]
"""How frames, rows or columns are doubled."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """One row of the variants' table: which parts are 2D and which are causal 3D.

    Tuples run from level 0 (full resolution) to level 3; `downsample[i]` follows encoder level i
    and `upsample[i]` precedes decoder level i.
    """

    encoder_in: Kind
    encoder_levels: tuple[Kind, Kind, Kind, Kind]
    downsample: tuple[Kind, Kind, Kind]
    middle: Kind
    decoder_levels: tuple[Kind, Kind, Kind, Kind]
    upsample: tuple[Kind, Kind, Kind]
    ends: Kind
    """The encoder's output and the decoder's input and output convolutions."""
    time_strides: tuple[int, int, int]
    """How much each resampling changes the number of frames, by level."""

    @property
    def time_compression(self) -> int:
        a, b, c = self.time_strides
        return a * b * c


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
    "structure": tuple(STRUCTURES),
    "upsample": ("nearest", "linear"),
    "norm": ("clip", "frame"),
    "time_upsample": ("linear", "nearest"),
    "precision": ("default", "high", "highest"),
    "remat": ("none", "blocks", "convolutions"),
}


@dataclasses.dataclass(frozen=True)
class ODVAEConfig:
    """The hyper-parameters of a model; made with `ODVAEConfig.variant(n)` or `ODVAEConfig.image()`.

    Attributes:
      structure: "v1" to "v4" (the paper's variants) or "image" (the 2D ancestor, applied per
        frame).
      width: channels of level 0; the other levels have 2, 4 and 4 times as many.
      latent_channels: channels of a latent.
      groups: groups of every group norm; must divide `width`.
      upsample: "nearest" or "linear" (half-pixel centres) doubling in space at decoder levels 3 and
        2; level 1 always takes the nearest. Released checkpoints are "linear"; training from SD-VAE
        starts with "nearest", which keeps an image's reconstruction exactly SD-VAE's (Eq. 4).
      norm: "clip" takes the statistics of 3D parts over all frames, as the released model does;
        "frame" takes them per frame everywhere, which makes the encoder strictly causal.
      time_upsample: "linear" (released) or "nearest", which with norm "frame" makes the decoder
        strictly causal.
      scaling_factor: what latents are multiplied by before diffusion (they are returned unscaled).
      dtype: of the computation, "float32", "bfloat16" or "float16" (kept as the name). Norm
        statistics, the posterior and the decoded video are float32 in any case.
      param_dtype: of the parameters.
      precision: of float32 convolutions and products: "default" is what the platform does fastest
        (TF32 on a GPU, bfloat16 on a TPU), "highest" is full float32.
      remat: what a gradient computes again instead of keeping it in memory. "none": nothing;
        "convolutions": all of a residual block but its convolutions, of which the first one's
        output is kept; "blocks": whole residual blocks.

    Raises:
      ValueError: for a value that no model can have, naming the field and what it may be.
    """

    structure: str = "v4"
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

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known; "
                    f"it may be one of {list(choices)}."
                )
        for name in ("dtype", "param_dtype"):
            try:
                dtype = jnp.dtype(getattr(self, name))
            except TypeError as error:
                raise ValueError(f"{name}={getattr(self, name)!r} names no dtype.") from error
            if dtype.name not in _DTYPES:
                raise ValueError(
                    f"{name}={dtype.name!r} is not supported; there are {list(_DTYPES)}."
                )
            object.__setattr__(self, name, dtype.name)
        for name in ("width", "latent_channels", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer.")
            object.__setattr__(self, name, int(value))
        if not isinstance(self.scaling_factor, (int, float)) or not self.scaling_factor > 0:
            raise ValueError(f"scaling_factor={self.scaling_factor!r} must be a positive number.")
        if self.width % self.groups:
            raise ValueError(
                f"width={self.width} is not a multiple of groups={self.groups}: "
                "choose a width that is, or fewer groups."
            )

    @classmethod
    def variant(cls, n: int, **overrides: Any) -> ODVAEConfig:
        """The paper's variant `n`, 1 to 4 (section 3.2), with any field overridden.

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
        """SD-VAE, the 2D ancestor.

        Each frame by itself, compressed 8 × 8 in space and not in time.
        """
        return cls.from_dict({**overrides, "structure": "image"})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ODVAEConfig:
        """The config with these fields, defaults for the others.

        Raises:
          ValueError: for a field that does not exist, naming the nearest that does.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(
                    f"model config field {name!r} is not known; {hint}There are {known}."
                )
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Every field, as values that JSON can hold."""
        return dataclasses.asdict(self)

    @property
    def parts(self) -> Structure:
        """The row of the variants' table."""
        return STRUCTURES[self.structure]

    @property
    def time_compression(self) -> int:
        """4 for the paper's variants, 1 for the image model."""
        return self.parts.time_compression

    @property
    def streams(self) -> bool:
        """Whether clips can come in chunks: no norm takes its statistics over frames."""
        return self.norm == "frame" or self.structure == "image"

    def latent_shape(self, video_shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """Shape of the latents of a video of shape [B, T, H, W, 3]."""
        b, t, h, w, _ = video_shape
        return (
            b,
            (t - 1) // self.time_compression + 1,
            h // SPACE_COMPRESSION,
            w // SPACE_COMPRESSION,
            self.latent_channels,
        )

    def video_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """Shape of the video of latents of shape [B, t, h, w, C]."""
        b, t, h, w, _ = latent_shape
        return (
            b,
            (t - 1) * self.time_compression + 1,
            h * SPACE_COMPRESSION,
            w * SPACE_COMPRESSION,
            IMAGE_CHANNELS,
        )
