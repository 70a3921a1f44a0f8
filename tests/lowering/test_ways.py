"""Every way of computing a convolution against its definition, gradients included."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from odvae_jax import lowering
from odvae_jax.flops import count_flops
from odvae_jax.lowering import (
    columns_joined,
    evenly_padded,
    frames_joined,
    norm,
    norm_kernels,
    pairs,
    per_frame,
    plain_3d,
    taps_summed,
)
from odvae_jax.lowering import reference as definition
from odvae_jax.lowering.doubled_linear import interpolated
from odvae_jax.lowering.reference import window_of
from tests.conftest import full, on_a_gpu

STRIDES = [(1, 1), (1, 2), (2, 2)]


def by_scipy(x, kernel, strides):
    """The definition, by scipy in float64.

    Repeated first frame, zeros around, correlation, strides.
    """
    kt, k = kernel.shape[:2]
    x = np.concatenate([x[:, :1]] * (kt - 1) + [x], axis=1).astype(np.float64)
    after = 1 if strides[1] == 2 else k // 2
    before = k // 2 if strides[1] == 1 else 0
    x = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after), (0, 0)))
    out = np.zeros(
        (*(s - n + 1 for s, n in zip(x.shape[1:4], (kt, k, k), strict=True)), kernel.shape[-1])
    )
    result = []
    for clip in x:
        out = 0
        for c in range(kernel.shape[3]):
            full = [
                scipy.ndimage.correlate(
                    clip[..., c], kernel[..., c, d].astype(np.float64), mode="constant"
                )
                for d in range(kernel.shape[4])
            ]
            cut = tuple(
                slice(n // 2, s - (n - 1 - n // 2))
                for s, n in zip(clip.shape[:3], (kt, k, k), strict=True)
            )
            out = out + np.stack([f[cut] for f in full], axis=-1)
        result.append(out[:: strides[0], :: strides[1], :: strides[1]])
    return np.stack(result)


def inputs(t, out_features, kt=3, k=3, size=(8, 6), channels=5):
    rng = np.random.default_rng(t)
    x = rng.standard_normal((2, t, *size, channels)).astype(np.float32)
    return x, rng.standard_normal((kt, k, k, channels, out_features)).astype(np.float32)


def scales(b, s, c):
    rng = np.random.default_rng(s)
    multiplier, addend = rng.standard_normal((2, b, s, 1, 1, c)).astype(np.float32)
    return jnp.asarray(1 + 0.3 * multiplier), jnp.asarray(0.3 * addend)


@pytest.mark.parametrize("strides", STRIDES, ids=str)
@pytest.mark.parametrize("t", [1, 5, *full(2, 3, 4, 9)])
@pytest.mark.parametrize("kt, k, out_features", [(3, 3, 24), (3, 3, 3), (1, 3, 7), (1, 1, 7)])
def test_convolution_is_its_definition(kt, k, out_features, t, strides):
    if k == 1 and strides != (1, 1):
        pytest.skip("the network has no strided 1×1×1 convolution")
    x, kernel = inputs(t, out_features, kt, k)
    expected = by_scipy(x, kernel, strides)
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    y = lowering.convolve(x, kernel, strides=strides, precision="highest")
    np.testing.assert_allclose(y, expected, atol=2e-4)
    y = definition.convolve(x, kernel, None, window_of(k, strides, "highest"))
    np.testing.assert_allclose(y, expected, atol=2e-4)


# What chooses each row of the table, and more of what it must compute: kernel's length in time,
# its side, input channels, output channels, strides, rows and columns.
CASES = {
    columns_joined: [(1, 3, 3, 24, (1, 1), (8, 6)), (3, 3, 3, 24, (1, 1), (8, 6))],
    pairs: [
        (3, 3, 16, 24, (1, 1), (8, 6)),
        (3, 3, 16, 24, (1, 2), (8, 6)),
        (3, 3, 3, 24, (1, 2), (8, 6)),
    ],
    evenly_padded: [(1, 3, 16, 24, (1, 2), (8, 6)), (1, 3, 3, 24, (1, 2), (7, 5))],
    per_frame: [(1, 3, 16, 24, (1, 1), (8, 6)), (1, 1, 16, 24, (1, 1), (8, 6))],
    frames_joined: [
        (3, 3, 16, 24, (2, 2), (8, 6)),
        (3, 1, 16, 24, (1, 1), (8, 6)),
        (3, 1, 16, 24, (2, 1), (8, 6)),
        (3, 1, 16, 24, (2, 2), (8, 6)),
    ],
    taps_summed: [(3, 3, 16, 8, (1, 1), (8, 6)), (3, 3, 16, 8, (2, 2), (8, 6))],
    plain_3d: [(3, 3, 16, 24, (1, 1), (8, 6)), (3, 3, 16, 24, (2, 2), (8, 6))],
}
COLUMN = {plain_3d: "tpu"}
ALL = [(way, case) for way, cases in CASES.items() for case in cases]
FIRST = [(way, cases[0]) for way, cases in CASES.items()]


def name_of(value):
    return getattr(value, "__name__", str(value)).rsplit(".", 1)[-1]


def example(case, t, dtype):
    kt, k, channels, out_features, strides, size = case
    x, kernel = inputs(t, out_features, kt, k, size, channels)
    return jnp.asarray(x, dtype), jnp.asarray(kernel), window_of(k, strides, "highest")


def test_every_file_is_a_row_and_every_row_has_a_shape_that_chooses_it():
    files = {p.stem for p in pathlib.Path(lowering.__file__).parent.glob("*.py")}
    convolutions = {way for column in lowering.TABLE.values() for way in column}
    rows = {lowering.LONE, *lowering.DOUBLINGS, norm, norm_kernels, *convolutions}
    assert files - {"__init__", "reference", "rows_exchanged"} == {name_of(way) for way in rows}
    assert {way for column in lowering.NORMS.values() for way in column} == {norm, norm_kernels}
    assert CASES.keys() == convolutions
    for way, case in ALL:
        x, kernel, window = example(case, 5, "float32")
        chosen = lowering.ways_to_convolve(x, kernel, None, window)
        assert chosen[COLUMN.get(way, "cuda")] is way, case


@pytest.mark.parametrize("with_norm", [False, *full(True)], ids=["", "norm"])
@pytest.mark.parametrize("t", [5, *full(1, 2, 6, 9)])
@pytest.mark.parametrize("dtype", ["float32", *full("bfloat16")])
@pytest.mark.parametrize(
    "of_way",
    [*FIRST, *full(*(c for c in ALL if c not in FIRST))],
    ids=lambda c: f"{name_of(c[0])}-{c[1]}",
)
def test_every_way_and_its_gradient_are_the_definition_s(of_way, dtype, t, with_norm):
    way, case = of_way
    x, kernel, window = example(case, t, dtype)
    small = scales(2, t, x.shape[-1]) if with_norm else None

    def defined(x, kernel, small):
        x = x if small is None else definition.normalise(x, *small, True)
        return definition.convolve(x, kernel, None, window).astype(jnp.float32)

    y, pull = jax.vjp(defined, x.astype(jnp.float32), kernel, small)
    dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    expected = jax.tree.leaves((y, pull(dy)))
    ours = lowering._run(way, window, x, kernel, small, None)
    pulled = lowering._run_back(way, window, x, kernel, small, None, dy.astype(ours.dtype))
    for a, b in zip(jax.tree.leaves((ours, pulled[:3])), expected, strict=True):
        rounding = 3e-4 if dtype == "float32" else 0.04 * float(jnp.std(b))
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=rounding, rtol=0.02)


@pytest.mark.parametrize("strides", [(1, 1), *full((1, 2), (2, 2))], ids=str)
@pytest.mark.parametrize("way", [pairs, frames_joined, taps_summed, plain_3d], ids=name_of)
def test_after_frames_before_every_way_gives_the_rest_of_the_clip(way, strides):
    if way is pairs and strides[0] > 1:
        pytest.skip("pairs take no stride in time")
    case = (3, 3, 16, 8 if way is taps_summed else 24, strides, (8, 6))
    x, kernel, window = example(case, 9, "float32")

    def whole(x, kernel):
        return definition.convolve(x, kernel, None, window)[:, 3 // strides[0] + strides[0] - 1 :]

    def rest(x, kernel):
        return lowering._run(way, window, x[:, 3:], kernel, None, x[:, 1:3])

    expected, pull_expected = jax.vjp(whole, x, kernel)
    y, pull = jax.vjp(rest, x, kernel)
    np.testing.assert_allclose(y, expected, atol=3e-4)
    dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    for a, b in zip(pull(dy), pull_expected(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_a_gradient_is_lowered_for_every_platform(strides):
    x = jax.ShapeDtypeStruct((1, 5, 8, 8, 32), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 32, 32), jnp.float32)
    small = scales(1, 1, 32)

    def total(x, kernel, small):
        y = lowering.convolve(x, kernel, strides=strides, scales=small)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    for platform in ("cpu", "cuda", "tpu"):
        gradient.trace(x, kernel, small).lower(lowering_platforms=(platform,))


def test_pairs_take_a_third_fewer_operations():
    x, kernel, window = example(CASES[pairs][0], 9, "float32")

    def operations(way):
        return count_flops(lambda x, k: way.forward(x, k, None, window), x, kernel)

    assert operations(pairs) < 0.7 * operations(frames_joined)


@pytest.mark.parametrize("platform", ["default", "cuda", *full("tpu")])
def test_the_whole_convolution_is_the_definition_on_every_platform(monkeypatch, platform):
    x, kernel, window = example((3, 3, 16, 24, (1, 1), (8, 6)), 5, "float32")
    small = scales(2, 5, 16)

    def by_platform(*arrays, default, **others):
        return others.get(platform, default)(*arrays)

    def ours(x, kernel, small):
        return lowering.convolve(x, kernel, scales=small, precision="highest")

    def defined(x, kernel, small):
        return definition.convolve(definition.normalise(x, *small, True), kernel, None, window)

    monkeypatch.setattr(lowering, "by_platform", by_platform)
    y, pull = jax.vjp(ours, x, kernel, small)
    expected, pull_expected = jax.vjp(defined, x, kernel, small)
    np.testing.assert_allclose(y, expected, atol=2e-4)
    dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    for a, b in zip(*(jax.tree.leaves(f(dy)) for f in (pull, pull_expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [3, *full(1, 2, 5)])
@pytest.mark.parametrize("how", ["nearest", "linear"])
@pytest.mark.parametrize(
    "case", [(3, 12, 0), (1, 5, 0), *full((3, 12, 2), (3, 3, 0), (3, 3, 2))], ids=str
)
def test_a_doubled_clip_is_convolved_without_being_doubled(case, how, t):
    kt, out_features, before = case
    x, kernel = map(jnp.asarray, inputs(t + before, out_features, kt))
    before, x = (x[:, :before] if before else None), x[:, before:]

    def doubled(a):
        if a is None:
            return None
        if how == "nearest":
            return a.repeat(2, 2).repeat(2, 3)
        return interpolated(interpolated(a, 2), 3)

    def plainly(x, kernel):
        return lowering.convolve(doubled(x), kernel, before=doubled(before), precision="highest")

    def folded(x, kernel):
        return lowering.convolve(x, kernel, doubling=how, before=before, precision="highest")

    expected, pull_expected = jax.vjp(plainly, x, kernel)
    y, pull = jax.vjp(folded, x, kernel)
    np.testing.assert_allclose(y, expected, atol=2e-4)
    dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    for a, b in zip(pull(dy), pull_expected(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)
    share = count_flops(folded, x, kernel) / count_flops(plainly, x, kernel)
    assert share < (0.6 if how == "nearest" else 0.3)


def test_float16_does_not_overflow_where_its_result_does_not(monkeypatch):
    on_a_gpu(monkeypatch)
    x, kernel = jnp.full((1, 5, 4, 4, 32), 40_000, jnp.float16), jnp.full((3, 3, 3, 32, 24), 1e-5)
    y = lowering.convolve(x, kernel)
    np.testing.assert_allclose(y[0, :, 1, 1], 40_000 * 27 * 32 * 1e-5, rtol=0.02)


def test_operations_are_counted_of_what_the_platform_does(monkeypatch):
    x, kernel = map(jnp.asarray, inputs(9, 24))
    counted = count_flops(lowering.convolve, x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert count_flops(lowering.convolve, x, kernel) < 0.7 * counted


def test_only_the_input_and_the_kernel_are_kept_for_the_gradient():
    x, kernel = map(jnp.asarray, inputs(5, 24))
    small = scales(2, 1, 5)
    _, pull = jax.vjp(lambda x, k: lowering.convolve(x, k, scales=small), x, kernel)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
    assert kept == x.size + kernel.size + 2 * small[0].size
