"""The diagonal Gaussian over latents that the encoder returns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odvae_jax.pixels import VideoSize
from odvae_jax.types import AnyArray

LOGVAR_RANGE = (-30.0, 20.0)


@jax.tree_util.register_pytree_node_class
class DiagonalGaussian:
    """A Gaussian with independent components; a pytree of two float32 arrays [B, t, h, w, C].

    Attributes:
      mean: the mean, not clamped.
      logvar: the logarithm of the variance, clamped to [-30, 20].
      size: of the video before it was padded, for `decode` to cut to; None if it was not.
    """

    mean: AnyArray
    logvar: AnyArray
    size: VideoSize | None

    def __init__(
        self,
        mean: Float[AnyArray, "*shape"],
        logvar: Float[AnyArray, "*shape"],
        size: VideoSize | None = None,
    ):
        self.mean = mean
        self.logvar = logvar
        self.size = size

    @classmethod
    def from_moments(
        cls, moments: Float[AnyArray, "*batch c2"], size: VideoSize | None = None
    ) -> DiagonalGaussian:
        """Splits the channels in mean and log-variance, and clamps the latter.

        NumPy in, NumPy out.
        """
        xp = np if isinstance(moments, np.ndarray) else jnp
        mean, logvar = xp.split(moments.astype(xp.float32), 2, axis=-1)
        return cls(mean, xp.clip(logvar, *LOGVAR_RANGE), size)

    def mode(self) -> Float[AnyArray, "*shape"]:
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
        return (self.mean, self.logvar), self.size

    @classmethod
    def tree_unflatten(cls, size, children):
        posterior = object.__new__(cls)
        posterior.mean, posterior.logvar = children
        posterior.size = size
        return posterior

    def __repr__(self) -> str:
        size = "" if self.size is None else f", size={self.size!r}"
        return f"DiagonalGaussian(mean={self.mean!r}, logvar={self.logvar!r}{size})"
