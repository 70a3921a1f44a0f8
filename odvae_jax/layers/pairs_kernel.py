"""Norm, SiLU and the sums that pairs of frames convolve, in one pass over the clip, on a GPU.

XLA makes three passes of it. A program of the kernel takes some positions and goes through their
frames, each of which is read and activated once: what one pair needs of the frames before it stays
in registers. Where the kernel does not run, `odvae_jax/layers/frame_pairs.py` does the same.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from odvae_jax.layers import frame_pairs
from odvae_jax.layers.group_norm import scaled

_BLOCK = 4096  # values of a frame that a program takes
_VALUES_PER_WARP = 512
_CAPABILITY = 8.0  # of NVIDIA's GPUs from which on they compute in bfloat16


def runs_here(x: jax.Array) -> bool:
    """Whether the kernel takes this clip [B, T, H, W, C], on the devices of this process.

    Its blocks are powers of two, and so must C be. Inside `shard_map` and over explicit mesh axes
    it does not run.
    """
    axes = jax.typeof(x).sharding.mesh.axis_types
    return (
        x.shape[0] > 0
        and x.shape[1] > 1
        and x.dtype.itemsize == 2
        and x.shape[-1].bit_count() == 1
        and all(axis == AxisType.Auto for axis in axes)
        and _devices_can()
    )


def _devices_can() -> bool:
    devices = jax.local_devices() if jax.default_backend() == "gpu" else []
    return bool(devices) and all(
        "NVIDIA" in d.device_kind and float(d.compute_capability) >= _CAPABILITY for d in devices
    )


@jax.custom_vjp
def pair_inputs(
    x: Float[Array, "b t h w c"],
    multiplier: Float[Array, "b s 1 1 c"],
    addend: Float[Array, "b s 1 1 c"],
) -> list[Float[Array, "b _ h w c"]]:
    """What the four products of a clip's pairs convolve, as `frame_pairs.clip_inputs` has it.

    Args:
      x: the clip, from its beginning; two frames at least.
      multiplier: of the norm, float32, for each frame or for all.
      addend: alike.
    """
    return _over_batches(x, multiplier[:, :, 0, 0], addend[:, :, 0, 0])


def written_out(
    x: Float[Array, "b t h w c"],
    multiplier: Float[Array, "b s 1 1 c"],
    addend: Float[Array, "b s 1 1 c"],
) -> list[Float[Array, "b _ h w c"]]:
    """The same by XLA."""
    return frame_pairs.clip_inputs(scaled(x, (multiplier, addend), activation=True))


def _forward(*arrays):
    return pair_inputs(*arrays), arrays


def _backward(arrays, gradients):
    return jax.vjp(written_out, *arrays)[1](gradients)


pair_inputs.defvjp(_forward, _backward)


def _over_batches(*arrays):
    """With what `vmap` adds folded into the clips."""

    @jax.custom_batching.custom_vmap
    def run(*arrays):
        # Where nothing can be spread, a program is freer without the rule for it.
        return (_partitioned if jax.device_count() > 1 else _run)(*arrays)

    @run.def_vmap
    def batched(size, in_batched, *arrays):
        arrays = [
            a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_batched in zip(arrays, in_batched, strict=True)
        ]
        outputs = _over_batches(*(a.reshape(-1, *a.shape[2:]) for a in arrays))
        outputs = [y.reshape(size, -1, *y.shape[1:]) for y in outputs]
        return outputs, [True] * len(outputs)

    return run(*arrays)


@custom_partitioning
def _partitioned(x, multiplier, addend):
    return _run(x, multiplier, addend)


def _shardings(mesh, x):
    """Clips, rows and columns may be spread over devices; frames and channels are not."""
    spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else ()
    clips, _, rows, columns, _ = (*spec, *(None,) * 5)[:5]
    large = NamedSharding(mesh, PartitionSpec(clips, None, rows, columns, None))
    return large, NamedSharding(mesh, PartitionSpec(clips, None, None))


def _partition(mesh, arguments, results):
    large, small = _shardings(mesh, arguments[0])
    return mesh, _run, jax.tree.map(lambda _: large, results), (large, small, small)


def _infer(mesh, arguments, results):
    large, _ = _shardings(mesh, arguments[0])
    return jax.tree.map(lambda _: large, results)


_partitioned.def_partition(
    _partition,
    infer_sharding_from_operands=_infer,
    sharding_rule="b t h w c, b s c, b s c -> b m h w c, b n h w c, b m h w c, b m h w c",
    need_replication_factors=("t", "c", "s", "m", "n"),
)


def _run(x, multiplier, addend):
    b, t, h, w, c = x.shape
    positions, pairs = h * w, t // 2
    rows = math.gcd(positions, max(_BLOCK // c, 1))
    lengths = (pairs, pairs + t % 2, pairs, pairs)
    outputs = pl.pallas_call(
        functools.partial(_kernel, rows=rows),
        grid=(positions // rows, b),
        out_shape=[jax.ShapeDtypeStruct((b, n, positions, c), x.dtype) for n in lengths],
        compiler_params=triton.CompilerParams(num_warps=max(rows * c // _VALUES_PER_WARP, 1)),
        interpret=jax.default_backend() != "gpu",
        name="norm_silu_pairs",
    )(x.reshape(b, t, positions, c), multiplier, addend)
    return [y.reshape(*y.shape[:2], h, w, c) for y in outputs]


def _kernel(x, multiplier, addend, *outputs, rows):
    """Positions `rows` i and on, of clip j, for program (i, j)."""
    clip = pl.program_id(1)
    block = pl.ds(pl.program_id(0) * rows, rows)
    frames, per_frame = x.shape[1], multiplier.shape[1] > 1

    def active(t):
        s = t if per_frame else 0
        y = x[clip, t, block, :].astype(jnp.float32) * multiplier[clip, s, :] + addend[clip, s, :]
        return jax.nn.silu(y)

    first = active(0)
    odd_count = frames % 2
    if odd_count:
        outputs[1][clip, 0, block, :] = (2 * first).astype(x.dtype)

    def pair(i, before):
        d0, d1 = before
        d2, d3 = active(2 * i + odd_count), active(2 * i + odd_count + 1)
        sums = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)
        for output, place, value in zip(outputs, (i, i + odd_count, i, i), sums, strict=True):
            output[clip, place, block, :] = value.astype(x.dtype)
        return d2, d3

    jax.lax.fori_loop(0, frames // 2, pair, (first, first))
