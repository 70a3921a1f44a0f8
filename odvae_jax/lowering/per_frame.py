"""A 2D convolution of every frame: for kernels that see one frame, on every platform.

`convolve_frames` and `kernel_gradient` also serve the ways that make 2D convolutions of a 3D one.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from odvae_jax.lowering.reference import Window


def applies(x, kernel, before, window) -> bool:
    """Returns whether a kernel has length 1 in time."""
    return kernel.shape[0] == 1


def forward(x, kernel, before, window):
    """Returns the convolution of every frame that is seen; frames before the clip do not matter."""
    return convolve_frames(x[:, :: window.time_stride], kernel[0], window)


def backward(x, kernel, dy, window):
    """Returns the gradients for the input and the kernel."""
    seen, pull_stride = jax.vjp(lambda x: x[:, :: window.time_stride], x)
    (dseen,) = jax.vjp(lambda seen: convolve_frames(seen, kernel[0], window), seen)[1](dy)
    return pull_stride(dseen)[0], kernel_gradient(seen, kernel[0], dy, window)[None]


def convolve_frames(x, kernel, window: Window):
    """Returns the 2D convolution of each frame [B, T, H, W, C] with a kernel [kh, kw, C, D]."""
    b, t = x.shape[:2]
    y = jax.lax.conv_general_dilated(
        x.reshape(b * t, *x.shape[2:]),
        kernel.astype(x.dtype),
        window_strides=(window.stride, window.stride),
        padding=(window.rows, window.columns),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=window.precision,
    )
    return y.reshape(b, t, *y.shape[1:])


def kernel_gradient(x, kernel, dy, window: Window):
    """Returns the gradient of `convolve_frames` for its kernel, in the kernel's dtype.

    On a CPU, XLA's own operation is fast if as many zeros stand on all sides and there is no
    stride. For other kernels it takes many times as long as matrix products.
    """
    even = tuple((side // 2, side // 2) for side in kernel.shape[:2])
    if window.stride == 1 and (window.rows, window.columns) == even:
        return _by_convolution(x, kernel, dy, window)
    by_products = functools.partial(_by_products, window=window)
    by_convolution = functools.partial(_by_convolution, window=window)
    return jax.lax.platform_dependent(x, kernel, dy, cpu=by_products, default=by_convolution)


def _by_convolution(x, kernel, dy, window):
    """Returns the gradient as XLA computes it.

    Without a stride, XLA takes cuDNN's own operation for it only if as many zeros stand above as
    below. Otherwise the kernel gets one row more, and the gradient of this row is thrown away.
    """
    above, below = window.rows
    more = (max(below - above, 0), max(above - below, 0)) if window.stride == 1 else (0, 0)
    window = window._replace(rows=(above + more[0], below + more[1]))
    kernel = jnp.pad(kernel, (more, (0, 0), (0, 0), (0, 0)))
    (gradient,) = jax.vjp(lambda k: convolve_frames(x, k, window), kernel)[1](dy)
    return gradient[more[0] : gradient.shape[0] - more[1]]


def _by_products(x, kernel, dy, window):
    """Returns the gradient as one matrix product per row and column of the kernel."""
    step, (height, width) = window.stride, dy.shape[2:4]
    x = jnp.pad(x, ((0, 0), (0, 0), window.rows, window.columns, (0, 0))).astype(jnp.float32)
    dy = dy.astype(jnp.float32)

    def product(row, column):
        rows = slice(row, row + step * (height - 1) + 1, step)
        columns = slice(column, column + step * (width - 1) + 1, step)
        seen = x[:, :, rows, columns]
        return jnp.einsum("bthwc,bthwd->cd", seen, dy, precision=window.precision)

    kh, kw = kernel.shape[:2]
    products = [[product(row, column) for column in range(kw)] for row in range(kh)]
    return jnp.stack([jnp.stack(row) for row in products]).astype(kernel.dtype)
