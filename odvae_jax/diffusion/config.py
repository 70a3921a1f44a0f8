"""The config of a denoiser, one frozen dataclass, and the table of Latte's sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax

from odvae_jax.config import fields_of, numeric, one_of
from odvae_jax.files import counted
from odvae_jax.scale import Scale
from odvae_jax.types import whole_numbers

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
"""Depth, width and heads of Latte's sizes."""
MOST_BLOCKS = 256
"""The most blocks that a denoiser can have; a config with more is damaged or hostile."""
MOST_WIDTH = 2**16
"""The greatest width of a denoiser, and the most rows that its table of labels can have."""
_COUNTED = {
    "depth": "blocks",
    "width": "values per token",
    "heads": "heads",
    "patch": "rows and columns",
    "frames": "latent frames",
    "rows": "rows",
    "columns": "columns",
    "channels": "channels",
}


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """What a denoiser was trained on, which its samples need to become videos.

    Attributes:
      vae: what the autoencoder was loaded from, such as a path.
      encoder: the digest of its encoder, which tells whose latents these are.
      scale: how latents were normalised.
      frames: the number of frames of a clip, which latents are decoded to.
      fps: the frames per second of a clip.
      classes: the name of each class, in the order of their numbers; empty without classes.

    Raises:
      ValueError: if a field has a value that it cannot have. The message names the field.
    """

    vae: str
    encoder: str
    scale: Scale
    frames: int
    fps: float
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in ("vae", "encoder"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r:.100}: expected a text.")
        if not isinstance(self.scale, Scale):
            raise ValueError(f"scale={self.scale!r:.100}: expected mean, std and factor.")
        whole_numbers(self, "frames", "frames", least=1)
        rate = self.fps
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise ValueError(f"fps={rate!r:.100}: expected a number greater than 0.")
        if wrong := [name for name in self.classes if not isinstance(name, str)]:
            raise ValueError(f"classes hold {wrong[0]!r:.100}; expected the name of each class.")

    @classmethod
    def from_dict(cls, fields: Any) -> TrainedOn:
        """Returns the record with these fields, as `to_dict` returned them or JSON holds them.

        Args:
          fields: the fields by name; what a file holds there may be anything.

        Raises:
          ValueError: if a field is missing or not known, or has a value that it cannot have.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, Mapping) or set(fields) != set(known):
            raise ValueError(f"trained_on is {fields!r:.100}; expected the fields {known}.")
        if not isinstance(fields["classes"], (list, tuple)):
            raise ValueError(f"classes={fields['classes']!r:.100}: expected a list of names.")
        scale, classes = Scale.from_dict(fields["scale"]), tuple(fields["classes"])
        return cls(**{**fields, "scale": scale, "classes": classes})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as values that JSON can hold."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"scale": self.scale.to_dict(), "classes": list(self.classes)}


@dataclasses.dataclass(frozen=True)
class LatteConfig:
    """The hyper-parameters of a denoiser; usually made with `LatteConfig.of("XL/2")`.

    Attributes:
      depth: the number of blocks, an even one: spatial and temporal blocks take turns.
      width: the number of values per token; a multiple of `heads` and of 4.
      heads: the heads of every attention.
      patch: rows, and columns, of latents that make one token.
      frames: the latent frames of a clip.
      rows: the rows of the latents, a multiple of `patch`.
      columns: the columns of the latents, a multiple of `patch`.
      channels: the channels of the latents.
      classes: the number of classes; None for a network without labels.
      process: "gaussian" is the paper's, with a learned variance, for which the network has two
        outputs per channel; "flow" is rectified flow, with one.
      dtype: the dtype of the computation, "float32", "bfloat16" or "float16" (kept as the name).
        Norms, the softmax, the embedding of time and the output are float32 in any case.
      param_dtype: the dtype of the parameters.
      precision: the precision of float32 products: "default" is what the platform does fastest
        (TF32 on a GPU, bfloat16 on a TPU), "highest" is full float32.
      remat: what a gradient computes again instead of keeping it in memory. "none": only norms,
        activations and the scores of attention; "products": all of a block but the outputs of its
        matrix products with weights; "blocks": whole blocks.
      trained_on: what the denoiser was trained on; None if that is not known, as for released
        weights. It changes nothing that the network computes.

    Raises:
      ValueError: if a field has a value that no denoiser can have. The message names the field and
        what it may be.
    """

    model: ClassVar[str] = "latte"
    """The model's name in `config.json`."""
    changeable: ClassVar[tuple[str, ...]] = ("dtype", "param_dtype", "precision", "remat")
    """Fields that weights do not decide."""

    depth: int = 28
    width: int = 1152
    heads: int = 16
    patch: int = 2
    frames: int = 21
    rows: int = 32
    columns: int = 32
    channels: int = 4
    classes: int | None = None
    process: Literal["gaussian", "flow"] = "gaussian"
    dtype: jax.typing.DTypeLike = "float32"
    param_dtype: jax.typing.DTypeLike = "float32"
    precision: Literal["default", "high", "highest"] = "default"
    remat: Literal["none", "products", "blocks"] = "none"
    trained_on: TrainedOn | None = None

    def __post_init__(self):
        numeric(self)
        if self.trained_on is not None:
            self._check_trained_on()
        one_of(self, "process", ("gaussian", "flow"))
        one_of(self, "remat", ("none", "products", "blocks"))
        for name, unit in _COUNTED.items():
            whole_numbers(self, unit, name, least=1)
        if self.classes is not None:
            whole_numbers(self, "classes", "classes", least=1)
        self._check_sizes()

    def _check_trained_on(self):
        """Checks that what is said of the training is said of this denoiser."""
        given = self.trained_on
        if not isinstance(given, TrainedOn):
            raise ValueError(f"trained_on={given!r:.100}: expected a TrainedOn or None.")
        if len(given.classes) != (self.classes or 0):
            raise ValueError(
                f"trained_on names {counted(len(given.classes), 'class', 'classes')}, and "
                f"classes={self.classes}."
            )

    def _check_sizes(self):
        """Checks the numbers of which each alone would do."""
        for name, most in (
            ("depth", MOST_BLOCKS),
            ("width", MOST_WIDTH),
            ("frames", MOST_WIDTH),
            ("rows", MOST_WIDTH),
            ("columns", MOST_WIDTH),
            ("channels", MOST_WIDTH),
            ("classes", MOST_WIDTH - 1),
        ):
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"{name}={getattr(self, name)} is more than {most}.")
        if self.depth % 2:
            raise ValueError(
                f"depth={self.depth} must be even: spatial and temporal blocks take turns."
            )
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width={self.width} must be a multiple of heads={self.heads}, and of 4, for rows "
                "and columns have a sine and a cosine each."
            )
        for name in ("rows", "columns"):
            if getattr(self, name) % self.patch:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a multiple of patch={self.patch}."
                )

    @classmethod
    def of(cls, size: str, **overrides: Any) -> LatteConfig:
        """Returns the config of one of Latte's sizes, such as "XL/2": the size and the patch.

        Args:
          size: "S", "B", "L" or "XL", a slash, and the rows and columns of a patch.
          **overrides: values of other fields.

        Raises:
          ValueError: if the size is not known, or an override is unknown, has an impossible value,
            or is a field that the size decides.
        """
        name, slash, patch = str(size).removeprefix("Latte-").partition("/")
        if name not in SIZES or not slash or not (patch.isascii() and patch.isdigit()):
            raise ValueError(
                f"size {size!r:.100} is not known; expected one of {list(SIZES)} with the patch's "
                'side after a slash, such as "XL/2".'
            )
        decided = dict(zip(("depth", "width", "heads"), SIZES[name], strict=True))
        decided["patch"] = int(patch)
        if fixed := [n for n in overrides if n in decided]:
            raise ValueError(f"{fixed} are decided by the size {size!r}; use LatteConfig(...).")
        return cls.from_dict({**decided, **overrides})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LatteConfig:
        """Returns the config with these fields, and with defaults for the others.

        Raises:
          ValueError: if a field does not exist. The message has the nearest that does.
        """
        fields = fields_of(cls, fields)
        record = fields.get("trained_on")
        if record is not None and not isinstance(record, TrainedOn):
            fields["trained_on"] = TrainedOn.from_dict(record)
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field, as values that JSON can hold.

        `trained_on` is there only if it is known.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record = fields.pop("trained_on")
        return fields if record is None else {**fields, "trained_on": record.to_dict()}

    @property
    def name(self) -> str:
        """The size's name in messages, such as "Latte-XL/2", or "Latte" for other sizes."""
        size = (self.depth, self.width, self.heads)
        known = next((name for name, row in SIZES.items() if row == size), None)
        return f"Latte-{known}/{self.patch}" if known else "Latte"

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and the columns of tokens of a latent frame."""
        return self.rows // self.patch, self.columns // self.patch

    @property
    def outputs(self) -> int:
        """The number of channels of the output: two per channel with a learned variance."""
        return self.channels * (2 if self.process == "gaussian" else 1)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """The shape of the latents of one clip, (frames, rows, columns, channels)."""
        return self.frames, self.rows, self.columns, self.channels
