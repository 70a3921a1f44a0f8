"""The convolution with named padding, against NumPy's padding and sums of products."""

import jax
import numpy as np
import pytest

from odvae_jax.baselines.convolution import PaddedConv, Padding
from odvae_jax.config import ODVAEConfig
from odvae_jax.layers.group_norm import GroupNorm
from tests.conftest import on_a_gpu

CONFIG = ODVAEConfig.image(width=8, groups=4, precision="highest")
ZEROS, EDGE = "zeros", "edge"
CASES = {
    "temporal": ((3, 1), (1, 1), (ZEROS, 1, 1), None),
    "cubic": ((3, 3), (1, 1), (ZEROS, 1, 1), None),
    "edges in time": ((3, 3), (1, 1), (EDGE, 1, 1), None),
    "zeros in front": ((3, 3), (1, 1), (ZEROS, 2, 0), None),
    "stride in time": ((3, 3), (2, 1), (ZEROS, 1, 0), None),
    "stride everywhere": ((3, 3), (2, 2), (EDGE, 2, 0), None),
    "per frame": ((1, 3), (1, 2), (ZEROS, 1, 1), None),
    "side 4": ((4, 4), (2, 2), (EDGE, 1, 1), (EDGE, 1, 1)),
    "side 4, no stride in time": ((4, 4), (1, 2), (EDGE, 2, 1), (EDGE, 1, 1)),
    "edges in space": ((3, 3), (1, 1), (EDGE, 1, 1), (EDGE, 1, 1)),
}


def expected(x, conv, strides, time, space):
    """The convolution in float64, one place of the kernel after another."""
    kernel = np.asarray(conv.kernel[...], np.float64)
    (kt, k, *_), (st, s) = kernel.shape, strides
    of_space = space or ((ZEROS, 0, 1) if s == 2 else (ZEROS, k // 2, k // 2))
    of_time = time if kt > 1 else (ZEROS, 0, 0)
    for axis, (of, *widths) in enumerate((of_time, of_space, of_space), start=1):
        pad = [(0, 0)] * 5
        pad[axis] = tuple(widths)
        x = np.pad(x, pad, mode="edge" if of == EDGE else "constant")
    t, h, w = (
        (n - m) // step + 1 for n, m, step in zip(x.shape[1:4], (kt, k, k), (st, s, s), strict=True)
    )
    y = 0
    for a, b, c in np.ndindex(kt, k, k):
        seen = x[:, a::st, b::s, c::s][:, :t, :h, :w]
        y = y + seen @ kernel[a, b, c]
    return y + np.asarray(conv.bias[...], np.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("normed", [False, True])
def test_it_is_the_convolution_of_the_padded_clip(case, normed):
    size, strides, time, space = CASES[case]
    rng = np.random.default_rng(1)
    conv = PaddedConv(
        8,
        20,
        size,
        strides,
        time=Padding(*time),
        space=space and Padding(*space),
        config=CONFIG,
        rng=rng,
    )
    conv.bias[...] = rng.standard_normal(20, np.float32)
    x = rng.standard_normal((2, 4, 6, 8, 8), np.float32)
    norm = GroupNorm(8, over_time=True, activation=True, epsilon=0.5, config=CONFIG)
    given, seen = x, x
    if normed:
        given = norm(jax.numpy.asarray(x))
        groups = x.reshape(2, 4, 6, 8, 4, 2).astype(np.float64)
        axes = (1, 2, 3, 5)
        groups = groups - groups.mean(axes, keepdims=True)
        groups /= np.sqrt((groups**2).mean(axes, keepdims=True) + 0.5)
        seen = groups.reshape(x.shape) / (1 + np.exp(-groups.reshape(x.shape)))
    y = conv(given) if normed else jax.jit(lambda conv, x: conv(x))(conv, given)
    np.testing.assert_allclose(y, expected(seen, conv, strides, time, space), atol=2e-5)


@pytest.mark.parametrize("case", ["temporal", "cubic", "zeros in front", "stride in time"])
def test_the_ways_of_a_gpu_give_the_same(case, monkeypatch):
    size, strides, time, _ = CASES[case]
    rng = np.random.default_rng(1)
    conv = PaddedConv(8, 20, size, strides, time=Padding(*time), config=CONFIG, rng=rng)
    x = rng.standard_normal((2, 4, 6, 8, 8), np.float32)
    on_a_gpu(monkeypatch)
    np.testing.assert_allclose(
        conv(jax.numpy.asarray(x)), expected(x, conv, strides, time, None), atol=2e-5
    )
