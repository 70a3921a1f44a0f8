"""What a file of latents says about itself, and what of it can be true.

Every field is checked against its type, its range, the other fields and the stored array. Nothing
here needs JAX or a model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from odvae_jax.files import counted
from odvae_jax.scale import Scale

FORMAT = "odvae_jax latents 3"
"""The format that is written. The second added `columns` and `place`, which both are optional. The
third added `time_compression`, and models that are no OD-VAE."""
FORMATS = ("odvae_jax latents 1", "odvae_jax latents 2", FORMAT)
"""The formats that can be read."""
CONTENTS = ("mean", "moments", "sample")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The dtypes of latents in files, each with its name in safetensors."""
COMPRESSIONS = {"image": (1, 8), "v1": (4, 8), "v2": (4, 8), "v3": (4, 8), "v4": (4, 8)}
"""How many frames, and how many rows or columns, one position of a named model's latents stands
for. A test compares it with the table of variants, which only a process with JAX can import."""
BASELINES = {"svd_vae": (1, 8), "cv_vae": (4, 8), "ops_vae": (4, 8)}
"""The same of the baselines with continuous latents, by the name in the config's field `model`. A
test compares it with the models."""
_GROUPED = "ops_vae"
_TILINGS = {
    "TemporalTiling": ("group",),
    "Streaming": ("chunk",),
    "SpatialTiling": ("tile", "overlap"),
}
_MOST = 2**31 - 1  # of every whole number but the count of positions


class LatentsError(ValueError):
    """A file cannot be used as latents. The message names the file and says why."""


@dataclasses.dataclass(frozen=True)
class LatentsInfo:
    """What a file of latents says about itself.

    Attributes:
      source: the name of the video's file.
      model: what `odvae_jax.from_pretrained` was given for the model.
      encoder: the digest of the encoder that made the latents.
      config: the config of the model; of a baseline, its field `model` says which it is.
      content: "mean" for the posterior's mean, "sample" for a sample of the posterior, or "moments"
        for mean and log-variance, side by side in the channels.
      scaling_factor: the number that a diffusion model multiplies latents by. The latents are
        stored without it.
      frames: the number of frames that the latents decode to, without those that were padded.
      height, width: the sides of these frames in pixels, without rows and columns that were padded.
      fps: the frames per second of the video.
      tiling: how the clip was cut when it was encoded, and is when it is decoded: the fields of
        each tiling by the tiling's name. It is empty for baselines, which take clips whole.
      dtype: the dtype that the latents were computed in.
      store: the dtype that the latents are stored in.
      seed: the seed of a sample; None for other content.
      prepared: the short side that the video was scaled to and the size that was cut out, in
        pixels; None for what was left as it was. Videos that were scaled and cut to a bucket have
        "cover" instead, the bucket's rows and columns.
      statistics: sums over the latents, see `odvae_jax.latents.Statistics`. None for records of
        datasets: the indices of their shards have the sums.
      problem: what ended the video too early; empty if nothing did.
      columns: what else the source says of the video, such as a caption, by the column's name.
      place: where in the source the clip is from: "video" is the number of the video, "start" the
        first frame that a clip begins with (of a video as a whole 0), "stride" the distance between
        the clip's frames in frames of the video (None if the clip was cut at a rate of its own, or
        is spread over a window),
        "mirrored" whether left and right are exchanged.
        None for files of videos as a whole.
      time_compression: the number of frames per latent frame. None takes what the config says, as
        for files of before the field was written.
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
    statistics: dict[str, Any] | None = None
    problem: str = ""
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    place: dict[str, Any] | None = None
    time_compression: int | None = None

    def __post_init__(self):
        if self.time_compression is None:
            object.__setattr__(self, "time_compression", compression(self.config)[0])

    @property
    def scale(self) -> Scale:
        """How the model normalised latents when it encoded: per channel if that was measured."""
        mean, std = (self.config.get(name) for name in ("latents_mean", "latents_std"))
        return Scale.from_dict({"mean": mean, "std": std, "factor": self.scaling_factor})


OPTIONAL = ("statistics", "problem", "columns", "place", "time_compression")
"""The fields that may be missing; in a file `statistics` may not, nor `time_compression` since the
third format."""


def parse(fields: Mapping[str, str], written: str = FORMAT) -> LatentsInfo:
    """Returns what the metadata of a file say, after every field was checked.

    Args:
      fields: the text of each field in JSON, by the field's name.
      written: the format of the file, one of `FORMATS`.

    Raises:
      LatentsError: if a field is missing, not known, or has a value that it cannot have.
    """
    values = {}
    for name, text in fields.items():
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LatentsError(f"the field {name} is no JSON ({error})") from None
    info = checked(values)
    if info.statistics is None:
        raise LatentsError("the field statistics is missing")
    if written == FORMAT and "time_compression" not in values:
        raise LatentsError("the field time_compression is missing")
    return info


def checked(values: Mapping[str, Any]) -> LatentsInfo:
    """Returns what is said about latents, after every field was checked.

    Args:
      values: the value of each field, as JSON has it, by the field's name.

    Raises:
      LatentsError: if a field is missing, not known, or has a value that it cannot have.
    """
    known = [field.name for field in dataclasses.fields(LatentsInfo)]
    if unknown := sorted(values.keys() - set(known)):
        raise LatentsError(f"the fields {unknown} are not known to {FORMAT!r}")
    if missing := [name for name in known if name not in values and name not in OPTIONAL]:
        raise LatentsError(f"the fields {missing} are missing")
    check_values(values)
    info = LatentsInfo(**values)
    _check_together(info)
    return info


def check_values(values: Mapping[str, Any]) -> None:
    """Checks the values of some fields of `LatentsInfo`, each by itself.

    Args:
      values: the value of each field, as JSON has it, by the field's name.

    Raises:
      LatentsError: if a field has a value that it cannot have.
    """
    for name, value in values.items():
        can_be, expected = _SCHEMA[name]
        if not can_be(value):
            text = repr(value)
            shown = text if len(text) <= 80 else f"{text[:79]}…"
            raise LatentsError(f"{name} is {shown}; expected {expected}")


def check_array(info: LatentsInfo, dtype: str, shape: tuple[int, ...]) -> None:
    """Checks that the stored array is the one that a file speaks of.

    Args:
      info: what the file says, as `parse` returned it.
      dtype: the dtype of the stored array, as safetensors calls it.
      shape: the shape of the stored array.

    Raises:
      LatentsError: if they do not belong together.
    """
    if dtype != DTYPES[info.store]:
        raise LatentsError(f"store is {info.store!r}, but the array is {dtype}")
    if len(shape) != 4 or 0 in shape:
        raise LatentsError(f"the array has the shape {shape}; expected [t, h, w, C]")
    channels = info.config["latent_channels"]
    stored = 2 * channels if info.content == "moments" else channels
    if shape[3] != stored:
        raise LatentsError(
            f"the array has {shape[3]} channels; {info.content} of a model with "
            f"{channels} latent channels have {stored}"
        )
    _, space = compression(info.config)
    wanted = (
        in_time(info.config).latent_frames(info.frames),
        -(-info.height // space),
        -(-info.width // space),
    )
    if shape[:3] != wanted:
        raise LatentsError(
            f"the array has {shape[:3]} latent frames, rows and columns; {info.frames} frames of "
            f"{info.height}×{info.width} have {wanted}"
        )
    if info.statistics is not None and info.statistics["count"] != math.prod(shape[:3]):
        raise LatentsError(
            f"statistics are of {info.statistics['count']} positions; the array has "
            f"{math.prod(shape[:3])}"
        )


def compression(config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many frames, and how many rows or columns, a position of the latents stands for.

    Args:
      config: the config of a model, checked by `parse`.
    """
    if "model" in config:
        return BASELINES[config["model"]]
    structure = config["structure"]
    if isinstance(structure, str):
        return COMPRESSIONS[structure]
    return math.prod(structure["time_strides"]), math.prod(structure["space_strides"])


@dataclasses.dataclass(frozen=True)
class InTime:
    """Which frames of a clip its latent frames stand for.

    Attributes:
      compression: the number of frames c per latent frame.
      micro_clip: None if frame 0 has a latent frame of its own, and groups of c frames follow. Else
        clips are cut into micro clips of so many frames, and the groups of c frames are counted
        from the end of each: its first latent frame stands for what is left.
    """

    compression: int
    micro_clip: int | None = None

    @property
    def latents_per_micro_clip(self) -> int:
        """The number of latent frames of a whole micro clip."""
        return -(-self.micro_clip // self.compression)

    def latent_frames(self, frames: int) -> int:
        """Returns the number of latent frames of a clip of so many frames."""
        c = self.compression
        if self.micro_clip is None:
            return -(-(frames - 1) // c) + 1
        whole, rest = divmod(frames, self.micro_clip)
        return whole * self.latents_per_micro_clip + -(-rest // c)


def in_time(config: Mapping[str, Any]) -> InTime:
    """Returns which frames the latent frames of a model stand for.

    Args:
      config: the config of a model, checked by `parse`.
    """
    time, _ = compression(config)
    if config.get("model") != _GROUPED:
        return InTime(time)
    return InTime(time, config["micro_frames"] or _MOST)


def _check_together(info: LatentsInfo) -> None:
    """Checks fields against each other."""
    try:
        scale = info.scale
    except ValueError as error:
        raise LatentsError(f"config has an impossible scale of latents: {error}") from error
    check_tiling(info.config, info.tiling)
    if info.time_compression != (time := compression(info.config)[0]):
        raise LatentsError(f"time_compression is {info.time_compression}; that of config is {time}")
    channels = info.config["latent_channels"]
    if info.statistics is not None:
        _check_sums(info.statistics, channels)
    if scale.measured and len(scale.mean) != channels:
        raise LatentsError(
            f"config.latents_mean has {counted(len(scale.mean), 'value')} for "
            f"{counted(channels, 'channel')}"
        )
    if (info.seed is None) != (info.content != "sample"):
        raise LatentsError(f"seed is {info.seed} for the content {info.content!r}")
    size, cover = info.prepared["size"], info.prepared.get("cover")
    if cover is not None and [info.height, info.width] != cover:
        raise LatentsError(f"prepared.cover is {cover}; frames are {info.height}×{info.width}")
    if size is not None and (info.height, info.width) != (size, size):
        raise LatentsError(f"prepared.size is {size}, but frames are {info.height}×{info.width}")


def check_tiling(config: Mapping[str, Any], tiling: Mapping[str, Any]) -> None:
    """Checks that clips are tiled by models that take tiles, and by no others.

    Args:
      config: the config of a model, and
      tiling: how clips are cut for it; both were checked by themselves.

    Raises:
      LatentsError: if they do not belong together.
    """
    if bool(tiling) == ("model" in config):
        kind = "none, as this model takes clips whole" if tiling else "a tiling in time"
        raise LatentsError(f"tiling is {tiling}; expected {kind}")


def _check_sums(sums: Mapping[str, Any], channels: int) -> None:
    """Checks statistics against each other, and against the number of channels."""
    for name in ("mean", "square", "variance"):
        if len(sums[name]) != channels:
            raise LatentsError(
                f"statistics.{name} has {counted(len(sums[name]), 'value')}; the model has "
                f"{counted(channels, 'channel')}"
            )
    most = [sums["count"] * square for square in sums["square"]]  # Cauchy and Schwarz
    if any(m * m > bound * (1 + 1e-6) + 1e-9 for m, bound in zip(sums["mean"], most, strict=True)):
        raise LatentsError("statistics.mean and statistics.square cannot be of the same latents")


def _is_whole(value, least=1, most=_MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _is_positive(value) -> bool:
    return _is_number(value) and value > 0


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value)


def _is_config(value) -> bool:
    if not isinstance(value, dict):
        return False
    if not all(_is_whole(value.get(name)) for name in ("width", "latent_channels", "groups")):
        return False
    if "model" in value:
        micro = value.get("micro_frames", 0) if value["model"] == _GROUPED else None
        known = isinstance(value["model"], str) and value["model"] in BASELINES
        return known and (micro is None or _is_whole(micro))
    structure = value.get("structure")
    if isinstance(structure, str):
        return structure in COMPRESSIONS
    return isinstance(structure, dict) and all(
        isinstance(structure.get(name), list)
        and len(structure[name]) < 16
        and all(_is_whole(stride, 1, 2) for stride in structure[name])
        for name in ("time_strides", "space_strides")
    )


def _is_tiling(value) -> bool:
    if not isinstance(value, dict) or not value.keys() <= _TILINGS.keys():
        return False
    if {"TemporalTiling", "Streaming"} <= value.keys() or value.keys() == {"SpatialTiling"}:
        return False
    for name, fields in value.items():
        if not isinstance(fields, dict) or fields.keys() != set(_TILINGS[name]):
            return False
        if not all(_is_whole(v, 0 if n == "overlap" else 1) for n, v in fields.items()):
            return False
    space = value.get("SpatialTiling", {"tile": 1, "overlap": 0})
    return space["overlap"] < space["tile"]


def _is_prepared(value) -> bool:
    return (
        isinstance(value, dict)
        and {"short_side", "size"} <= value.keys() <= {"short_side", "size", "cover"}
        and all(value[n] is None or _is_whole(value[n]) for n in ("short_side", "size"))
        and ("cover" not in value or _is_cover(value["cover"]))
    )


def _is_cover(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))


def _is_place(value) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and value.keys() == {"video", "start", "stride", "mirrored"}
        and _is_whole(value["video"], 0, 2**53)
        and _is_whole(value["start"], 0)
        and (value["stride"] is None or _is_whole(value["stride"]))
        and isinstance(value["mirrored"], bool)
    )


def _is_statistics(value) -> bool:
    if value is None:
        return True
    names = ("mean", "square", "variance")
    if not isinstance(value, dict) or value.keys() != {"count", *names}:
        return False
    if not _is_whole(value["count"], 1, 2**62):
        return False
    if not all(isinstance(value[name], list) for name in names):
        return False
    return all(map(_is_number, value["mean"])) and all(
        _is_number(v) and v >= 0 for name in ("square", "variance") for v in value[name]
    )


_TEXT = (_is_text, "a text that is not empty")
_WHOLE = (_is_whole, "a whole number of at least 1")
_DTYPE = (lambda value: isinstance(value, str) and value in DTYPES, f"one of {list(DTYPES)}")
_SCHEMA = {
    "source": _TEXT,
    "model": _TEXT,
    "encoder": (
        lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{16,64}", value)),
        "the hexadecimal digits of a digest",
    ),
    "config": (_is_config, "the config of a model"),
    "content": (
        lambda value: isinstance(value, str) and value in CONTENTS,
        f"one of {list(CONTENTS)}",
    ),
    "scaling_factor": (_is_positive, "a finite number greater than 0"),
    "frames": _WHOLE,
    "height": _WHOLE,
    "width": _WHOLE,
    "fps": (_is_positive, "a finite number greater than 0"),
    "tiling": (_is_tiling, "one tiling in time, and at most one in space, with their fields"),
    "time_compression": _WHOLE,
    "dtype": _DTYPE,
    "store": _DTYPE,
    "seed": (
        lambda value: value is None or _is_whole(value, 0, 2**63),
        "a whole number of at least 0, or null",
    ),
    "prepared": (
        _is_prepared,
        "short_side and size, each a whole number or null, and perhaps cover, two whole numbers",
    ),
    "statistics": (_is_statistics, "count, and finite sums of mean, square and variance"),
    "problem": (lambda value: isinstance(value, str), "a text"),
    "columns": (lambda value: isinstance(value, dict), "values by the names of columns"),
    "place": (_is_place, "video, start, stride and mirrored, or null"),
}
