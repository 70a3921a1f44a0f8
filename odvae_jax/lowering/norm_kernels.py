"""Norms on an NVIDIA GPU, each in one pass at the speed of the memory.

XLA's own operations are slower: its reductions over positions; its elementwise loops, which read
the scales again for each value; and most of all the inputs of pairs (odvae_jax/lowering/pairs.py),
of which it makes three passes. Where these kernels do not run, and for gradients, XLA's operations
compute the same.
"""

from __future__ import annotations

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import AxisType
from jaxtyping import Array, Float

from odvae_jax.sharding.partitioned import partitioned

_BLOCK = 4096  # values that a program takes at a time
_ROWS = 4  # rows of a frame that a program sums
_CAPABILITY = 8.0  # the least compute capability of NVIDIA's GPUs that compute in bfloat16
_wanted = jax.make_user_context(True)  # JAX keeps traced functions apart by its value


def without_kernels() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which programs are traced without this package's GPU kernels.

    `jax.export` needs it: on a machine with an NVIDIA GPU, the program of a bfloat16 model holds
    kernels that JAX can neither serialise nor lower for other platforms too. Within the context,
    XLA's own operations take their place, which are a little slower.
    """
    return _wanted(False)


def applies(x: Float[Array, "b t h w c"]) -> bool:
    """Returns whether the kernels take a clip [B, T, H, W, C] on the devices of this process.

    Their blocks are powers of two, and so must C be.
    """
    return x.shape[-1].bit_count() == 1 and allowed(x)


def allowed(x: Float[Array, "b t h w c"]) -> bool:
    """Returns whether a program may treat a clip in ways of the GPU that are not XLA's.

    The clip must be bfloat16: in float16 its values could overflow. Such ways do not run inside
    `shard_map`, over explicit mesh axes, or within `without_kernels`.
    """
    axes = jax.typeof(x).sharding.mesh.axis_types
    return (
        _wanted.value
        and x.size > 0
        and x.dtype == jnp.bfloat16
        and all(axis == AxisType.Auto for axis in axes)
        and _devices_can()
    )


def _devices_can() -> bool:
    devices = jax.local_devices() if jax.default_backend() == "gpu" else []
    return bool(devices) and all(
        "NVIDIA" in d.device_kind and float(d.compute_capability) >= _CAPABILITY for d in devices
    )


def _call(kernel, grid, results, warps, *arrays):
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=results,
        compiler_params=triton.CompilerParams(num_warps=max(warps, 1)),
        interpret=jax.default_backend() != "gpu",
        name=kernel.func.__name__.strip("_"),
    )(*arrays)


def _positions_at_a_time(positions, channels):
    return math.gcd(positions, max(_BLOCK // channels, 1))


def _activated(x, multiplier, addend):
    return _silu(x.astype(jnp.float32) * multiplier + addend)


def _silu(y):
    # A division would take more time than the memory.
    root = jax.lax.rsqrt(1 + jnp.exp(-y))
    return y * root * root


def forward(x, multiplier, addend):
    """Returns a clip after a norm whose scales are known, and SiLU; see `lowering.normalise`."""
    return norm_silu(x, *(a[:, :, 0, 0] for a in (multiplier, addend)))[0]


def moments(x, axes):
    """Returns the mean of each channel and of its squares; see `lowering.moments`."""
    count = math.prod(x.shape[axis] for axis in axes)
    sums = channel_sums(x)
    return tuple(jnp.sum(y[:, :, :, None], axes, keepdims=True) / count for y in sums)


@partitioned("b t h w c -> b t h c, b t h c", together=("t", "w", "c"))
def channel_sums(x: Float[Array, "b t h w c"]) -> list[Float[Array, "b t n c"]]:
    """Returns the sums, in float32, of each channel and of its squares over parts of each frame.

    A part is one row if the program may be spread over devices, and several rows if not.
    """
    b, t, h, w, c = x.shape
    count = h if jax.device_count() > 1 else h // math.gcd(h, _ROWS)
    positions = h // count * w
    rows = _positions_at_a_time(positions, c)
    sums = _call(
        functools.partial(_sum_channels, rows=rows),
        (t * count, b),
        [jax.ShapeDtypeStruct((b, t * count, c), jnp.float32)] * 2,
        rows * c // 1024,
        x.reshape(b, t * count, positions, c),
    )
    return [y.reshape(b, t, count, c) for y in sums]


def _sum_channels(x, sums, squares, *, rows):
    """Sums part i of clip j, in program (i, j)."""
    part, clip = pl.program_id(0), pl.program_id(1)

    def add(i, totals):
        y = x[clip, part, pl.ds(i * rows, rows), :].astype(jnp.float32)
        return totals[0] + y, totals[1] + y * y

    zeros = jnp.zeros((rows, x.shape[-1]), jnp.float32)
    totals = jax.lax.fori_loop(0, x.shape[2] // rows, add, (zeros, zeros))
    for output, total in zip((sums, squares), totals, strict=True):
        output[clip, part, :] = jnp.sum(total, axis=0)


@partitioned("b t h w c, b s c, b s c -> b t h w c", together=("t", "c", "s"))
def norm_silu(
    x: Float[Array, "b t h w c"],
    multiplier: Float[Array, "b s c"],
    addend: Float[Array, "b s c"],
) -> list[Float[Array, "b t h w c"]]:
    """Returns a list of one array: SiLU of x · multiplier + addend, in the dtype of `x`.

    The multiplier and the addend are per frame (s = t) or per clip (s = 1).
    """
    b, t, h, w, c = x.shape
    per_frame = multiplier.shape[1] > 1
    clips, positions = (b * t, h * w) if per_frame else (b, t * h * w)
    rows = _positions_at_a_time(positions, c)
    (y,) = _call(
        functools.partial(_norm_silu, rows=rows),
        (positions // rows, clips),
        [jax.ShapeDtypeStruct((clips, positions, c), x.dtype)],
        rows * c // 512,
        x.reshape(clips, positions, c),
        *(a.reshape(clips, c) for a in (multiplier, addend)),
    )
    return [y.reshape(x.shape)]


def _norm_silu(x, multiplier, addend, output, *, rows):
    """Computes `rows` positions from `rows` i on, of clip or frame j, in program (i, j)."""
    clip, block = pl.program_id(1), pl.ds(pl.program_id(0) * rows, rows)
    y = _activated(x[clip, block, :], multiplier[clip, :], addend[clip, :])
    output[clip, block, :] = y.astype(x.dtype)


@partitioned(
    "b t h w c, b s c, b s c -> b m h w c, b n h w c, b m h w c, b m h w c",
    together=("t", "c", "s", "m", "n"),
)
def norm_silu_pairs(
    x: Float[Array, "b t h w c"],
    multiplier: Float[Array, "b s c"],
    addend: Float[Array, "b s c"],
) -> list[Float[Array, "b _ h w c"]]:
    """Returns what `pairs.pair_inputs` makes of the result of `norm_silu`, in one pass.

    The clip has at least two frames.
    """
    return norm_silu_pairs_within(x, multiplier, addend, 0, 0)


def norm_silu_pairs_within(
    x: Float[Array, "b t h w c"],
    multiplier: Float[Array, "b s c"],
    addend: Float[Array, "b s c"],
    above: int,
    below: int,
) -> list[Float[Array, "b _ _ w c"]]:
    """Returns what `norm_silu_pairs` does, with room for more rows, which hold any values.

    A program takes some positions and goes through their frames. Each frame is read and activated
    once: what a pair needs of the frames before it stays in registers.

    Args:
      x: the rows of a clip that one device holds.
      multiplier: what the norm multiplies by.
      addend: what the norm adds.
      above: the number of rows above those of `x`.
      below: the number of rows below those of `x`.
    """
    b, t, h, w, c = x.shape
    positions, pairs = h * w, t // 2
    rows = _positions_at_a_time(positions, c)
    lengths = (pairs, pairs + t % 2, pairs, pairs)
    outputs = _call(
        functools.partial(_norm_silu_pairs, rows=rows, start=above * w),
        (positions // rows, b),
        [jax.ShapeDtypeStruct((b, n, (above + h + below) * w, c), x.dtype) for n in lengths],
        rows * c // 512,
        x.reshape(b, t, positions, c),
        multiplier,
        addend,
    )
    return [y.reshape(*y.shape[:2], -1, w, c) for y in outputs]


def _norm_silu_pairs(x, multiplier, addend, *outputs, rows, start):
    """Computes `rows` positions from `rows` i on, of clip j, in program (i, j).

    The first of all stands at place `start` of the outputs.
    """
    clip, block = pl.program_id(1), pl.ds(pl.program_id(0) * rows, rows)
    place_of_block = pl.ds(start + pl.program_id(0) * rows, rows)
    frames, per_frame = x.shape[1], multiplier.shape[1] > 1

    def active(t):
        s = t if per_frame else 0
        return _activated(x[clip, t, block, :], multiplier[clip, s, :], addend[clip, s, :])

    first = active(0)
    odd_count = frames % 2
    if odd_count:
        outputs[1][clip, 0, place_of_block, :] = (2 * first).astype(x.dtype)

    def pair(i, before):
        d0, d1 = before
        d2, d3 = active(2 * i + odd_count), active(2 * i + odd_count + 1)
        sums = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)
        for output, place, value in zip(outputs, (i, i + odd_count, i, i), sums, strict=True):
            output[clip, place, place_of_block, :] = value.astype(x.dtype)
        return d2, d3

    jax.lax.fori_loop(0, frames // 2, pair, (first, first))
