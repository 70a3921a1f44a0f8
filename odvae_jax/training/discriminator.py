"""The 3D PatchGAN discriminator, which the autoencoder is trained against."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

# Output channels, in widths, and strides (time, space) of each convolution but the last, which has
# one channel; all kernels are 3×3×3.
_LAYERS = ((1, (2, 2)), (2, (2, 2)), (4, (1, 2)), (8, (1, 1)))
_LEAK = 0.2
_EPSILON = 1e-5
_DEVIATION = 0.02  # the standard deviation of initial kernels, and of initial scales around one


class Discriminator(nnx.Module):
    """A logit for every patch of a clip: the released OD-VAE's 3D PatchGAN (version 1.2).

    It has five 3×3×3 convolutions with LeakyReLU between them. They are padded with one row of
    zeros on every side, in time too. All but the first and the last are followed by a batch norm.
    The batch norm always takes the statistics of the current batch, over all clips on all devices,
    in float32; it has no running statistics.

    Args:
      width: the number of channels of the first convolution. The next three have 2, 4 and 8 times
        as many.
      seed: the seed of the initial parameters; None makes them zero, where only shapes matter.
      dtype: the dtype of the computation; parameters are float32.
      precision: the precision of float32 convolutions, as in `ODVAEConfig`.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        seed: int | None = 0,
        dtype: str = "float32",
        precision: str = "default",
    ):
        rng = None if seed is None else np.random.default_rng(seed)
        self.dtype = dtype
        self.precision = precision
        self.layers = nnx.List()
        before = 3
        for i, (multiplier, strides) in enumerate(_LAYERS):
            self.layers.append(_Layer(before, width * multiplier, strides, i > 0, rng))
            before = width * multiplier
        self.layers.append(_Layer(before, 1, (1, 1), False, rng))

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v x 1"]:
        """Returns float32 logits of [B, ceil(T / 4), ceil(H / 8), ceil(W / 8)] patches."""
        x = video.astype(self.dtype)
        for i, layer in enumerate(self.layers):
            x = x if i == 0 else jax.nn.leaky_relu(x, _LEAK)
            x = layer(x, self.precision)
        return x.astype(jnp.float32)


class _Layer(nnx.Module):
    """A convolution, and a batch norm or a bias."""

    def __init__(self, in_features, features, strides, normalised, rng):
        shape = (3, 3, 3, in_features, features)
        self.strides = strides
        self.kernel = nnx.Param(_normal(rng, shape, 0.0))
        self.scale = nnx.Param(_normal(rng, (features,), 1.0)) if normalised else None
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x, precision):
        time, space = self.strides
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (time, space, space),
            [(1, 1)] * 3,
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            precision=precision,
        )
        bias = jax.lax.broadcast_to_rank(self.bias[...], x.ndim)
        if self.scale is None:
            return x + bias.astype(x.dtype)
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, (0, 1, 2, 3), keepdims=True)
        variance = jnp.mean((x32 - mean) ** 2, (0, 1, 2, 3), keepdims=True)
        scale = jax.lax.broadcast_to_rank(self.scale[...], x.ndim)
        multiplier = scale * jax.lax.rsqrt(variance + _EPSILON)
        return ((x32 - mean) * multiplier + bias).astype(x.dtype)


def _normal(rng, shape, mean):
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    return jnp.asarray(mean + _DEVIATION * rng.standard_normal(shape, np.float32))
