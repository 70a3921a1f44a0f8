"""How convolutions and norms are computed fast, and the one table that chooses.

`reference.py` says what is computed. Every other file here is one way to compute it, with its
reasons and its limits; no file knows the conditions of another. The first way of a column that
applies is taken. The column depends on the platform of the program, which is not known when Python
runs. So a program holds one branch per platform, and XLA keeps one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from odvae_jax.lowering import (
    columns_joined,
    doubled_linear,
    doubled_nearest,
    evenly_padded,
    frames_joined,
    lone_frame,
    norm,
    norm_kernels,
    pairs,
    per_frame,
    plain_3d,
    rows_exchanged,
    taps_summed,
)
from odvae_jax.lowering.norm_kernels import without_kernels
from odvae_jax.lowering.reference import Window, window_of
from odvae_jax.sharding import varying_alike

__all__ = [
    "DOUBLINGS",
    "LONE",
    "NORMS",
    "TABLE",
    "convolve",
    "moments",
    "normalise",
    "without_kernels",
]

Scales = tuple[Float[Array, "b s 1 1 c"], Float[Array, "b s 1 1 c"]]
"""Two float32 values for each channel, per frame (s = t) or per clip (s = 1).

For a norm they are what it multiplies by and what it adds.
"""

# Ways to convolve by platform; the first that applies is taken. Each is a module of two functions,
# `forward(x, kernel, before, window)` and, where autodiff would be slower or keep more,
# `backward(x, kernel, dy, window)`, with the condition `applies(x, kernel, before, window)`.
# The column "cuda" was timed on H100 and H200 (docs/kernels.md); "tpu" was never timed.
TABLE = {
    "cuda": (taps_summed, columns_joined, pairs, evenly_padded, per_frame, frames_joined),
    "tpu": (taps_summed, per_frame, plain_3d),
    "default": (taps_summed, per_frame, frames_joined),
}
# Ways to normalise by platform, with functions `forward`, `backward` and `moments`.
NORMS = {"cuda": (norm_kernels, norm), "default": (norm,)}
# Ways that make a smaller convolution of one, on every platform. It is then looked up above.
LONE, DOUBLINGS = lone_frame, (doubled_nearest, doubled_linear)

_named = jax.named_scope("norm")  # the name that profiles show


def convolve(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt k k c d"],
    *,
    strides: tuple[int, int] = (1, 1),
    scales: Scales | None = None,
    before: Float[Array, "b s h w c"] | None = None,
    doubling: Literal["nearest", "linear"] | None = None,
    precision: str = "default",
    out_dtype: str | None = None,
) -> Float[Array, "b u v y d"]:
    """Returns a causal 3D convolution without bias, which `reference.convolve` defines.

    Args:
      x: a clip, or the part of a clip that follows `before`.
      kernel: [kt, k, k, C, D], where kt and k are 1 or 3 each.
      strides: the strides in time and in space, 1 or 2 each.
      scales: what a norm multiplies by and adds. `x` goes first through this norm and then through
        SiLU. They are allowed only at the beginning of a clip and without doubling; None leaves the
        norm and SiLU out.
      before: the kt - 1 frames before `x`; None if `x` begins a clip.
      doubling: how rows and columns are doubled first; None keeps their number.
      precision: the precision of float32 products, as in `ODVAEConfig`.
      out_dtype: the dtype of the result; None takes that of `x`.
    """
    if LONE.applies(x, kernel, before):
        kernel = LONE.reduced(kernel)
    if doubling is None:
        window = window_of(kernel.shape[1], strides, precision)
        run, arguments = _prepared(x, kernel, scales, before, window)
        y = run(*arguments)
    else:
        way = next(w for w in DOUBLINGS if w.applies(doubling))
        y = way.forward(x, kernel, before, precision, _convolve_without_norm)
    return y.astype(out_dtype or x.dtype)


def _convolve_without_norm(x, kernel, before, window):
    run, arguments = _prepared(x, kernel, None, before, window)
    return run(*arguments)


def _prepared(x, kernel, scales, before, window):
    """Returns the function that convolves, and its arguments."""
    leaves, tree = jax.tree.flatten((x, kernel, scales, before))
    x, kernel, scales, before = jax.tree.unflatten(tree, varying_alike(*leaves))
    # Only a 3D convolution to many channels normalises again in the gradient; the others keep
    # their input normalised.
    alone = kernel.shape[0] == 1 or taps_summed.applies(x, kernel, before, window)
    if scales is None or not alone:
        return _convolve, (x, kernel, scales, before, window)
    if rows_exchanged.applies(x, kernel, window):
        return _after_norm, (x, kernel, scales, window)
    return _convolve, (_normed(x, scales), kernel, None, before, window)


# Without a gradient, the norm leaves room for the rows of neighbours.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _after_norm(x, kernel, scales, window):
    return _convolve(x, kernel, scales, None, window)


def _after_norm_forward(x, kernel, scales, window):
    def one_by_one(x, kernel, scales):
        return _convolve(_normed(x, scales), kernel, None, None, window)

    return jax.vjp(one_by_one, x, kernel, scales)


def _after_norm_backward(window, pull, dy):
    return pull(dy)


_after_norm.defvjp(_after_norm_forward, _after_norm_backward)


# All ways share one hand-written gradient, which keeps only the arguments. Branches with gradients
# of their own would each keep something, and a program would keep all of it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _convolve(x, kernel, scales, before, window):
    ways = ways_to_convolve(x, kernel, before, window)
    if rows_exchanged.applies(x, kernel, window):
        branches = _branches(ways, lambda way: functools.partial(_run_on_rows, way, window))
        return by_platform(x, kernel, scales, before, **branches)
    if scales is None:
        branches = _branches(ways, lambda way: functools.partial(way.forward, window=window))
        return by_platform(x, kernel, before, **branches)
    branches = _branches(ways, lambda way: functools.partial(_run, way, window))
    return by_platform(x, kernel, scales, before, **branches)


def _run_on_rows(way, window, x, kernel, scales, before):
    return rows_exchanged.forward(_on_one_device(way), x, kernel, scales, before, window)


@functools.cache  # the same function for the same way
def _on_one_device(way):
    def run(x, kernel, scales, before, window, outer):
        if outer is None:
            return _run(way, window, x, kernel, scales, before)
        if _fuses(way, x, scales, before):
            return way.forward(x, kernel, None, window, scales, outer)
        x = outer.around(x) if scales is None else _normed_within(x, scales, outer)
        before = None if before is None else outer.around(before)
        return way.forward(x, kernel, before, window)

    return run


def _normed_within(x, scales, outer):
    def written_out(x, *scales):
        return outer.around(norm.forward(x, *scales, True))

    def by_kernel(x, *scales):
        return outer.around_results(norm_kernels.NORM_SILU, x, scales)[0]

    runs = {norm: written_out, norm_kernels: by_kernel}
    return by_platform(x, *scales, **_branches(ways_to_normalise(x), runs.get))


def _run(way, window, x, kernel, scales, before):
    if _fuses(way, x, scales, before):
        return way.forward(x, kernel, before, window, scales)
    return way.forward(_normed(x, scales), kernel, before, window)


def _convolve_forward(x, kernel, scales, before, window):
    return _convolve(x, kernel, scales, before, window), (x, kernel, scales, before)


def _convolve_backward(window, residuals, dy):
    x, kernel, _, before = residuals
    ways = ways_to_convolve(x, kernel, before, window)
    branches = _branches(ways, lambda way: functools.partial(_run_back, way, window))
    return by_platform(*residuals, dy, **branches)


def _run_back(way, window, x, kernel, scales, before, dy):
    if before is not None or not hasattr(way, "backward"):
        run = functools.partial(_run, way, window)
        return jax.vjp(run, x, kernel, scales, before)[1](dy)
    normed, pull = jax.vjp(_normed, x, scales)
    if _fuses(way, x, scales, before):
        dnormed, dkernel = way.backward(x, kernel, dy, window, scales)
    else:
        dnormed, dkernel = way.backward(normed, kernel, dy, window)
    dx, dscales = pull(dnormed)
    return dx, dkernel, dscales, None


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _fuses(way, x, scales, before):
    return scales is not None and way is pairs and pairs.takes_norm(x, before)


def _normed(x, scales):
    return x if scales is None else normalise(x, *scales, activation=True)


def ways_to_convolve(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    before: Float[Array, "b s h w c"] | None,
    window: Window,
) -> dict[str, ModuleType]:
    """Returns the way that each platform takes to convolve, by the platform's name.

    Args:
      x: a clip, or the part of a clip that follows `before`.
      kernel: [kt, k, k, C, D].
      before: the kt - 1 frames before `x`; None if `x` begins a clip.
      window: how the kernel goes over the clip.
    """
    return {
        platform: next(way for way in column if way.applies(x, kernel, before, window))
        for platform, column in TABLE.items()
    }


@_named
def normalise(
    x: Float[Array, "b t h w c"],
    multiplier: Float[Array, "b s 1 1 c"],
    addend: Float[Array, "b s 1 1 c"],
    *,
    activation: bool,
) -> Float[Array, "b t h w c"]:
    """Returns a clip after a norm whose scales are known, and after SiLU if `activation` is set.

    `reference.normalise` defines it. The result has the dtype of `x`.

    Args:
      x: the clip, [B, T, H, W, C].
      multiplier: what the norm multiplies by, float32.
      addend: what the norm adds, float32.
      activation: whether SiLU follows.
    """
    return _normalise(*varying_alike(x, multiplier, addend), activation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x, multiplier, addend, activation):
    def written_out(*arrays):
        return norm.forward(*arrays, activation)

    ways = ways_to_normalise(x) if activation else dict.fromkeys(NORMS, norm)
    runs = {norm: written_out, norm_kernels: norm_kernels.forward}
    return by_platform(x, multiplier, addend, **_branches(ways, runs.get))


def _normalise_forward(x, multiplier, addend, activation):
    return _normalise(x, multiplier, addend, activation), (x, multiplier, addend)


@_named
def _normalise_backward(activation, residuals, dy):
    return norm.backward(*residuals, activation, dy)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def moments(x: Float[Array, "b t h w c"], axes: tuple[int, ...]) -> Scales:
    """Returns the mean of each channel, and of its squares, in float32.

    `reference.moments` defines them.

    Args:
      x: the clip, [B, T, H, W, C].
      axes: the axes that the means are taken over; they stay with length 1.
    """
    return _moments(x, axes) if norm_kernels.applies(x) else norm.moments(x, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _moments(x, axes):
    ways = ways_to_normalise(x)
    branches = _branches(ways, lambda way: functools.partial(way.moments, axes=axes))
    return by_platform(x, **branches)


def _moments_forward(x, axes):
    return _moments(x, axes), x


@_named
def _moments_backward(axes, x, gradients):
    return jax.vjp(lambda x: norm.moments(x, axes), x)[1](gradients)


_moments.defvjp(_moments_forward, _moments_backward)


def ways_to_normalise(x: Float[Array, "b t h w c"]) -> dict[str, ModuleType]:
    """Returns the way that each platform takes to normalise a clip, by the platform's name."""
    return {p: next(way for way in column if way.applies(x)) for p, column in NORMS.items()}


def _branches(ways: dict, run_of: Callable) -> dict[str, Callable]:
    """Returns one function per platform, except for platforms that take the default way."""
    default = ways["default"]
    taken = {platform: way for platform, way in ways.items() if way is not default}
    return {platform: run_of(way) for platform, way in (taken | {"default": default}).items()}


def by_platform(*arrays: Any, default: Callable, **others: Callable) -> Any:
    """Returns what the branch of the platform returns for which the program is compiled.

    Args:
      *arrays: the arrays that each branch is called with.
      default: the branch of platforms that have none of their own.
      **others: the branches by platform, "cuda" and "tpu".
    """
    if not others:
        return default(*arrays)
    return jax.lax.platform_dependent(*arrays, default=default, **others)
