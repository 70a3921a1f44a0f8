"""What every way of computing a convolution or a norm must agree with.

These are the definitions, in as few lines as they take. The tests compare each way, and its
gradient, with them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Window(NamedTuple):
    """How a kernel goes over a clip.

    Attributes:
      time_stride: the distance of the outputs in frames.
      stride: the distance of the outputs in rows and in columns.
      rows: the number of rows of zeros above and below the frame.
      columns: the number of columns of zeros left and right of the frame.
      precision: the precision of float32 products, one of the values of `ODVAEConfig.precision`.
    """

    time_stride: int
    stride: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    precision: str


def window_of(side: int, strides: tuple[int, int], precision: str) -> Window:
    """Returns the window of a kernel of `side` rows and columns, with strides in time and in space.

    With stride 2 in space, one row of zeros is added below and one column to the right, as in the
    released model. Otherwise both sides get the same number.
    """
    zeros = (0, 1) if strides[1] == 2 else (side // 2, side // 2)
    return Window(*strides, zeros, zeros, precision)


def convolve(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    before: Float[Array, "b s h w c"] | None,
    window: Window,
) -> Float[Array, "b u v y d"]:
    """Returns the causal 3D convolution of a clip.

    Output j sees the frames that end with frame `time_stride` * j.

    Args:
      x: a clip, or the part of it that follows `before`.
      kernel: [kt, kh, kw, C, D]; it is rounded to the dtype of `x`.
      before: the kt - 1 frames before `x`. None means that `x` begins a clip: then its first frame
        stands for them.
      window: how the kernel goes over the clip.
    """
    return jax.lax.conv_general_dilated(
        preceded(x, kernel.shape[0], window.time_stride, before),
        kernel.astype(x.dtype),
        window_strides=(window.time_stride, window.stride, window.stride),
        padding=((0, 0), window.rows, window.columns),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision=window.precision,
    )


def normalise(
    x: Float[Array, "b t h w c"],
    multiplier: Float[Array, "b s 1 1 c"],
    addend: Float[Array, "b s 1 1 c"],
    activation: bool,
) -> Float[Array, "b t h w c"]:
    """Returns a clip after a norm whose scales are known, and after SiLU if `activation` is set.

    It is computed in float32 and rounded once, to the dtype of `x`.
    """
    y = x.astype(jnp.float32) * multiplier + addend
    return (jax.nn.silu(y) if activation else y).astype(x.dtype)


def moments(
    x: Float[Array, "b t h w c"], axes: tuple[int, ...]
) -> tuple[Float[Array, "b s 1 1 c"], Float[Array, "b s 1 1 c"]]:
    """Returns the mean of each channel and of its squares over some axes, in float32.

    The axes stay with length 1.
    """
    x = x.astype(jnp.float32)
    return jnp.mean(x, axes, keepdims=True), jnp.mean(x**2, axes, keepdims=True)


def preceded(
    x: Float[Array, "b t h w c"],
    kt: int,
    time_stride: int,
    before: Float[Array, "b _ h w c"] | None,
) -> Float[Array, "b s h w c"]:
    """Returns the frames of `x` after those that its first output sees before them.

    At the beginning of a clip, the first output is that of the first frame, which is repeated `kt`
    - 1 times before it. After `before`, the first output is that of the frame that ends the first
    step of `time_stride` frames.
    """
    if before is None:
        return jnp.concatenate([x[:, :1]] * (kt - 1) + [x], axis=1)
    return jnp.concatenate([before[:, time_stride - 1 :], x], axis=1)
