"""Our own layout: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import save_file

from odvae_jax.autoencoder import ODVAE
from odvae_jax.config import ODVAEConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "odvae_jax"
_CHANGEABLE = (
    "upsample",
    "norm",
    "time_upsample",
    "scaling_factor",
    "dtype",
    "param_dtype",
    "precision",
)


def named_parameters(vae: ODVAE) -> dict[str, Any]:
    """Every parameter by its dotted name, such as `encoder.down.0.block.0.conv1.kernel`."""
    state = nnx.state(vae, nnx.Param)
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def abstract_model(config: ODVAEConfig) -> ODVAE:
    """The model with shapes in place of parameters; costs no memory."""
    return nnx.eval_shape(lambda: ODVAE(config, rngs=None))


def with_parameters(vae: ODVAE, parameters: dict[str, Any]) -> ODVAE:
    """The model with these parameters, by dotted name, in place of its own; `vae` may be abstract.

    Raises:
      ValueError: unless names and shapes are exactly the model's.
    """
    expected = {
        ".".join(map(str, path)): leaf.shape
        for path, leaf in nnx.to_flat_state(nnx.state(vae, nnx.Param))
    }
    found = {name: tuple(np.shape(value)) for name, value in parameters.items()}
    if problems := differences(expected, found):
        raise ValueError(problems)
    graph, state = nnx.split(vae)
    flat = [
        (path, leaf.replace(parameters[".".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def differences(expected: dict[str, tuple], found: dict[str, tuple], first: int = 4) -> str:
    """Says how two sets of named shapes differ; empty if they do not."""
    missing = [f"{n} {expected[n]}" for n in expected if n not in found]
    unexpected = [f"{n} {found[n]}" for n in found if n not in expected]
    shapes = [
        f"{n} is {found[n]}, expected {s}"
        for n, s in expected.items()
        if n in found and found[n] != s
    ]
    parts = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)):
        if names:
            more = f", and {len(names) - first} more" if len(names) > first else ""
            parts.append(f"{len(names)} {what}: {', '.join(names[:first])}{more}")
    return "; ".join(parts)


def save(vae: ODVAE, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """See `ODVAE.save_pretrained`."""
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
    """Writes `config.json` and a safetensors file; the folder appears whole or not at all.

    Raises:
      FileExistsError: if `path` holds something already and `overwrite` is not set.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not overwrite:
        raise FileExistsError(
            f"{path} exists already; choose another path, or ask to overwrite it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        building.chmod(0o755)
        (building / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        save_file(arrays, building / weights_file, metadata=metadata)
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def load(
    path: str | os.PathLike, *, progress: Callable[[Iterable], Iterable] = iter, **overrides: Any
) -> ODVAE:
    """See `ODVAE.from_pretrained`."""
    path = Path(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            held = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no folder"
            raise FileNotFoundError(
                f"{path / name} does not exist (found: {held}); "
                "expected a folder that save_pretrained wrote."
            )
    config = read_config(path / CONFIG_FILE, **overrides)
    try:
        with safetensors.safe_open(path / WEIGHTS_FILE, framework="numpy") as file:
            parameters = {
                name: jnp.asarray(file.get_tensor(name), config.param_dtype)
                for name in progress(file.keys())
            }
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path / WEIGHTS_FILE} is not a whole safetensors file: {error}."
        ) from error
    try:
        return with_parameters(abstract_model(config), parameters)
    except ValueError as error:
        raise ValueError(
            f"{path / WEIGHTS_FILE} does not fit {path / CONFIG_FILE}: {error}."
        ) from error


def read_config(path: Path, **overrides: Any) -> ODVAEConfig:
    """The config in a `config.json` of ours, with fields changed that change no parameter."""
    try:
        fields = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(
            f'{path} is not the config of an odvae_jax model ("format": "{FORMAT}" is missing).'
        )
    if fixed := [name for name in overrides if name in fields and name not in _CHANGEABLE]:
        raise ValueError(
            f"{fixed} cannot be changed while loading {path.parent}: "
            f"it decides the parameters' shapes. What can is {list(_CHANGEABLE)}."
        )
    try:
        return ODVAEConfig.from_dict({**fields, **overrides})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
