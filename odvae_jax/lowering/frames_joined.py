"""The frames that a kernel sees, side by side as channels, then one 2D convolution.

It is the way of CPUs, and of NVIDIA GPUs if there is a stride in time, a 1×1 kernel, or float16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from odvae_jax.lowering.per_frame import convolve_frames, kernel_gradient
from odvae_jax.lowering.reference import Window, preceded


def applies(x, kernel, before, window) -> bool:
    """Returns whether a kernel sees several frames."""
    return kernel.shape[0] > 1


def forward(x, kernel, before, window):
    """Returns the convolution of a clip, or of what follows `before`."""
    return convolve_frames(*joined(x, kernel, before, window), window)


def joined(x, kernel, before, window):
    """Returns the frames that each output sees, as kt * C channels, and the kernel for them."""
    kt, kh, kw, c, d = kernel.shape
    frames = jnp.concatenate(seen_frames(x, kt, window.time_stride, before), axis=-1)
    return frames, jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, d)


def seen_frames(x, kt: int, time_stride: int, before=None) -> list[jax.Array]:
    """Returns the frames that each of the kernel's `kt` places in time meets."""
    padded = preceded(x, kt, time_stride, before)
    t = padded.shape[1] - kt + 1
    return [padded[:, i : i + t : time_stride] for i in range(kt)]


def backward(x, kernel, dy, window):
    """Returns the gradients for the input and the kernel of a clip from its beginning.

    The kernel's gradient is taken one place in time after another. So the joined frames, three
    times as large as the input, are not made again.
    """
    if (window.time_stride, window.stride) != (1, 1):
        (dx,) = jax.vjp(lambda x: forward(x, kernel, None, window), x)[1](dy)
    elif kernel.shape[1] == 1:
        dx = _input_gradient_of_wide(dy, kernel, window)
    else:
        dx = input_gradient(dy, kernel, window, _convolve_later)
    seen = seen_frames(x, kernel.shape[0], window.time_stride)
    narrow = kernel[0].astype(x.dtype)
    taps = jnp.stack([kernel_gradient(frames, narrow, dy, window) for frames in seen])
    return dx, taps.astype(kernel.dtype)


def input_gradient(dy, kernel, window: Window, convolve):
    """Returns the gradient for the input of a convolution without strides.

    It is a convolution of later frames: outputs t to t + kt - 1 meet input t. The first input also
    stands for the frames before it; the gradient that it gets for this is added afterwards.

    Args:
      dy: the gradient of the output.
      kernel: the kernel of the convolution.
      window: how the kernel goes over the clip.
      convolve: a function of `dy` with kt - 1 frames of zeros after it, a kernel whose places in
        time are in the order of these frames, and a window, to the convolution over each kt frames
        in a row.
    """
    kt, kh, kw = kernel.shape[:3]
    window = window._replace(
        rows=tuple(kh - 1 - n for n in window.rows),
        columns=tuple(kw - 1 - n for n in window.columns),
    )
    transposed = jnp.flip(kernel, (1, 2)).swapaxes(-1, -2)
    padded = jnp.pad(dy, ((0, 0), (0, kt - 1), (0, 0), (0, 0), (0, 0)))
    dx = convolve(padded, transposed[::-1], window)
    places = range(min(kt - 1, dy.shape[1]))
    first = [jnp.sum(transposed[: kt - 1 - i], axis=0) for i in places]
    stood_for = jnp.concatenate([dy[:, i : i + 1] for i in places], axis=-1)
    extra = convolve_frames(stood_for, jnp.concatenate(first, axis=2), window)
    return dx.at[:, :1].add(extra)


def _convolve_later(padded, kernel, window):
    kt = kernel.shape[0]
    t = padded.shape[1] - kt + 1
    later = jnp.concatenate([padded[:, i : i + t] for i in range(kt)], axis=-1)
    return convolve_frames(later, jnp.concatenate(list(kernel), axis=2), window)


def _input_gradient_of_wide(dy, kernel, window):
    """Returns the gradient for the input of a convolution with a 1×1 kernel, without strides.

    Such a kernel has many outputs, so that joining their frames would take too much memory.
    """
    kt, _, _, c, d = kernel.shape
    wide = kernel.transpose(1, 2, 4, 0, 3).reshape(1, 1, d, kt * c)
    taps = jnp.split(convolve_frames(dy, wide, window).astype(jnp.float32), kt, axis=-1)
    places = [((0, 0), (i, kt - 1 - i), (0, 0), (0, 0), (0, 0)) for i in range(kt)]
    dx = sum(jnp.pad(tap, place) for tap, place in zip(taps, places, strict=True))
    first = jnp.sum(dx[:, :kt], axis=1, keepdims=True)
    return jnp.concatenate([first, dx[:, kt:]], axis=1).astype(dy.dtype)
