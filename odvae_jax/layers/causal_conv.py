"""The causal 3D convolution (section 3.1): what it is.

How it is computed fast is in odvae_jax/lowering/. A kernel of length 3 in time sees a frame and the
two frames before it. Before the first frame of a clip stand two copies of it. A kernel of length 1
in time is a 2D convolution of each frame. Kernels are [kt, kh, kw, in, out] in both cases.
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
"""What draws initial kernels; None makes them zero, for models of which only shapes matter."""


def generator(rngs: nnx.Rngs | int | None) -> Generator:
    """Returns what draws a model's initial kernels: NumPy, or JAX under a trace.

    Args:
      rngs: the random numbers of the model, or a seed; None makes all kernels zero.

    Raises:
      ValueError: if `rngs` is something else.
    """
    if rngs is None or (isinstance(rngs, int) and not isinstance(rngs, bool)):
        return None if rngs is None else np.random.default_rng(rngs)
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs is a {type(rngs).__name__}; expected nnx.Rngs, a seed or None.")
    key = jax.random.key_data(rngs.params())
    if isinstance(key, jax.core.Tracer):
        return rngs.params
    return np.random.default_rng(np.asarray(key))


def gaussian_kernel(
    rng: Generator, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> Float[Array, "..."]:
    """Returns a kernel [..., in, out] of Gaussian values with variance 1/fan_in.

    Args:
      rng: draws the values; None gives zeros.
      shape: the shape of the kernel.
      dtype: the dtype of the kernel.
    """
    if rng is None:
        return jnp.zeros(shape, dtype)
    deviation = np.sqrt(np.prod(shape[:-1]), dtype=np.float32)
    if isinstance(rng, nnx.RngStream):  # under a trace, where NumPy cannot draw
        return (jax.random.normal(rng(), shape, jnp.float32) / deviation).astype(dtype)
    # JAX would compile a program for every shape, which takes half a minute for a whole model.
    return jnp.asarray((rng.standard_normal(shape, np.float32) / deviation).astype(dtype))


class CausalConv(nnx.Module):
    """A convolution over [B, T, H, W, C] that is causal in time and padded with zeros in space.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels.
      kernel_size: (kt, k), the length in time, 1 or 3, and the side in space, 1 or 3.
      strides: (st, s), the strides in time and in space, 1 or 2. With stride 2 in space, one row of
        zeros is added below and one column to the right, none above or left. With stride 2 in time,
        output j sees the inputs 2j - 2, 2j - 1 and 2j.
      doubling: how rows and columns are doubled before the convolution; None keeps their number.
      out_dtype: the dtype of the result; None takes the dtype of the computation.
      config: gives the dtypes and the precision.
      rng: draws the initial kernel, Gaussian with variance 1/fan_in; the bias starts at zero.
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
        """Returns the convolution of a clip, or of the next chunk of a clip.

        Args:
          x: [B, T, H, W, C], or a norm that is not computed yet and can be computed on the way.
            With stride 2 in time, a clip's first chunk has an odd number of frames, the others have
            an even one.
          carry: keeps the last kt - 1 input frames from chunk to chunk.

        Returns:
          [B, ceil(T / st), H / s, W / s, D], with twice the rows and columns if there is
          `doubling`.
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
        return y + jax.lax.broadcast_to_rank(self.bias[...].astype(y.dtype), y.ndim)


def _last_frames(before, x, count):
    """Returns the last `count` frames so far; a clip's first frame stands for those before it."""
    seen = x if before is None else jnp.concatenate([before, x], axis=1)
    missing = max(count - seen.shape[1], 0)
    seen = jnp.concatenate([seen[:, :1]] * missing + [seen], axis=1)
    return seen[:, seen.shape[1] - count :]
