"""Causal 3D convolution (section 3.1): what it is. How it is computed fast: odvae_jax/lowering/.

A kernel of length 3 in time sees the frame itself and the two before it; before the first frame
stand two copies of the first. A kernel of length 1 in time is a 2D convolution of each frame.
Kernels are [kt, kh, kw, in, out] in both cases.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax import lowering
from odvae_jax.config import Interpolation, ODVAEConfig
from odvae_jax.layers.carry import WHOLE, Carry
from odvae_jax.layers.group_norm import Normed

Generator = np.random.Generator | nnx.RngStream | None
"""Where initial kernels come from; None makes them zero, for models whose shapes alone matter."""


def gaussian_kernel(
    rng: Generator, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """A kernel [..., in, out] of Gaussian values with variance 1/fan_in.

    NumPy draws them: JAX would compile a program for every shape, half a minute for a whole model.
    Under a trace, where NumPy cannot, JAX draws from the same distribution, other values.
    """
    if rng is None:
        return jnp.zeros(shape, dtype)
    deviation = np.sqrt(np.prod(shape[:-1]), dtype=np.float32)
    if isinstance(rng, nnx.RngStream):
        return (jax.random.normal(rng(), shape, jnp.float32) / deviation).astype(dtype)
    return jnp.asarray((rng.standard_normal(shape, np.float32) / deviation).astype(dtype))


class CausalConv(nnx.Module):
    """Convolution over [B, T, H, W, C], causal in time, zeros around in space.

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: (kt, k): length in time, 1 or 3, and side in space, 1 or 3.
      strides: (st, s) in time and space. With stride 2 in space, one row of zeros is added below
        and one column to the right, none above or left; with stride 2 in time, output j sees the
        inputs 2j - 2, 2j - 1 and 2j.
      doubling: rows and columns are doubled before the convolution, in that way.
      out_dtype: dtype of the result; the compute dtype unless told.
      config: gives dtype, param_dtype and precision.
      rng: for the initial kernel, Gaussian with variance 1/fan_in; the bias starts at zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        strides: tuple[int, int] = (1, 1),
        *,
        doubling: Interpolation | None = None,
        out_dtype: Literal["float32"] | None = None,
        config: ODVAEConfig,
        rng: Generator,
    ):
        kt, k = kernel_size
        self.strides, self.doubling = strides, doubling
        self.dtype, self.out_dtype = config.dtype, out_dtype
        self.precision = config.precision
        shape = (kt, k, k, in_features, out_features)
        self.kernel = nnx.Param(gaussian_kernel(rng, shape, config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), config.param_dtype))

    def __call__(
        self, x: Float[Array, "b t h w c"] | Normed, carry: Carry = WHOLE
    ) -> Float[Array, "b u v y d"]:
        """The convolution of a clip, or of the next chunk of a clip.

        Args:
          x: [B, T, H, W, C], or a norm that is computed on the way. With stride 2 in time a clip's
            first chunk has an odd number of frames, the others an even one.
          carry: keeps the last kt - 1 input frames.

        Returns:
          [B, ceil(T / st), H / s, W / s, D], twice the rows and columns with `doubling`.
        """
        kernel, before, scales = self.kernel[...], None, None
        if isinstance(x, Normed):
            # The next chunk needs frames after their norm, and so does doubling.
            on_the_way = x.activation and self.doubling is None and not carry.in_chunks
            x, scales = (x.x, x.scales) if on_the_way else (x.array(), None)
        x = x.astype(self.dtype)
        if carry.in_chunks and kernel.shape[0] > 1:
            before = carry.take()
            carry.leave(_last_frames(before, x, kernel.shape[0] - 1))
        y = lowering.convolve(
            x,
            kernel,
            strides=self.strides,
            scales=scales,
            before=before,
            doubling=self.doubling,
            precision=self.precision,
            out_dtype=self.out_dtype,
        )
        return y + self.bias[...].astype(y.dtype)


def _last_frames(before, x, count):
    """The last `count` frames of a clip so far; a clip's first frame stands for those before it."""
    seen = x if before is None else jnp.concatenate([before, x], axis=1)
    missing = max(count - seen.shape[1], 0)
    seen = jnp.concatenate([seen[:, :1]] * missing + [seen], axis=1)
    return seen[:, seen.shape[1] - count :]
