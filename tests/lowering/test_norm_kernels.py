"""The kernels against what they replace, in interpret mode: outputs begin as NaN there."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import odvae_jax
from odvae_jax import lowering
from odvae_jax.layers import group_norm
from odvae_jax.lowering import norm_kernels
from odvae_jax.lowering import pairs as pairs_way
from tests.conftest import full
from tests.lowering.test_ways import scales


def statistics(x, multiplier, addend):
    axes = (2, 3) if multiplier.shape[1] > 1 else (1, 2, 3)
    return group_norm._group_statistics(x, axes, 2)


def normed(x, *scales):
    return (lowering.normalise(x, *scales, activation=True),)


def pairs(x, *scales):
    if pairs_way.takes_norm(x, None):
        return pairs_way._clip_inputs(x, scales)
    return pairs_way._clip_inputs(lowering.normalise(x, *scales, activation=True))


FUNCTIONS = pytest.mark.parametrize("function", [statistics, normed, pairs])


def clip(b, t, h, w, c):
    x = np.random.default_rng(t).standard_normal((b, t, h, w, c)).astype(np.float32)
    return jnp.asarray(x, jnp.bfloat16)


def assert_kernels(gpu, function, ours, arguments):
    """That kernels ran, and gave what `function` gives in float32, where none does."""
    assert gpu
    gpu.clear()
    expected = function(arguments[0].astype(jnp.float32), *arguments[1:])
    assert not gpu
    for a, b in zip(ours, expected, strict=True):
        rounding = 2**-8 if a.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=rounding, atol=2e-6)


@FUNCTIONS
@pytest.mark.parametrize(
    "shape", [(2, 5, 6, 7, 8), *full((1, 6, 8, 8, 4), (1, 2, 3, 5, 16))], ids=str
)
@pytest.mark.parametrize("per_frame", [True, False])
def test_every_value_is_that_written_out(gpu, shape, per_frame, function):
    b, t, _, _, c = shape
    arguments = clip(*shape), *scales(b, t if per_frame else 1, c)
    assert_kernels(gpu, function, function(*arguments), arguments)


@FUNCTIONS
def test_one_value_of_a_block_at_a_time_and_many_blocks(monkeypatch, gpu, function):
    monkeypatch.setattr(norm_kernels, "_BLOCK", 16)
    arguments = clip(1, 3, 5, 4, 8), *scales(1, 1, 8)
    assert_kernels(gpu, function, function(*arguments), arguments)


@FUNCTIONS
def test_an_image_and_a_lone_column(gpu, function):
    arguments = clip(1, 1, 3, 1, 8), *scales(1, 1, 8)
    assert_kernels(gpu, function, function(*arguments), arguments)


@FUNCTIONS
def test_one_device_sums_rows_together(monkeypatch, gpu, function):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    arguments = clip(1, 3, 12, 4, 8), *scales(1, 1, 8)
    assert_kernels(gpu, function, function(*arguments), arguments)


@FUNCTIONS
@pytest.mark.parametrize("in_axes", [(0, 0, 0), (0, None, None)], ids=str)
def test_vmap_is_more_clips(gpu, in_axes, function):
    x, small = clip(6, 5, 4, 4, 8), scales(6, 1, 8)
    if in_axes[1] is None:
        small = [jnp.tile(a[:3], (2, 1, 1, 1, 1)) for a in small]
    arguments = [
        a[:3] if axis is None else a.reshape(2, 3, *a.shape[1:])
        for a, axis in zip((x, *small), in_axes, strict=True)
    ]
    ours = jax.vmap(function, in_axes)(*arguments)
    ours = [y.reshape(6, *y.shape[2:]) for y in ours]
    assert_kernels(gpu, function, ours, (x, *small))


@FUNCTIONS
def test_clips_and_rows_stay_where_they_are(gpu, function):
    mesh = jax.make_mesh((2, 2, 2), ("data", "height", "width"), axis_types=(AxisType.Auto,) * 3)
    columns = None if function == statistics else "width"
    x, small = clip(4, 5, 8, 8, 8), scales(4, 1, 8)
    spread = jax.device_put(x, NamedSharding(mesh, P("data", None, "height", columns)))
    run = jax.jit(lambda *a: function(*a))
    ours = run(spread, *small)
    if function != statistics:
        shards = {y.sharding.shard_shape(y.shape)[:1] + y.sharding.shard_shape(y.shape)[2:]
                  for y in ours}  # fmt: skip
        assert shards == {(2, 4, 4, 8)}
    assert "all-gather" not in run.lower(spread, *small).compile().as_text()
    assert_kernels(gpu, function, ours, (x, *small))


@pytest.mark.full
def test_statistics_of_spread_columns_are_right_too(gpu):
    mesh = jax.make_mesh((8,), ("width",), axis_types=(AxisType.Auto,))
    x, small = clip(2, 3, 4, 8, 8), scales(2, 1, 8)
    spread = jax.device_put(x, NamedSharding(mesh, P(None, None, None, "width")))
    assert_kernels(gpu, statistics, jax.jit(statistics)(spread, *small), (x, *small))


@FUNCTIONS
def test_a_mesh_in_context_need_not_spread_anything(gpu, function):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    arguments = clip(4, 5, 4, 4, 8), *scales(4, 1, 8)
    with jax.set_mesh(mesh):
        ours = jax.jit(lambda *a: function(*a))(*arguments)
    assert_kernels(gpu, function, ours, arguments)


@FUNCTIONS
def test_their_gradient_is_that_of_what_is_written_out(gpu, function):
    def total(x, *scales):
        return sum(jnp.sum(jnp.sin(y.astype(jnp.float32))) for y in function(x, *scales))

    arguments = clip(2, 5, 4, 4, 8), *scales(2, 1, 8)
    ours = jax.grad(total, argnums=(0, 1, 2))(*arguments)
    assert gpu
    expected = jax.grad(total, argnums=(0, 1, 2))(arguments[0].astype(jnp.float32), *arguments[1:])
    for a, b in zip(ours, expected, strict=True):
        a, b = (v.astype(jnp.float32) for v in (a, b))
        np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.std(b)) + 1e-7, rtol=0.02)


@pytest.mark.parametrize("axes", ["none", *full("auto"), "manual"])
def test_a_convolution_with_the_kernel_and_its_gradient_are_the_plain_ones(gpu, axes):
    x, small = clip(2, 5, 8, 4, 8), scales(2, 1, 8)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 3, 8, 24)) / 15)

    def run(x, kernel, multiplier, addend):
        y = lowering.convolve(x, kernel, scales=(multiplier, addend))
        return jnp.sum(jnp.cos(y.astype(jnp.float32)), axis=(1, 2, 3, 4)), y

    def with_gradients(*arguments):
        total, pull, y = jax.vjp(run, *arguments, has_aux=True)
        return y, *pull(jnp.ones_like(total))

    expected = with_gradients(x.astype(jnp.float32), kernel, *small)
    assert not gpu
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
    assert bool(gpu) == (axes != "manual")
    for a, b in zip(ours, expected, strict=True):
        spread = float(jnp.std(b.astype(jnp.float32)))
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * spread, rtol=0.02)


def test_silu_of_large_values():
    y = jnp.asarray([-1e4, -100.0, -88.0, -20.0, -1.0, 0.0, 1.0, 100.0, 1e4])
    np.testing.assert_allclose(norm_kernels._silu(y), jax.nn.silu(y), rtol=1e-5, atol=1e-30)


def test_where_they_do_not_run(monkeypatch):
    x = clip(1, 3, 4, 4, 8)
    assert not norm_kernels.applies(x), "there is no GPU here"
    monkeypatch.setattr(norm_kernels, "_devices_can", lambda: True)
    assert norm_kernels.applies(x)
    assert not norm_kernels.applies(x[:0])
    for dtype in (jnp.float32, jnp.float16):
        assert not norm_kernels.applies(x.astype(dtype))
    assert not norm_kernels.applies(clip(1, 3, 4, 4, 12)), "blocks are powers of two"
    with norm_kernels.without_kernels():
        assert not norm_kernels.applies(x)
    assert norm_kernels.applies(x)


@pytest.mark.parametrize(
    ("devices", "can"),
    [
        ([("NVIDIA H200", "9.0")], True),
        ([("NVIDIA A10G", "8.6"), ("NVIDIA B200", "10.0")], True),
        ([("NVIDIA A100-SXM4-40GB", "8.0"), ("Tesla T4", "7.5")], False),
        ([("NVIDIA TITAN V", "7.0")], False),
        ([("AMD Instinct MI300X", "gfx942")], False),
    ],
    ids=str,
)
def test_devices_that_can(monkeypatch, devices, can):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    devices = [types.SimpleNamespace(device_kind=d, compute_capability=c) for d, c in devices]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert norm_kernels._devices_can() == can


@pytest.mark.parametrize(("channels", "can"), [(8, False), (12, True)])
def test_what_they_do_not_cover_is_the_same(gpu, monkeypatch, channels, can):
    monkeypatch.setattr(norm_kernels, "_devices_can", lambda: can)
    x, small = clip(2, 5, 6, 7, channels), scales(2, 1, channels)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 3, channels, 24)) / 15)
    ours = lowering.convolve(x, kernel, scales=small).astype(jnp.float32)
    expected = lowering.convolve(x.astype(jnp.float32), kernel, scales=small)
    assert not gpu
    np.testing.assert_allclose(ours, expected, atol=0.05 * float(jnp.std(expected)), rtol=0.02)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Kernels are Triton's here, and not interpreted."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(norm_kernels, "_devices_can", lambda: True)


@FUNCTIONS
@pytest.mark.parametrize(
    "shape", [(2, 5, 6, 7, 8), *full((1, 81, 256, 256, 128), (1, 2, 3, 5, 2))], ids=str
)
def test_triton_takes_them(as_on_a_gpu, shape, function):
    arrays = jax.ShapeDtypeStruct(shape, jnp.bfloat16), *scales(shape[0], 1, shape[-1])
    lowered = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",))
    assert "xla.gpu.triton" in lowered.as_text()


@FUNCTIONS
def test_without_them_a_program_is_exported_for_every_platform(as_on_a_gpu, monkeypatch, function):
    arguments = clip(2, 5, 6, 7, 8), *scales(2, 1, 8)
    traced = jax.jit(function)
    traced.trace(*arguments)  # with them, which is not to be found again
    with odvae_jax.without_kernels():
        exported = jax.export.export(traced, platforms=["cuda", "cpu", "tpu"])(*arguments)
    monkeypatch.undo()
    exported = jax.export.deserialize(exported.serialize())
    with odvae_jax.without_kernels():  # where there is a GPU
        outputs = jax.jit(lambda *arguments: function(*arguments))(*arguments)
    for ours, expected in zip(exported.call(*arguments), outputs, strict=True):
        ours, expected = (y.astype(jnp.float32) for y in (ours, expected))
        np.testing.assert_allclose(ours, expected, rtol=2**-8, atol=2e-6)
