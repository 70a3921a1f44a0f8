"""What foreign layouts share: PyTorch's kernels, and strict matching of names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from odvae_jax.checkpoints.files import WeightFile, others, tensors
from odvae_jax.files import printable
from odvae_jax.parameters import (
    Config,
    abstract_model,
    check_finite,
    converted,
    differences,
    named_parameters,
    with_parameters,
)

Progress = Callable[[Iterable], Iterable]


def to_kernel(weight: Float[np.ndarray, "..."]) -> Float[np.ndarray, "kt k k c d"]:
    """Returns a weight of PyTorch as a kernel of this package, [kt, k, k, I, O].

    The weight is [O, I], [O, I, k, k] or [O, I, kt, k, k].
    """
    o, i, *sides = weight.shape
    kt, kh, kw = [1] * (3 - len(sides)) + sides
    return weight.reshape(o, i, kt, kh, kw).transpose(2, 3, 4, 1, 0)


def from_kernel(kernel: Float[np.ndarray, "kt k k c d"], axes: int) -> Float[np.ndarray, "..."]:
    """Returns a kernel [kt, k, k, I, O] of this package as a weight of PyTorch.

    Args:
      kernel: the kernel; its sides must be 1 along the axes that are left out.
      axes: the number of axes of the weight: 2 for [O, I], 4 for [O, I, k, k], 5 for [O, I, kt, k,
        k].
    """
    weight = kernel.transpose(4, 3, 0, 1, 2)
    return np.ascontiguousarray(weight.reshape(*weight.shape[:2], *weight.shape[2:][5 - axes :]))


def torch_state(
    model: Any, their_name: Callable[[str], str], axes: Callable[[str, tuple[int, ...]], int]
) -> dict[str, np.ndarray]:
    """Returns the parameters of a model as PyTorch's tensors by their names in another layout.

    Args:
      model: the model.
      their_name: a function from this package's name of a parameter to the name there.
      axes: a function from a kernel's name and shape to the number of axes of the weight there.
    """
    state = {}
    for ours, value in named_parameters(model).items():
        value = np.asarray(value)
        if ours.endswith(".kernel"):
            value = from_kernel(value, axes(ours, value.shape))
        state[their_name(ours)] = value
    return state


def length_of(weight: np.ndarray, name: str, source: Path) -> int:
    """Returns the length of the first axis of a weight, which is the number of its outputs.

    Args:
      weight: the weight.
      name: the name of the weight, for the error message.
      source: the file, for the error message.

    Raises:
      ValueError: if the weight is a single number.
    """
    if not np.ndim(weight):
        raise ValueError(f"{printable(source)}: {name} is a single number; expected a weight.")
    return weight.shape[0]


def names_in(file: WeightFile) -> Mapping[str, Any]:
    """Returns a mapping of the names in a training checkpoint, or in a bare file; none is read."""
    inner = file.content.get("state_dict")
    return inner if isinstance(inner, Mapping) else file.content


def lightning_state(
    file: WeightFile, ignored: tuple[str, ...]
) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the tensors of a training checkpoint, or of a bare file, and the names left out.

    Args:
      file: the opened file. If it has a `state_dict`, its tensors are taken.
      ignored: how the names of tensors begin that are left out.
    """
    content = file.content
    inner = content.get("state_dict")
    nested = isinstance(inner, Mapping)
    left_out = others(content, "state_dict") if nested else []
    content = inner if nested else content
    state = tensors(content)
    unused = [name for name in state if name.startswith(ignored)]
    kept = {n: state[n] for n in state if not n.startswith(ignored)} if unused else state
    return kept, [*unused, *left_out, *others(content)]


def check_halves(state: Mapping[str, Any], model: str, source: Path) -> None:
    """Checks that a file holds both halves of an autoencoder, or neither.

    Args:
      state: the tensors by name.
      model: what the message calls the autoencoder, such as "CV-VAE".
      source: the file, for the error message.

    Raises:
      ValueError: if it holds an encoder or a decoder alone.
    """
    halves = ("encoder", "decoder")
    held = [half for half in halves if any(name.startswith(f"{half}.") for name in state)]
    if len(held) == 1:
        other = halves[1 - halves.index(held[0])]
        raise ValueError(
            f"{printable(source)} holds the {held[0]} of {model} alone: take the file that holds "
            f"its {other}, too."
        )


def torch_leaf(name: str) -> tuple[str, str]:
    """Returns the layer and PyTorch's name of a parameter of this package.

    For "encoder.conv_in.kernel" they are "encoder.conv_in" and "weight".
    """
    layer, leaf = name.rsplit(".", 1)
    return layer, "bias" if leaf == "bias" else "weight"


def build(
    config: Config,
    state: Mapping[str, Any],
    their_name: Callable[[str], tuple[str, ...]],
    source: Path,
    progress: Progress = iter,
) -> Any:
    """Builds the model of a config from PyTorch's tensors.

    The tensors must be exactly the model's parameters, neither more nor fewer.

    Args:
      config: the config of the model.
      state: PyTorch's tensors by name, without those that are to be ignored.
      their_name: a function from this package's name of a parameter to the names that it may have
        in `state`.
      source: the file of the tensors, for error messages.
      progress: wraps the loop over parameters, for example in a progress bar.

    Raises:
      ValueError: if names are missing or unexpected, or shapes are wrong. The message lists the
        first few.
    """
    vae = abstract_model(config)
    expected = {n: tuple(p.shape) for n, p in named_parameters(vae).items()}
    names = {ours: next((n for n in their_name(ours) if n in state), None) for ours in expected}
    found, parameters = {}, {}
    for ours, theirs in progress(names.items()):
        if theirs is None:
            continue
        value = state[theirs]
        found[theirs] = value.shape
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{printable(source)}: {theirs} is of {value.dtype}; weights are floating point."
            )
        if ours.endswith(".kernel") and value.ndim in (2, 4, 5):
            value = to_kernel(value)
        if value.shape == expected[ours]:
            parameters[ours] = converted(value, config.param_dtype)
    wanted = {}
    for ours, theirs in names.items():
        if ours in parameters:
            wanted[theirs] = found[theirs]
        else:
            axes = len(found.get(theirs, ())) or (4 if expected[ours][0] == 1 else 5)
            wanted[theirs or their_name(ours)[0]] = _torch_shape(expected[ours], axes)
    found |= {n: np.shape(state[n]) for n in state if n not in found}
    if problems := differences(wanted, found):
        raise ValueError(
            f"{printable(source)} does not hold a {config.name!r} model of width {config.width}: "
            f"{problems}. {_likely_cause(wanted, found)}"
        )
    check_finite({names[ours]: value for ours, value in parameters.items()}, source)
    # Copies: what is mapped from a file would change with the file.
    return with_parameters(vae, {n: jnp.array(v, copy=True) for n, v in parameters.items()})


def _torch_shape(shape, axes):
    """The shape that PyTorch's tensor of `axes` axes has for our parameter."""
    if len(shape) != 5:
        return shape
    kt, kh, kw, i, o = shape
    return (o, i, kt, kh, kw) if axes == 5 or kt > 1 else (o, i, kh, kw)[:axes]


def _likely_cause(wanted, got):
    if not wanted.keys() & got.keys():
        return "No name fits: this is another kind of model."
    shapes = [(wanted[n], got[n]) for n in wanted.keys() & got.keys() if wanted[n] != got[n]]
    if any(a[-1] != b[-1] for a, b in shapes):
        return "Likely it is of another width or number of latent channels."
    if shapes or wanted.keys() ^ got.keys():
        return "Likely it is of another variant, or incomplete."
    return ""
