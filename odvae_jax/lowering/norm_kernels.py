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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float

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


def _call(kernel, grid, outputs, warps, *arrays):
    """Returns what a kernel writes: new arrays, of which shapes are given, or into given ones."""
    given = [y for y in outputs if isinstance(y, jax.Array)]
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y in outputs],
        input_output_aliases={len(arrays) + i: i for i in range(len(given))},
        compiler_params=triton.CompilerParams(num_warps=max(warps, 1)),
        interpret=jax.default_backend() != "gpu",
        name=kernel.func.__name__.strip("_"),
    )(*arrays, *given)


def _positions_at_a_time(positions, channels):
    return math.gcd(positions, max(_BLOCK // channels, 1))


def _activated(x, multiplier, addend, present=None):
    y = _silu(x.astype(jnp.float32) * multiplier + addend)
    return y if present is None else jnp.where(present != 0, y, 0.0)


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
    b, _, _, w, c = x.shape
    # Longer frames fill the blocks of a program more often.
    frames = x if multiplier.shape[1] > 1 else x.reshape(b, 1, -1, w, c)
    (y,) = NORM_SILU.within(frames, multiplier, addend, 0, 0)
    return [y.reshape(x.shape)]


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
    return NORM_SILU_PAIRS.within(x, multiplier, addend, 0, 0)


class RowKernel(NamedTuple):
    """A kernel whose results have as many rows as the clip, on one device.

    Attributes:
      kernel: the kernel.
      lengths: a function of the number of frames to those of each result.
      over_frames: whether a program computes one frame; otherwise it goes through all frames.
    """

    kernel: Callable
    lengths: Callable[[int], Sequence[int]]
    over_frames: bool

    def within(
        self,
        x: Float[Array, "b t h w c"],
        multiplier: Float[Array, "b s c"],
        addend: Float[Array, "b s c"],
        above: int,
        below: int,
    ) -> list[Float[Array, "b _ _ w c"]]:
        """Returns the results, with room for more rows, which hold any values.

        Args:
          x: the rows of a clip that one device holds.
          multiplier: what the norm multiplies by.
          addend: what the norm adds.
          above: the number of rows above those of `x`.
          below: the number of rows below those of `x`.
        """
        b, t, h, w, c = x.shape
        positions = (above + h + below) * w
        results = [jax.ShapeDtypeStruct((b, n, positions, c), x.dtype) for n in self.lengths(t)]
        return self._run(results, x, (multiplier, addend), above)

    def into(
        self,
        outputs: Sequence[Float[Array, "b _ _ w c"]],
        x: Float[Array, "b t h w c"],
        multiplier: Float[Array, "b s c"],
        addend: Float[Array, "b s c"],
        present: Bool[Array, ""],
        place: int,
    ) -> list[Float[Array, "b _ _ w c"]]:
        """Returns the outputs with the results of some rows, in the same memory.

        Args:
          outputs: what the rows are written into.
          x: the rows.
          multiplier: what the norm multiplies by.
          addend: what the norm adds.
          present: whether there are these rows. If not, zeros are written in place of the results.
          place: the place of the first row in the outputs.
        """
        flat = [y.reshape(*y.shape[:2], -1, y.shape[-1]) for y in outputs]
        scales = multiplier, addend, present.astype(jnp.int32)[None]
        return self._run(flat, x, scales, place)

    def _run(self, outputs, x, scales, place):
        b, t, h, w, c = x.shape
        rows = _positions_at_a_time(h * w, c)
        outputs = _call(
            functools.partial(self.kernel, rows=rows, start=place * w),
            (h * w // rows, b, t) if self.over_frames else (h * w // rows, b),
            outputs,
            rows * c // 512,
            x.reshape(b, t, h * w, c),
            *scales,
        )
        return [y.reshape(*y.shape[:2], -1, w, c) for y in outputs]


def _norm_silu(x, multiplier, addend, *others, rows, start):
    """Computes `rows` positions from `rows` i on, of frame t of clip j, in program (i, j, t).

    The first of all stands at place `start` of the output.
    """
    clip, frame = pl.program_id(1), pl.program_id(2)
    block = pl.ds(pl.program_id(0) * rows, rows)
    place = pl.ds(start + pl.program_id(0) * rows, rows)
    (output,), present = _outputs_of(others, 1)
    s = frame if multiplier.shape[1] > 1 else 0
    y = _activated(x[clip, frame, block, :], multiplier[clip, s, :], addend[clip, s, :], present)
    output[clip, frame, place, :] = y.astype(x.dtype)


def _norm_silu_pairs(x, multiplier, addend, *others, rows, start):
    """Computes `rows` positions from `rows` i on, of all frames of clip j, in program (i, j).

    The first of all stands at place `start` of the outputs. Each frame is read and activated once:
    what a pair needs of the frames before it stays in registers.
    """
    clip, block = pl.program_id(1), pl.ds(pl.program_id(0) * rows, rows)
    place_of_block = pl.ds(start + pl.program_id(0) * rows, rows)
    outputs, present = _outputs_of(others, 4)
    frames, per_frame = x.shape[1], multiplier.shape[1] > 1

    def active(t):
        s = t if per_frame else 0
        scales = multiplier[clip, s, :], addend[clip, s, :]
        return _activated(x[clip, t, block, :], *scales, present)

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


def _outputs_of(others, count):
    """Returns the outputs, and whether the rows are present, which is always if None is returned.

    Where a kernel writes into arrays, these are among its arguments once more.
    """
    outputs = others[len(others) - count :]
    return outputs, others[0][0] if len(others) > count else None


def _lengths_of_pairs(frames):
    pairs = frames // 2
    return pairs, pairs + frames % 2, pairs, pairs


NORM_SILU = RowKernel(_norm_silu, lambda frames: [frames], over_frames=True)
NORM_SILU_PAIRS = RowKernel(_norm_silu_pairs, _lengths_of_pairs, over_frames=False)
