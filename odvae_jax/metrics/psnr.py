"""Peak signal-to-noise ratio."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def psnr(
    a: Float[Array, "*batch h w c"], b: Float[Array, "*batch h w c"]
) -> Float[Array, "*batch"]:
    """PSNR in dB of each frame of two videos in [0, 1].

    It is 100 where the mean squared error is under 1e-10.
    """
    mse = jnp.mean((a.astype(jnp.float32) - b.astype(jnp.float32)) ** 2, axis=(-3, -2, -1))
    return jnp.where(mse < 1e-10, 100.0, -10.0 * jnp.log10(jnp.maximum(mse, 1e-10)))
