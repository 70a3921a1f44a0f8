"""The parameters of a module by their dotted names, and models without parameters."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from flax import nnx

from odvae_jax.autoencoder import ODVAE
from odvae_jax.config import ODVAEConfig

Module = TypeVar("Module", bound=nnx.Module)


def named_parameters(module: nnx.Module) -> dict[str, Any]:
    """Returns every parameter by its dotted name, such as "encoder.down.0.block.0.conv1.kernel"."""
    state = nnx.state(module, nnx.Param)
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def abstract_model(config: ODVAEConfig) -> ODVAE:
    """Returns the model of a config with shapes in place of parameters, which takes no memory."""
    return nnx.eval_shape(lambda: ODVAE(config, rngs=None))


def with_parameters(module: Module, parameters: dict[str, Any]) -> Module:
    """Returns a module with other parameters.

    Args:
      module: the module; it may be abstract, as `abstract_model` makes it.
      parameters: the parameters by dotted name.

    Raises:
      ValueError: if the names and shapes are not exactly those of the module.
    """
    expected = {
        ".".join(map(str, path)): leaf.shape
        for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }
    found = {name: tuple(np.shape(value)) for name, value in parameters.items()}
    if problems := differences(expected, found):
        raise ValueError(problems)
    graph, state = nnx.split(module)
    flat = [
        (path, leaf.replace(parameters[".".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def differences(expected: dict[str, tuple], found: dict[str, tuple], first: int = 4) -> str:
    """Says how two sets of named shapes differ; the text is empty if they do not.

    Args:
      expected: the shapes by name that are wanted.
      found: the shapes by name that are there.
      first: how many names of each kind of difference are listed.
    """
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
