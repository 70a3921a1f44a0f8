"""The package's own layout: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from odvae_jax.checkpoints import integrity
from odvae_jax.checkpoints.files import metadata_of, read_json, read_weight_file
from odvae_jax.checkpoints.folders import CONFIG_FILE, write_folder
from odvae_jax.checkpoints.scale_file import as_fields
from odvae_jax.config import ODVAEConfig
from odvae_jax.diffusion.denoiser import Latte
from odvae_jax.files import one_line, printable
from odvae_jax.parameters import (
    Autoencoder,
    Config,
    abstract_model,
    check_finite,
    check_shapes,
    class_of,
    converted,
    named_parameters,
    with_parameters,
)
from odvae_jax.scale import Scale

WEIGHTS_FILE = "model.safetensors"
FORMAT = "odvae_jax"
MODEL = "model"
"""The field of `config.json` that says which model it is; OD-VAE has none."""
ENCODER = ("encoder.", "quant_conv.")
"""The first part of the names of all parameters that decide what the latents are."""
Module = TypeVar("Module", bound=nnx.Module)
_CHANGEABLE = (
    "upsample",
    "norm",
    "time_upsample",
    "scaling_factor",
    "dtype",
    "param_dtype",
    "precision",
    "remat",
    "latents_mean",
    "latents_std",
)


class OverrideError(ValueError):
    """Fields were to be changed while weights were loaded, and they decide these or have none such.

    Args:
      message: what is wrong, in terms of fields.
      fields: the names of the fields.
      model: the name of the model in the file.
      decided: whether the weights decide the fields; else the model has none such.
    """

    def __init__(self, message: str, fields: Iterable[str], model: str, *, decided: bool):
        self.fields, self.model, self.decided = tuple(fields), model, decided
        super().__init__(message)


def digest(config: dict[str, Any], parameters: dict[str, Any]) -> str:
    """Returns sixteen hexadecimal digits that tell a config and its parameters from others.

    Args:
      config: the fields of the config by name.
      parameters: the arrays by name.
    """
    found = hashlib.blake2b(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(parameters.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(value).view(np.uint8))
    return found.hexdigest()[:16]


def save(vae: Autoencoder | Latte, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a model into a folder, as `config.json` and `model.safetensors`.

    Args:
      vae: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set, or if it
        holds files that are not a model's.
    """
    of_another_class = {} if isinstance(vae.config, ODVAEConfig) else {MODEL: vae.config.model}
    config = {"format": FORMAT, **of_another_class, **vae.config.to_dict()}
    arrays = {n: np.asarray(jax.device_get(v)) for n, v in named_parameters(vae).items()}
    metadata = {"format": FORMAT}
    write_folder(path, config, WEIGHTS_FILE, arrays, overwrite=overwrite, metadata=metadata)


def write_scale(path: str | os.PathLike, scale: Scale) -> None:
    """Writes the scale of the latents into a model; its tensors stay what they are, to the bit.

    `config.json` gets the scale, and the header of the weights the new digest of the config. Other
    files of the folder stay.

    Args:
      path: the folder.
      scale: the scale; it was measured.

    Raises:
      OSError: if the folder cannot be written.
      ValueError: if the folder holds no model.
    """
    path = Path(path)
    file = read_weight_file(path / WEIGHTS_FILE)
    config = read_json(path / CONFIG_FILE) | as_fields(scale)
    metadata = {n: text for n, text in metadata_of(file).items() if n != integrity.KEY}
    arrays = dict(file.content)
    write_folder(
        path, config, WEIGHTS_FILE, arrays, overwrite=True, metadata=metadata, others_stay=True
    )


def load(
    path: str | os.PathLike,
    *,
    progress: Callable[[Iterable], Iterable] = iter,
    verify: bool = True,
    **overrides: Any,
) -> Any:
    """Loads a model from a folder of the package's own layout.

    Args:
      path: the folder.
      progress: wraps the loop over parameters, for example in a progress bar.
      verify: whether the files are compared with the digests that were written with them. Files
        without digests pass.
      **overrides: config fields to change that change no parameter's shape.

    Raises:
      FileNotFoundError: if one of the folder's files is missing.
      ValueError: if the weights do not fit the config, a field is unknown or cannot be changed, the
        files are not what was written, or values are not finite.
    """
    path = Path(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            held = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no folder"
            raise FileNotFoundError(
                f"{printable(path / name)} does not exist (found: {held}); "
                "expected a folder that save_pretrained wrote."
            )
    config = read_config(path / CONFIG_FILE, **overrides)
    file = read_weight_file(path / WEIGHTS_FILE)
    state = file.content
    parameters = {name: converted(state[name], config.param_dtype) for name in progress(state)}
    model = abstract_model(config)
    try:
        check_shapes(model, parameters)
    except ValueError as error:
        raise ValueError(
            f"{printable(path / WEIGHTS_FILE)} does not fit {printable(path / CONFIG_FILE)} "
            f"(another width or variant?): {error}."
        ) from error
    if verify:
        integrity.verify(file, path / CONFIG_FILE)
    check_finite(parameters, path / WEIGHTS_FILE)
    # Copies: what is mapped from a file would change with the file.
    return with_parameters(model, {name: jnp.array(value) for name, value in parameters.items()})


def read_config(path: Path, **overrides: Any) -> Config:
    """Reads the config of a model from a `config.json` of the package's own layout.

    Args:
      path: the file.
      **overrides: config fields to change that change no parameter's shape.

    Raises:
      ValueError: if the file is another model's, a field is missing or unknown, or a field cannot
        be changed.
    """
    fields = read_json(path)
    if fields.pop("format", None) != FORMAT:
        raise ValueError(
            f"{printable(path)} is not the config of an odvae_jax model "
            f'("format": "{FORMAT}" is missing).'
        )
    try:
        named = MODEL in fields
        cls = class_of(fields.pop(MODEL)).config_class if named else ODVAEConfig
        if missing := [name for name in cls().to_dict() if name not in fields]:
            raise ValueError(f"the fields {missing} are missing.")
        config = cls.from_dict(fields)
    except (ValueError, TypeError, OverflowError) as error:  # JSON may hold anything
        raise ValueError(f"{printable(path)}: {one_line(error)}") from error
    return with_overrides(config, path, overrides)


def with_overrides(config: Config, source: Path, overrides: dict[str, Any]) -> Any:
    """Returns a config with some fields changed that the weights do not decide.

    Args:
      config: the config of the weights.
      source: the file of the weights, for error messages.
      overrides: the new values by field.

    Raises:
      OverrideError: if a field is unknown, or the weights decide it.
      ValueError: if a field cannot have its value.
    """
    changeable = _CHANGEABLE if isinstance(config, ODVAEConfig) else config.changeable
    if fixed := [n for n in overrides if hasattr(config, n) and n not in changeable]:
        raise OverrideError(
            f"{fixed} cannot be changed while loading {printable(source)}: the weights are made "
            f"for them. What can is {list(changeable)}.",
            fixed,
            config.name,
            decided=True,
        )
    try:
        return type(config).from_dict({**config.to_dict(), **overrides})
    except ValueError as error:
        unknown = [n for n in overrides if not hasattr(config, n)]
        if not unknown:
            raise
        raise OverrideError(str(error), unknown, config.name, decided=False) from error
