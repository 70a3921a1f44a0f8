import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from odvae_jax.flops import count_flops
from odvae_jax.layers import causal_conv as module
from odvae_jax.layers import platforms
from odvae_jax.layers.group_norm import scaled
from odvae_jax.layers.interpolation import interpolated
from tests.conftest import full, on_a_gpu

STRIDES = [(1, 1), (1, 2), (2, 2)]


def reference(x, kernel, strides):
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


def inputs(t, out_features, kt=3, k=3):
    rng = np.random.default_rng(t)
    x = rng.standard_normal((2, t, 8, 6, 5)).astype(np.float32)
    return x, rng.standard_normal((kt, k, k, 5, out_features)).astype(np.float32)


@pytest.mark.parametrize("strides", STRIDES, ids=str)
@pytest.mark.parametrize("t", [1, 5, *full(2, 3, 4, 9)])
@pytest.mark.parametrize("kt, k, out_features", [(3, 3, 24), (3, 3, 3), (1, 3, 7), (1, 1, 7)])
def test_convolution_is_its_definition(kt, k, out_features, t, strides):
    if k == 1 and strides != (1, 1):
        pytest.skip("the network has no strided 1×1×1 convolution")
    x, kernel = inputs(t, out_features, kt, k)
    y = module.causal_conv(jnp.asarray(x), jnp.asarray(kernel), strides, "highest")
    np.testing.assert_allclose(y, reference(x, kernel, strides), atol=2e-4)


@pytest.mark.parametrize("t", [5, *full(1, 2, 6, 9)])
@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_every_lowering_and_its_gradient_is_the_plain_ones(monkeypatch, strides, t):
    x, kernel = map(jnp.asarray, inputs(t, 24))

    def run(lowering):
        y, pull = jax.vjp(lambda x, k: lowering(x, k), x, kernel)
        return (y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)))

    window = module._window(3, strides, "highest")
    lowerings = [module._plain_3d, module._frames_joined, module._taps_summed]
    lowerings += [module._in_pairs] if strides[0] == 1 else []
    lowerings = [functools.partial(lowering, window=window) for lowering in lowerings]
    lowerings.append(lambda x, k: module.causal_conv(x, k, strides, "highest"))
    expected, results = run(lowerings[0]), [run(lowering) for lowering in lowerings]
    on_a_gpu(monkeypatch)
    results.append(run(lowerings[-1]))
    for i, result in enumerate(results):
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=3e-4, err_msg=str(i))
    pairs, plain = (count_flops(lowerings[i], x, kernel) for i in (3, 1))
    assert strides[0] > 1 or t == 1 or pairs < 0.9 * plain


@pytest.mark.parametrize(
    "case",
    [
        (1, 3, (1, 1), (8, 6)),
        (3, 3, (1, 1), (8, 6)),
        (1, 16, (1, 2), (8, 6)),
        *full((1, 16, (1, 2), (7, 5)), (1, 3, (1, 2), (8, 6)), (3, 3, (1, 2), (8, 6))),
    ],
    ids=str,
)
def test_what_cudnn_takes_best_is_the_same(monkeypatch, case):
    kt, channels, strides, size = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, *size, channels)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((kt, 3, 3, channels, 24)).astype(np.float32))

    def run(x, kernel):
        y, pull = jax.vjp(lambda *a: module.causal_conv(*a, strides, "highest"), x, kernel)
        return (y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)))

    def lines():
        return str(jax.make_jaxpr(lambda *a: run(*a))(x, kernel)).count("\n")

    expected, plain = run(x, kernel), lines()
    on_a_gpu(monkeypatch)
    assert lines() != plain
    for a, b in zip(run(x, kernel), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)


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
        return module.causal_conv(doubled(x), kernel, before=doubled(before), precision="highest")

    def folded(x, kernel):
        return module.conv_of_doubled(x, kernel, how, "highest", before=before)

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
    y = module.causal_conv(x, kernel)
    np.testing.assert_allclose(y[0, :, 1, 1], 40_000 * 27 * 32 * 1e-5, rtol=0.02)


def scales(b, s, c):
    rng = np.random.default_rng(s)
    multiplier, addend = rng.standard_normal((2, b, s, 1, 1, c)).astype(np.float32)
    return jnp.asarray(1 + 0.3 * multiplier), jnp.asarray(0.3 * addend)


def test_operations_are_counted_of_what_the_platform_does(monkeypatch):
    x, kernel = map(jnp.asarray, inputs(9, 24))
    counted = count_flops(module.causal_conv, x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert count_flops(module.causal_conv, x, kernel) < 0.7 * counted


@pytest.mark.parametrize("strides", [(2, 1), *full((1, 2), (2, 2))], ids=str)
def test_a_strided_kernel_of_one_row_has_its_gradient(strides):
    x, kernel = map(jnp.asarray, inputs(5, 24, k=1))

    def run(lowering):
        y, pull = jax.vjp(lowering, x, kernel)
        return pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    window = module._window(1, strides, "highest")
    ours = run(lambda x, k: module.causal_conv(x, k, strides, "highest"))
    for a, b in zip(ours, run(functools.partial(module._plain_3d, window=window)), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)


@pytest.mark.parametrize("platform", ["default", "cuda", *full("tpu")])
@pytest.mark.parametrize(
    "case", [(5, 24, 3), (5, 3, 3), (1, 7, 1), *full((2, 24, 3), (6, 24, 3))], ids=str
)
def test_a_norm_on_the_way_is_one_before(monkeypatch, platform, case):
    t, out_features, kt = case
    x, kernel = map(jnp.asarray, inputs(t, out_features, kt))

    def by_platform(*arrays, default, **lowerings):
        return lowerings.get(platform, default)(*arrays)

    monkeypatch.setattr(platforms, "by_platform", by_platform)

    def within(x, kernel, scales):
        return module.causal_conv(x, kernel, precision="highest", scales=scales)

    def before(x, kernel, scales):
        return module.causal_conv(scaled(x, scales, activation=True), kernel, precision="highest")

    arguments = x, kernel, scales(2, t, 5)
    y, pull = jax.vjp(within, *arguments)
    expected, pull_expected = jax.vjp(before, *arguments)
    np.testing.assert_allclose(y, expected, atol=2e-4)
    dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    for a, b in zip(*(jax.tree.leaves(f(dy)) for f in (pull, pull_expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)


def test_only_the_input_and_the_kernel_are_kept_for_the_gradient():
    x, kernel = map(jnp.asarray, inputs(5, 24))
    small = scales(2, 1, 5)
    _, pull = jax.vjp(lambda x, k: module.causal_conv(x, k, scales=small), x, kernel)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
    assert kept == x.size + kernel.size + 2 * small[0].size
