"""Convolution over three frames, two outputs at a time: four products in place of six.

The fastest way on NVIDIA GPUs. Winograd's minimal filtering F(2, 3) (S. Winograd, Arithmetic
Complexity of Computations, 1980; for networks A. Lavin and S. Gray, arXiv:1509.09308), along time
alone. Of frames d0 to d3 and taps g0 to g2 the outputs d0 g0 + d1 g1 + d2 g2 and
d1 g0 + d2 g1 + d3 g2 are

    m1 + m2 + m3   and   m2 - m3 - m4,   where   m1 = (d0 - d2) g0,
    m2 = (d1 + d2) (g0 + g1 + g2) / 2,   m3 = (d2 - d1) (g0 - g1 + g2) / 2,   m4 = (d1 - d3) g2

and each product is a 2D convolution. Frames and kernels are summed in float32 and rounded to what
is convolved; the products, as rounded as any convolution's result, are summed in float32 again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.lowering import frames_joined, norm_kernels, reference
from odvae_jax.lowering.per_frame import convolve_frames
from odvae_jax.lowering.per_frame import kernel_gradient as frames_gradient
from odvae_jax.lowering.reference import Window, preceded


def applies(x, kernel, before, window) -> bool:
    """Returns whether a kernel sees three frames, has no stride in time, and is worth it.

    A 1×1 kernel does little work for each value that pairs would write. In float16 the sum of two
    frames could overflow.
    """
    worth_it = kernel.shape[0] == 3 and kernel.shape[1] > 1
    return worth_it and window.time_stride == 1 and x.dtype != jnp.float16


def takes_norm(x, before) -> bool:
    """Returns whether a kernel computes a norm and SiLU on the way to the convolution."""
    return before is None and x.shape[1] > 1 and norm_kernels.applies(x)


def forward(x, kernel, before, window, scales=None, outer=None):
    """Returns the convolution of a clip, or of what follows `before`.

    With `outer`, a `rows_exchanged.Outer`, `x` is what one device holds, and needs a norm.
    """
    if outer is not None:
        inputs = _inputs_within(x, scales, outer)
    elif before is None:
        inputs = _clip_inputs(x, scales)
    else:
        inputs = pair_inputs(preceded(x, 3, 1, before), still=False)
    return _convolve(inputs, kernel, window, x.shape[1])


def backward(x, kernel, dy, window, scales=None):
    """Returns the gradients for input (after its norm) and kernel, computed in pairs too."""
    if window.stride == 1:
        dx = frames_joined.input_gradient(dy, kernel, window, _convolve_later)
    else:  # it depends on the shape of `x` alone, before its norm or after
        (dx,) = jax.vjp(lambda x: frames_joined.forward(x, kernel, None, window), x)[1](dy)
    taps = _kernel_gradient(_clip_inputs(x, scales), kernel[0].astype(x.dtype), dy, window)
    return dx, taps.astype(kernel.dtype)


def _convolve_later(padded, kernel, window):
    return _convolve(pair_inputs(padded, still=False), kernel, window, padded.shape[1] - 2)


def _convolve(inputs, kernel, window: Window, count):
    """The last `count` outputs: the sum over taps i of frame j + i convolved with `kernel[i]`."""
    g0, g1, g2 = kernel.astype(jnp.float32)
    kernels = g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2
    m1, m2, m3, m4 = (
        convolve_frames(x, k.astype(x.dtype), window).astype(jnp.float32)
        for x, k in zip(inputs, kernels, strict=True)
    )
    missing = ((0, 0), (m2.shape[1] - m1.shape[1], 0), (0, 0), (0, 0), (0, 0))
    m1, m3, m4 = (jnp.pad(m, missing) for m in (m1, m3, m4))
    y = jnp.stack([m1 + m2 + m3, m2 - m3 - m4], axis=2).astype(inputs[0].dtype)
    y = y.reshape(y.shape[0], -1, *y.shape[3:])
    return y[:, y.shape[1] - count :]


def _kernel_gradient(inputs, kernel, dy, window: Window):
    """The gradient for the kernel, [3, kh, kw, C, D] in float32, with four products for six too."""
    if dy.shape[1] % 2:
        dy = jnp.pad(dy, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    even, odd = dy[:, ::2], dy[:, 1::2]
    total, difference = (
        f(even.astype(jnp.float32), odd.astype(jnp.float32)).astype(dy.dtype)
        for f in (jnp.add, jnp.subtract)
    )
    g1, g2, g3, g4 = (
        frames_gradient(x, kernel, d[:, d.shape[1] - x.shape[1] :], window).astype(jnp.float32)
        for x, d in zip(inputs, (even, total, difference, odd), strict=True)
    )
    outer = (g2 + g3) / 2
    return jnp.stack([g1 + outer, (g2 - g3) / 2, outer - g4])


def _clip_inputs(x, scales=None):
    """Returns `pair_inputs` of a whole clip, after a norm and SiLU if there are scales."""
    if scales is not None:
        return _in_one_pass(x, *scales)
    return pair_inputs(preceded(x, 3, 1, None), still=True)


def _inputs_within(x, scales, outer):
    """Returns `pair_inputs` of a clip after a norm and SiLU, with its neighbours' rows."""
    return outer.around_results(norm_kernels.NORM_SILU_PAIRS, x, scales)


# XLA makes three passes of what the kernel does in one.
@jax.custom_vjp
def _in_one_pass(x, *scales):
    return norm_kernels.norm_silu_pairs(x, *(a[:, :, 0, 0] for a in scales))


def _forward(*arrays):
    return _in_one_pass(*arrays), arrays


def _backward(arrays, gradients):
    def written_out(x, *scales):
        return _clip_inputs(reference.normalise(x, *scales, True))

    return jax.vjp(written_out, *arrays)[1](gradients)


_in_one_pass.defvjp(_forward, _backward)


def pair_inputs(
    frames: Float[Array, "b s h w c"], *, still: bool
) -> list[Float[Array, "b _ h w c"]]:
    """Returns the four sums of frames that the four products convolve.

    If the number of outputs T is odd, one more output is added before the first. At the beginning
    of a clip all products but the second are zero there, and are left out.

    Args:
      frames: the T + 2 frames that the T outputs see.
      still: whether the first three frames are equal, as at the beginning of a clip.
    """
    odd_count = frames.shape[1] % 2
    if odd_count:
        frames = jnp.concatenate([frames[:, :1], frames], axis=1)
    even, odd = frames[:, ::2], frames[:, 1::2]
    d0, d1, d2, d3 = (
        x.astype(jnp.float32) for x in (even[:, :-1], odd[:, :-1], even[:, 1:], odd[:, 1:])
    )
    skipped = int(still and odd_count)
    return [
        x.astype(frames.dtype)
        for x in ((d0 - d2)[:, skipped:], d1 + d2, (d2 - d1)[:, skipped:], (d1 - d3)[:, skipped:])
    ]
