"""The scale of latents beside weights of other layouts, which have no place for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from odvae_jax.checkpoints.files import read_json
from odvae_jax.checkpoints.folders import SCALE_FILE
from odvae_jax.files import one_line, printable, write_whole
from odvae_jax.scale import Scale

FORMAT = "odvae_jax latents scale 1"
_SCALES = "weights"


def as_fields(scale: Scale) -> dict[str, Any]:
    """Returns the fields of a model's config that hold a scale, as values that JSON can hold."""
    fields = scale.to_dict()
    return {
        "scaling_factor": fields["factor"],
        "latents_mean": fields["mean"],
        "latents_std": fields["std"],
    }


def text_of(weights: str, scale: Scale, before: dict[str, Any] | None = None) -> str:
    """Returns the content of the file with the scale of a file of weights.

    Args:
      weights: the name of the file of weights.
      scale: the scale.
      before: what the file said by the names of weights; None if there was none.
    """
    said = {**(before or {}), weights: scale.to_dict()}
    return json.dumps({"format": FORMAT, _SCALES: said}, indent=2) + "\n"


def files_beside(weights: str, scale: Scale, stated: float) -> dict[str, str | None]:
    """Returns the file that a folder needs for a scale, by its name; None stands for no file.

    Args:
      weights: the name of the file of weights.
      scale: the scale.
      stated: the factor that is read from the folder if there is no such file.
    """
    needed = scale.measured or scale.factor != stated
    return {SCALE_FILE: text_of(weights, scale) if needed else None}


def write_beside(weights: Path, scale: Scale) -> Path:
    """Writes the scale into a file beside the weights, whole, and returns its path.

    What the file says of other weights in the folder stays.

    Args:
      weights: the file of weights.
      scale: the scale.

    Raises:
      OSError: if the file cannot be written.
      ValueError: if there is a file of this name that is another.
    """
    path = weights.parent / SCALE_FILE
    before = _said(path) if path.is_file() else None
    write_whole(path, text_of(weights.name, scale, before))
    return path


def read_beside(weights: Path) -> Scale | None:
    """Returns the scale that the file beside the weights has for them; None if there is none.

    Args:
      weights: the file of weights.

    Raises:
      ValueError: if the file is there, but damaged.
    """
    path = weights.parent / SCALE_FILE
    if not path.is_file():
        return None
    said = _said(path)
    if weights.name not in said:
        return None
    try:
        return Scale.from_dict(said[weights.name])
    except ValueError as error:
        raise ValueError(
            f"{printable(path)} is damaged ({one_line(error, 300)}): remove it, and measure anew "
            "with `odvae calibrate`."
        ) from error


def _said(path: Path) -> dict[str, Any]:
    """Returns what the file says, by the name of the weights."""
    fields = read_json(path)
    if fields.get("format") != FORMAT or not isinstance(fields.get(_SCALES), dict):
        raise ValueError(
            f'{printable(path)} holds no scale of latents ("format": "{FORMAT}" is expected): '
            "remove it."
        )
    return fields[_SCALES]
