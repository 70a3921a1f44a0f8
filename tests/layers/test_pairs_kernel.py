"""The kernel against the sums written out, in interpret mode: outputs begin as NaN there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from odvae_jax.layers import causal_conv, pairs_kernel
from tests.conftest import full
from tests.layers.test_causal_conv import on_a_gpu, scales


def clip(b, t, h, w, c):
    x = np.random.default_rng(t).standard_normal((b, t, h, w, c)).astype(np.float32)
    return jnp.asarray(x, jnp.bfloat16)


def written_out(x, *scales):
    """In float32, from the activated frames."""
    return pairs_kernel.written_out(x.astype(jnp.float32), *scales)


def assert_equal_but_for_rounding(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(2, 5, 6, 7, 8), *full((1, 6, 8, 8, 4), (1, 2, 3, 5, 16))], ids=str
)
@pytest.mark.parametrize("per_frame", [True, False])
def test_every_value_is_that_of_the_sums_written_out(shape, per_frame):
    b, t, _, _, c = shape
    arguments = clip(*shape), *scales(b, t if per_frame else 1, c)
    assert_equal_but_for_rounding(pairs_kernel.pair_inputs(*arguments), written_out(*arguments))


def test_one_value_of_a_block_at_a_time_and_many_blocks(monkeypatch):
    monkeypatch.setattr(pairs_kernel, "_BLOCK", 16)
    arguments = clip(1, 3, 5, 4, 8), *scales(1, 1, 8)
    assert_equal_but_for_rounding(pairs_kernel.pair_inputs(*arguments), written_out(*arguments))


@pytest.mark.parametrize("in_axes", [(0, 0, 0), (0, None, None)], ids=str)
def test_vmap_is_more_clips(in_axes):
    x, (multiplier, addend) = clip(6, 5, 4, 4, 8), scales(6, 1, 8)
    expected = written_out(x, multiplier, addend)
    if in_axes[1] is None:
        multiplier, addend = multiplier[:3], addend[:3]
        expected = written_out(x, *(jnp.tile(a, (2, 1, 1, 1, 1)) for a in (multiplier, addend)))
    arguments = [
        a if axis is None else a.reshape(2, 3, *a.shape[1:])
        for a, axis in zip((x, multiplier, addend), in_axes, strict=True)
    ]
    ours = jax.vmap(pairs_kernel.pair_inputs, in_axes)(*arguments)
    assert_equal_but_for_rounding([y.reshape(6, *y.shape[2:]) for y in ours], expected)


def test_clips_rows_and_columns_stay_where_they_are():
    mesh = jax.make_mesh((2, 2, 2), ("data", "height", "width"), axis_types=(AxisType.Auto,) * 3)
    spec = P("data", None, "height", "width")
    x, small = clip(4, 5, 8, 8, 8), scales(4, 1, 8)
    spread = jax.device_put(x, NamedSharding(mesh, spec))
    run = jax.jit(pairs_kernel.pair_inputs)
    ours = run(spread, *small)
    assert_equal_but_for_rounding(ours, written_out(x, *small))
    shards = [y.sharding.shard_shape(y.shape) for y in ours]
    assert shards == [(2, n, 4, 4, 8) for n in (2, 3, 2, 2)]
    assert "all-gather" not in run.lower(spread, *small).compile().as_text()


def test_a_mesh_in_context_need_not_spread_anything():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    arguments = clip(4, 5, 4, 4, 8), *scales(4, 1, 8)
    with jax.set_mesh(mesh):
        ours = jax.jit(lambda *a: pairs_kernel.pair_inputs(*a))(*arguments)
    assert_equal_but_for_rounding(ours, written_out(*arguments))


def test_its_gradient_is_that_of_the_sums_written_out():
    def total(function, *arguments):
        return sum(jnp.sum(jnp.sin(y.astype(jnp.float32))) for y in function(*arguments))

    arguments = clip(2, 5, 4, 4, 8), *scales(2, 1, 8)
    ours, expected = (
        jax.grad(functools.partial(total, f), argnums=(0, 1, 2))(*arguments)
        for f in (pairs_kernel.pair_inputs, pairs_kernel.written_out)
    )
    for a, b in zip(ours, expected, strict=True):
        a, b = (v.astype(jnp.float32) for v in (a, b))
        np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.std(b)), rtol=0.02)


@pytest.mark.parametrize("axes", ["none", "auto", "manual"])
def test_a_convolution_with_the_kernel_and_its_gradient_are_the_plain_ones(monkeypatch, axes):
    x, small = clip(2, 5, 8, 4, 8), scales(2, 1, 8)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 3, 8, 24)) / 15)

    def run(x, kernel, multiplier, addend):
        y = causal_conv.causal_conv(x, kernel, scales=(multiplier, addend))
        return jnp.sum(jnp.cos(y.astype(jnp.float32)), axis=(1, 2, 3, 4)), y

    def with_gradients(*arguments):
        total, pull, y = jax.vjp(run, *arguments, has_aux=True)
        return y, *pull(jnp.ones_like(total))

    expected = with_gradients(x.astype(jnp.float32), kernel, *small)
    calls = []
    monkeypatch.setattr(pairs_kernel, "_devices_can", lambda: True)
    monkeypatch.setattr(
        pairs_kernel, "_run", lambda *a, run=pairs_kernel._run: calls.append(1) or run(*a)
    )
    on_a_gpu(monkeypatch)
    types = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "height"), axis_types=types, devices=jax.devices()[:4])
    if axes == "auto":
        x = jax.device_put(x, NamedSharding(mesh, P("data", None, "height")))
    if axes == "manual":
        clips, whole = P("data"), P()
        with_gradients = jax.shard_map(
            with_gradients, mesh=mesh, in_specs=(clips, whole, clips, clips),
            out_specs=(clips, clips, whole, clips, clips),
        )  # fmt: skip
    ours = jax.jit(with_gradients)(x, kernel, *small)
    assert bool(calls) == (axes != "manual")
    for a, b in zip(ours, expected, strict=True):
        spread = float(jnp.std(b.astype(jnp.float32)))
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * spread, rtol=0.02)


def test_where_it_does_not_run(monkeypatch):
    x = clip(1, 3, 4, 4, 8)
    assert not pairs_kernel.runs_here(x), "there is no GPU here"
    monkeypatch.setattr(pairs_kernel, "_devices_can", lambda: True)
    assert pairs_kernel.runs_here(x)
    assert not pairs_kernel.runs_here(x.astype(jnp.float32))
    assert not pairs_kernel.runs_here(clip(1, 3, 4, 4, 12)), "blocks are powers of two"
