"""The columns (and frames) that a kernel sees, side by side as channels: for RGB on NVIDIA GPUs.

cuDNN takes as long for three input channels as for many. With the kernel's columns joined, and in
3D its frames too, there are many. Their number is made a multiple of 16.
"""

from __future__ import annotations

import jax.numpy as jnp

from odvae_jax.lowering import frames_joined, per_frame

_NARROW_INPUT = 32  # joined channels up to which joining pays


def applies(x, kernel, before, window) -> bool:
    """Returns whether a kernel sees few input values in a row, and takes no stride in space."""
    kt, _, kw, c, _ = kernel.shape
    return kw > 1 and window.stride == 1 and kt * kw * c <= _NARROW_INPUT


def forward(x, kernel, before, window):
    """Returns the convolution of a clip, or of what follows `before`."""
    x, kernel = frames_joined.joined(x, kernel, before, window)
    kh, kw, c, d = kernel.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), window.columns, (0, 0)))
    width, missing = x.shape[3] - kw + 1, -kw * c % 16
    columns = [x[:, :, :, i : i + width] for i in range(kw)]
    columns.append(jnp.zeros((*columns[0].shape[:-1], missing), x.dtype))
    kernel = jnp.pad(kernel.reshape(kh, 1, kw * c, d), ((0, 0), (0, 0), (0, missing), (0, 0)))
    window = window._replace(columns=(0, 0))
    return per_frame.convolve_frames(jnp.concatenate(columns, -1), kernel, window)


def backward(x, kernel, dy, window):
    """Returns the gradients for input and kernel, computed without joined columns."""
    way = per_frame if kernel.shape[0] == 1 else frames_joined
    return way.backward(x, kernel, dy, window)
