"""The peak signal-to-noise ratio."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.checks import check_array
from odvae_jax.types import AnyArray


def psnr(
    a: Float[AnyArray, "*batch h w c"], b: Float[AnyArray, "*batch h w c"]
) -> Float[Array, "*batch"]:
    """Returns the PSNR of each frame of two videos in [0, 1], in decibels.

    It is 100 where the mean squared error is below 1e-10.

    Raises:
      ValueError: if one is no array of numbers that JAX can take.
    """
    check_array("a", a)
    check_array("b", b)
    return _psnr(a, b)


@functools.partial(jax.jit, inline=True)
def _psnr(a, b):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    mse = jnp.mean((a - b) ** 2, axis=(-3, -2, -1))
    return jnp.where(mse < 1e-10, 100.0, -10.0 * jnp.log10(jnp.maximum(mse, 1e-10)))
