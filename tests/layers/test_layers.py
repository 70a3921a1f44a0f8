"""Norm, attention and resampling against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from odvae_jax import ODVAEConfig
from odvae_jax.layers import attention
from odvae_jax.layers.attention import Attention
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.layers.resample import double_time
from odvae_jax.lowering.doubled_linear import interpolated

CONFIG = ODVAEConfig.variant(4, width=8, groups=4, precision="highest")


def group_norm_reference(x, scale, bias, groups, over_time):
    x = x.astype(np.float64)
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    axes = (1, 2, 3, 5) if over_time else (2, 3, 5)
    grouped = grouped - grouped.mean(axes, keepdims=True)
    grouped = grouped / np.sqrt((grouped**2).mean(axes, keepdims=True) + 1e-6)
    return grouped.reshape(x.shape) * scale + bias


@pytest.mark.parametrize(
    "dtype, mean, tolerance", [("float32", 30.0, 1e-4), ("bfloat16", 3.0, 0.03)]
)
@pytest.mark.parametrize("over_time", [True, False])
def test_group_norm_is_its_definition_far_from_zero_mean_too(over_time, dtype, mean, tolerance):
    rng = np.random.default_rng(0)
    x = jnp.asarray(mean + rng.standard_normal((2, 3, 5, 7, 8)), dtype)
    norm = GroupNorm(8, over_time=over_time, activation=True, config=CONFIG)
    norm.scale[...], norm.bias[...] = rng.standard_normal((2, 8)).astype(np.float32)
    y = group_norm_reference(
        np.asarray(x, np.float64), norm.scale[...], norm.bias[...], 4, over_time
    )
    expected = y * scipy.special.expit(y)
    y = norm(x).array()
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=tolerance, rtol=tolerance)


def test_a_constant_group_is_normalised_to_its_bias():
    norm = GroupNorm(8, over_time=True, activation=False, config=CONFIG)
    for dtype in ("float32", "bfloat16"):
        np.testing.assert_allclose(
            norm(jnp.full((1, 1, 4, 4, 8), 100.0, dtype)).array(), 0.0, atol=1e-3
        )


def test_attention_is_softmax_over_the_positions_of_each_frame():
    rng = np.random.default_rng(0)
    layer = Attention(8, "2d", config=CONFIG, rng=np.random.default_rng(0))
    x = rng.standard_normal((2, 3, 4, 5, 8)).astype(np.float32)
    normed = group_norm_reference(x, 1.0, 0.0, 4, over_time=False).reshape(2, 3, 20, 8)
    q, k, v = (
        normed @ np.asarray(p.kernel[...], np.float64)[0, 0, 0] for p in (layer.q, layer.k, layer.v)
    )
    weights = scipy.special.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(8), axis=-1)
    out = (weights @ v) @ np.asarray(layer.proj_out.kernel[...], np.float64)[0, 0, 0]
    np.testing.assert_allclose(layer(jnp.asarray(x)), x + out.reshape(x.shape), atol=1e-5)


def test_attention_of_many_positions_goes_frame_by_frame_and_keeps_no_scores(monkeypatch):
    layer = Attention(8, "2d", config=CONFIG, rng=np.random.default_rng(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 12, 12, 8))

    def value_and_gradient():
        def loss(layer, x):
            return jnp.sum(jnp.sin(layer(x)))

        program = jax.jit(jax.value_and_grad(loss)).lower(layer, x).compile()
        return program(layer, x), program.memory_analysis().temp_size_in_bytes

    expected, memory = value_and_gradient()
    monkeypatch.setattr(attention, "_MOST_SCORES", 2 * 5 * (12 * 12) ** 2 - 1)
    found, less = value_and_gradient()
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert less < memory / 2


def test_linear_time_doubling_leaves_the_first_frame_aside():
    frames = jnp.array([0.0, 10, 20, 30]).reshape(1, 4, 1, 1, 1)
    assert double_time(frames, "linear").ravel().tolist() == [0, 10, 12.5, 17.5, 22.5, 27.5, 30]
    assert double_time(frames, "nearest").ravel().tolist() == [0, 10, 10, 20, 20, 30, 30]
    assert double_time(frames[:, :1], "linear").ravel().tolist() == [0]


def test_linear_space_doubling_has_half_pixel_centres_and_clamped_edges():
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4, 2)).astype(np.float32)
    expected = x
    for axis in (2, 3):
        n = x.shape[axis]
        at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(5)])
        expected = expected.take(low, axis) * (1 - share) + expected.take(high, axis) * share
    np.testing.assert_allclose(
        interpolated(interpolated(jnp.asarray(x), 2), 3), expected, atol=1e-6
    )
