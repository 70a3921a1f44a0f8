"""The parameters of a module by their dotted names, and models without parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from odvae_jax.autoencoder import ODVAE
from odvae_jax.baselines import model_class
from odvae_jax.baselines.base import Baseline, BaselineConfig
from odvae_jax.config import ODVAEConfig
from odvae_jax.diffusion.config import LatteConfig
from odvae_jax.diffusion.denoiser import Latte
from odvae_jax.files import one_line, printable

Module = TypeVar("Module", bound=nnx.Module)
Autoencoder = ODVAE | Baseline
Config = ODVAEConfig | BaselineConfig | LatteConfig


def class_of(model: str) -> Any:
    """Returns the class of a model, whose config's class is its `config_class`.

    Args:
      model: the name that `config.json` gives the model.

    Raises:
      ValueError: if there is no such model.
    """
    return Latte if model == LatteConfig.model else model_class(model)


def named_parameters(module: nnx.Module) -> dict[str, Any]:
    """Returns every parameter by its dotted name, such as "encoder.down.0.block.0.conv1.kernel"."""
    state = nnx.state(module, nnx.Param)
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def abstract_model(config: Config) -> Any:
    """Returns the model of a config with shapes in place of parameters, which takes no memory."""
    cls = ODVAE if isinstance(config, ODVAEConfig) else class_of(config.model)
    return nnx.eval_shape(lambda: cls(config, rngs=None))


def with_parameters(module: Module, parameters: dict[str, Any]) -> Module:
    """Returns a module with other parameters.

    Args:
      module: the module; it may be abstract, as `abstract_model` makes it.
      parameters: the parameters by dotted name.

    Raises:
      ValueError: if the names and shapes are not exactly those of the module.
    """
    check_shapes(module, parameters)
    graph, state = nnx.split(module)
    flat = [
        (path, leaf.replace(parameters[".".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def with_config(model: Autoencoder | Latte, **fields: Any) -> Any:
    """Returns a model with other values of config fields that change no parameter.

    Args:
      model: an autoencoder or a denoiser.
      fields: the new values by field.

    Raises:
      ValueError: if a field is unknown or has an impossible value, or changes a parameter's shape.
    """
    config = type(model.config).from_dict({**model.config.to_dict(), **fields})
    return with_parameters(abstract_model(config), named_parameters(model))


def check_shapes(module: nnx.Module, parameters: dict[str, Any]) -> None:
    """Checks that arrays are exactly the parameters of a module.

    Args:
      module: the module; it may be abstract, as `abstract_model` makes it.
      parameters: the arrays by dotted name.

    Raises:
      ValueError: if a name is missing or unexpected, or a shape is wrong.
    """
    expected = {
        ".".join(map(str, path)): leaf.shape
        for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }
    found = {name: tuple(np.shape(value)) for name, value in parameters.items()}
    if problems := differences(expected, found):
        raise ValueError(problems)


def converted(value: np.ndarray, dtype: str) -> np.ndarray:
    """Returns a floating-point array in another dtype; what is too large for it becomes infinite.

    Nothing is copied if it has the dtype already.
    """
    with np.errstate(all="ignore"):
        return np.asarray(value).astype(jnp.dtype(dtype), copy=False)


def check_finite(parameters: Mapping[str, Any], source: str | os.PathLike) -> None:
    """Checks that no parameter of a model holds NaN or infinity.

    Args:
      parameters: arrays on the host by name.
      source: the file that they come from, for the message.

    Raises:
      ValueError: if some are not finite. The message names the parameters and counts the values.
    """
    counts = {n: np.count_nonzero(~np.isfinite(v)) for n, v in parameters.items()}
    if wrong := {n: int(count) for n, count in counts.items() if count}:
        first = [f"{n} ({wrong[n]} of {np.size(parameters[n])})" for n in list(wrong)[:4]]
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(
            f"{printable(source)} holds values that are not finite: {', '.join(first)}{more}. The "
            "file is damaged, its training diverged, or param_dtype is too small for it: take "
            "another checkpoint, or param_dtype=float32."
        )


def differences(expected: dict[str, tuple], found: dict[str, tuple], first: int = 4) -> str:
    """Says how two sets of named shapes differ; the text is empty if they do not.

    Args:
      expected: the shapes by name that are wanted.
      found: the shapes by name that are there.
      first: how many names of each kind of difference are listed.
    """
    missing = [f"{n} {expected[n]}" for n in expected if n not in found]
    unexpected = [f"{one_line(Exception(n), 100)} {found[n]}" for n in found if n not in expected]
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
