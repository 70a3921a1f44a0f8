"""What training minimises (section 4.1)."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.posterior import DiagonalGaussian


def reconstruction_loss(
    reconstruction: Float[Array, "b t h w 3"],
    video: Float[Array, "b t h w 3"],
    kind: Literal["l1", "l2"] = "l1",
) -> Float[Array, ""]:
    """|x - y| or (x - y)², summed over every value and divided by the number of frames, B·T."""
    difference = reconstruction.astype(jnp.float32) - video.astype(jnp.float32)
    error = jnp.abs(difference) if kind == "l1" else difference**2
    return jnp.sum(error) / (video.shape[0] * video.shape[1])


def kl_loss(posterior: DiagonalGaussian) -> Float[Array, ""]:
    """KL divergence to the unit Gaussian, in nats: the mean over clips of each clip's sum."""
    return jnp.mean(posterior.kl())
