"""The structural similarity of images."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odvae_jax.checks import check_array
from odvae_jax.types import AnyArray

WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def ssim(
    a: Float[AnyArray, "*batch h w c"], b: Float[AnyArray, "*batch h w c"]
) -> Float[Array, "*batch"]:
    """Returns the SSIM of each frame of two videos in [0, 1], averaged over positions and channels.

    It follows Wang et al. 2004: a Gaussian window of 11 × 11 pixels with sigma 1.5, K1 = 0.01, K2 =
    0.03, and population covariances. Only windows that lie wholly inside the frame count.

    Raises:
      ValueError: if a frame is smaller than the window, or one is no array of numbers that JAX can
        take.
    """
    check_array("a", a)
    check_array("b", b)
    h, w = a.shape[-3:-1]
    if min(h, w) < WINDOW:
        raise ValueError(
            f"frames of {h}×{w} are smaller than SSIM's window; they need at least "
            f"{WINDOW}×{WINDOW} pixels."
        )
    return _ssim(a, b)


@functools.partial(jax.jit, inline=True)
def _ssim(a, b):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    mean_a, mean_b, aa, bb, ab = (_blur(x) for x in (a, b, a * a, b * b, a * b))
    variances = aa - mean_a**2 + bb - mean_b**2
    covariance = ab - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)) / (
        (mean_a**2 + mean_b**2 + _C1) * (variances + _C2)
    )
    return jnp.mean(similarity, axis=(-3, -2, -1))


def _blur(x):
    """Returns the Gaussian mean over every window inside the frame.

    The Gaussian is separable, so that rows and columns are taken one after the other.
    """
    *batch, h, w, c = x.shape
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window = jnp.asarray(window / window.sum(), x.dtype)
    planes = jnp.moveaxis(x, -1, -3).reshape(-1, h, w, 1)
    for shape in ((WINDOW, 1, 1, 1), (1, WINDOW, 1, 1)):
        planes = jax.lax.conv_general_dilated(
            planes,
            window.reshape(shape),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
    return jnp.moveaxis(planes.reshape(*batch, c, *planes.shape[1:3]), -3, -1)
