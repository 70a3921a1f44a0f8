"""The package's own layout: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.files import read_weight_file
from odvae_jax.config import ODVAEConfig
from odvae_jax.parameters import abstract_model, named_parameters, with_parameters

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "odvae_jax"
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
)


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


def save(vae: ODVAE, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a model into a folder, as `config.json` and `model.safetensors`.

    Args:
      vae: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set, or if it
        holds files that are not a model's.
    """
    config = {"format": FORMAT, **vae.config.to_dict()}
    arrays = {n: np.asarray(jax.device_get(v)) for n, v in named_parameters(vae).items()}
    metadata = {"format": FORMAT}
    write_folder(path, config, WEIGHTS_FILE, arrays, overwrite=overwrite, metadata=metadata)


def write_folder(
    path: str | os.PathLike,
    config: dict[str, Any],
    weights_file: str,
    arrays: dict[str, np.ndarray],
    *,
    overwrite: bool,
    metadata: dict[str, str],
) -> None:
    """Writes `config.json` and a safetensors file into a folder.

    A folder that did not exist appears complete or not at all.

    Args:
      path: the folder.
      config: the content of `config.json`.
      weights_file: the name of the safetensors file.
      arrays: the arrays of the safetensors file by name.
      overwrite: whether files of these names are replaced.
      metadata: the metadata of the safetensors file.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set, or if it
        holds files of other names.
    """
    path = check_destination(path, (CONFIG_FILE, weights_file), overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        building.chmod(0o755)  # mkdtemp lets nobody else in
        (building / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        save_file(arrays, building / weights_file, metadata=metadata)
        # safetensors lets nobody else read what it writes.
        (building / weights_file).chmod((building / CONFIG_FILE).stat().st_mode)
        if path.exists():
            for file in building.iterdir():
                os.replace(file, path / file.name)
            building.rmdir()
        else:
            building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def check_destination(path: str | os.PathLike, ours: tuple[str, ...], *, overwrite: bool) -> Path:
    """Returns the real path of a folder that may be written, with links followed.

    Args:
      path: the folder.
      ours: the names of files that may be replaced; files of other names never are.
      overwrite: whether they may be replaced.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set, or if it
        holds files of other names.
    """
    path = Path(path).resolve()
    if not path.exists():
        return path
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name]
    if held and not overwrite:
        raise FileExistsError(
            f"{path} exists already; choose another path, or ask to overwrite it."
        )
    if strange := [name for name in held if name not in ours]:
        raise FileExistsError(
            f"{path} holds other files, which are not overwritten ({strange[:4]}); "
            "choose another path."
        )
    return path


def load(
    path: str | os.PathLike, *, progress: Callable[[Iterable], Iterable] = iter, **overrides: Any
) -> ODVAE:
    """Loads a model from a folder of the package's own layout.

    Args:
      path: the folder.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape.

    Raises:
      FileNotFoundError: if one of the folder's files is missing.
      ValueError: if the weights do not fit the config, or a field is unknown or cannot be changed.
    """
    path = Path(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            held = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no folder"
            raise FileNotFoundError(
                f"{path / name} does not exist (found: {held}); "
                "expected a folder that save_pretrained wrote."
            )
    config = read_config(path / CONFIG_FILE, **overrides)
    state = read_weight_file(path / WEIGHTS_FILE).content
    parameters = {name: jnp.array(state[name], config.param_dtype) for name in progress(state)}
    try:
        return with_parameters(abstract_model(config), parameters)
    except ValueError as error:
        raise ValueError(
            f"{path / WEIGHTS_FILE} does not fit {path / CONFIG_FILE} "
            f"(another width or variant?): {error}."
        ) from error


def read_config(path: Path, **overrides: Any) -> ODVAEConfig:
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
            f'{path} is not the config of an odvae_jax model ("format": "{FORMAT}" is missing).'
        )
    if missing := [f.name for f in dataclasses.fields(ODVAEConfig) if f.name not in fields]:
        raise ValueError(f"{path}: the fields {missing} are missing.")
    try:
        config = ODVAEConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return with_overrides(config, path, overrides)


def with_overrides(config: ODVAEConfig, source: Path, overrides: dict[str, Any]) -> ODVAEConfig:
    """Returns a config with some fields changed that the weights do not decide.

    Args:
      config: the config of the weights.
      source: the file of the weights, for error messages.
      overrides: the new values by field.

    Raises:
      ValueError: if a field is unknown, or the weights decide it.
    """
    if fixed := [n for n in overrides if hasattr(config, n) and n not in _CHANGEABLE]:
        raise ValueError(
            f"{fixed} cannot be changed while loading {source}: the weights are made for them. "
            f"What can is {list(_CHANGEABLE)}."
        )
    return ODVAEConfig.from_dict({**config.to_dict(), **overrides})


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      ValueError: if the file holds no JSON object.
    """
    try:
        fields = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}, not a JSON object.")
    return fields
