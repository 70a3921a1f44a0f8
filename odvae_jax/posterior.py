"""The diagonal Gaussian over latents that the encoder returns."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odvae_jax.pixels import VideoSize
from odvae_jax.types import AnyArray

LOGVAR_RANGE = (-30.0, 20.0)
"""The range that log-variances are clamped to, as in the released model."""


@jax.tree_util.register_pytree_node_class
class DiagonalGaussian:
    """A Gaussian over latents with independent components.

    It is a pytree of two float32 arrays.

    Attributes:
      mean: the mean, [B, t, h, w, C]; it is not clamped.
      logvar: the logarithm of the variance, [B, t, h, w, C]; clamped to [-30, 20] by
        `from_moments`.
      size: the size of the video before it was padded, to which `decode` can cut; None if it was
        not padded.
    """

    mean: Float[AnyArray, "*shape"]
    logvar: Float[AnyArray, "*shape"]
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
        """Makes the posterior of the moments that an encoder returns.

        The first half of the channels is the mean. The second half is the log-variance, which is
        clamped to [-30, 20]. NumPy moments give NumPy arrays.

        Args:
          moments: floating point, [..., 2 C].
          size: the size of the video before it was padded; None if it was not.
        """
        if isinstance(moments, np.ndarray):
            mean, logvar = np.split(moments.astype(np.float32), 2, axis=-1)
            return cls(mean, np.clip(logvar, *LOGVAR_RANGE), size)
        return cls(*_mean_and_logvar(moments), size)

    def mode(self) -> Float[AnyArray, "*shape"]:
        """Returns the most probable latents, which are the mean."""
        return self.mean

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*shape"]:
        """Returns latents drawn with the reparameterisation trick, which lets gradients through."""
        return _sampled(self.mean, self.logvar, key)

    def kl(self) -> Float[Array, " b"]:
        """Returns the KL divergence to the unit Gaussian in nats, summed over each clip."""
        return _divergence(self.mean, self.logvar)

    def tree_flatten(self) -> tuple[tuple[Any, Any], VideoSize | None]:
        """Returns mean and log-variance as leaves, and the size as static data, for JAX."""
        return (self.mean, self.logvar), self.size

    @classmethod
    def tree_unflatten(cls, size: VideoSize | None, children: Iterable[Any]) -> DiagonalGaussian:
        """Makes a posterior of what `tree_flatten` returned, for JAX.

        JAX also calls it with leaves that are no arrays, so that nothing may be checked here.
        """
        posterior = object.__new__(cls)
        posterior.mean, posterior.logvar = children
        posterior.size = size
        return posterior

    def __repr__(self) -> str:
        size = "" if self.size is None else f", size={self.size!r}"
        return f"DiagonalGaussian(mean={self.mean!r}, logvar={self.logvar!r}{size})"


# Compiled, so that no constant is sent to the device by every call.
@functools.partial(jax.jit, inline=True)
def _mean_and_logvar(moments):
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)


@functools.partial(jax.jit, inline=True)
def _sampled(mean, logvar, key):
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)


@functools.partial(jax.jit, inline=True)
def _divergence(mean, logvar):
    terms = mean**2 + jnp.exp(logvar) - 1.0 - logvar
    return 0.5 * jnp.sum(terms, axis=tuple(range(1, terms.ndim)))
