"""The diagonal Gaussian over latents that the encoder returns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

LOGVAR_RANGE = (-30.0, 20.0)


@jax.tree_util.register_pytree_node_class
class DiagonalGaussian:
    """A Gaussian with independent components; a pytree of two float32 arrays [B, t, h, w, C].

    Attributes:
      mean: the mean, not clamped.
      logvar: the logarithm of the variance, clamped to [-30, 20].
    """

    mean: jax.Array
    logvar: jax.Array

    def __init__(self, mean: Float[Array, "*shape"], logvar: Float[Array, "*shape"]):
        self.mean = mean
        self.logvar = logvar

    @classmethod
    def from_moments(cls, moments: Float[Array, "*batch c2"]) -> DiagonalGaussian:
        """Splits the channels in mean and log-variance, and clamps the latter."""
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def mode(self) -> Float[Array, "*shape"]:
        """The most probable latents, which are the mean."""
        return self.mean

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*shape"]:
        """Latents drawn with the reparameterisation trick."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Array, " b"]:
        """KL divergence to the unit Gaussian in nats, summed over each clip: shape [B]."""
        terms = self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * jnp.sum(terms, axis=tuple(range(1, terms.ndim)))

    def tree_flatten(self):
        return (self.mean, self.logvar), None

    @classmethod
    def tree_unflatten(cls, _, children):
        posterior = object.__new__(cls)
        posterior.mean, posterior.logvar = children
        return posterior

    def __repr__(self) -> str:
        return f"DiagonalGaussian(mean={self.mean!r}, logvar={self.logvar!r})"
