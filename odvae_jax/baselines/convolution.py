"""A 3D convolution whose padding in time and in space is named: zeros, or repeated edges."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax import lowering
from odvae_jax.config import Interpolation, ODVAEConfig
from odvae_jax.layers.causal_conv import Generator, gaussian_kernel
from odvae_jax.layers.group_norm import Normed


class Padding(NamedTuple):
    """What stands before and after a clip's frames, rows or columns.

    Attributes:
      of: "zeros", or "edge" for copies of the first and of the last.
      front: how many stand before the first.
      back: how many stand after the last.
    """

    of: Literal["zeros", "edge"]
    front: int
    back: int


SAME = Padding("zeros", 1, 1)
"""One of zeros on each side, which keeps the length under a kernel of length 3."""


class PaddedConv(nnx.Module):
    """A convolution over [B, T, H, W, C] that pads as it is told.

    Where it pads rows and columns as `CausalConv` does, it is computed by the same ways
    (`odvae_jax/lowering`).

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels.
      kernel_size: (kt, k), the length in time and the side in space.
      strides: (st, s), the strides in time and in space.
      time: the padding in time. A kernel of length 1 in time ignores it.
      space: the padding of rows and of columns; None pads with zeros as `CausalConv` does.
      doubling: how rows and columns are doubled before the convolution; None keeps their number.
        It needs `space=None`.
      bias: whether a bias is added.
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
        time: Padding = SAME,
        space: Padding | None = None,
        doubling: Interpolation | None = None,
        bias: bool = True,
        out_dtype: Literal["float32"] | None = None,
        config: ODVAEConfig,
        rng: Generator,
    ):
        kt, k = kernel_size
        self.strides, self.doubling = strides, doubling
        self.time, self.space = Padding("zeros", 0, 0) if kt == 1 else time, space
        self.dtype, self.out_dtype = config.dtype, out_dtype
        self.precision = config.precision
        shape = (kt, k, k, in_features, out_features)
        self.kernel = nnx.Param(gaussian_kernel(rng, shape, config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), config.param_dtype)) if bias else None

    def __call__(self, x: Float[Array, "b t h w c"] | Normed) -> Float[Array, "b u v y d"]:
        """Returns the convolution of a clip, with the bias if there is one.

        Args:
          x: [B, T, H, W, C], or a norm that is not computed yet and can be computed on the way.
        """
        kernel, scales = self.kernel[...], None
        if isinstance(x, Normed):  # padding is of what comes after the norm
            fused = x.activation and kernel.shape[0] == 1 and self.space is self.doubling is None
            x, scales = (x.x, x.scales) if fused else (x.array(), None)
        x = x.astype(self.dtype)
        if self.space is None:
            y = self._looked_up(x, kernel, scales)
        else:
            y = self._written_out(x, kernel)
        if self.bias is None:
            return y
        return y + jax.lax.broadcast_to_rank(self.bias[...].astype(y.dtype), y.ndim)

    def _looked_up(self, x, kernel, scales):
        """By the table of ways, which take the frames before a clip apart from the clip."""
        x, before, kt = padded(x, 1, self.time), None, kernel.shape[0]
        if kt > 1:
            # With a stride, the table drops as many of the frames before as no output sees.
            skipped = [x[:, :1]] * (self.strides[0] - 1)
            x = jnp.concatenate([*skipped, x], axis=1)
            before, x = x[:, : kt - 1], x[:, kt - 1 :]
        return lowering.convolve(
            x,
            kernel,
            strides=self.strides,
            scales=scales,
            before=before,
            doubling=self.doubling,
            precision=self.precision,
            out_dtype=self.out_dtype,
        )

    def _written_out(self, x, kernel):
        x = padded(padded(padded(x, 1, self.time), 2, self.space), 3, self.space)
        st, s = self.strides
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(st, s, s),
            padding="VALID",
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            precision=self.precision,
        )
        return y.astype(self.out_dtype or x.dtype)


def padded(x: Float[Array, "b t h w c"], axis: int, padding: Padding) -> Float[Array, "b u v y c"]:
    """Returns a clip with more frames (axis 1), rows (2) or columns (3) on both sides."""
    if padding.front == padding.back == 0:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = padding.front, padding.back
    return jnp.pad(x, widths, mode="edge" if padding.of == "edge" else "constant")
