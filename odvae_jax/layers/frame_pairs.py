"""Convolution over three frames, two outputs at a time: four products in place of six.

Winograd's minimal filtering F(2, 3) (S. Winograd, Arithmetic Complexity of Computations, 1980; for
networks A. Lavin and S. Gray, arXiv:1509.09308), along time alone. Of frames d0 to d3 and taps g0
to g2 the outputs d0 g0 + d1 g1 + d2 g2 and d1 g0 + d2 g1 + d3 g2 are

    m1 + m2 + m3   and   m2 - m3 - m4,   where   m1 = (d0 - d2) g0,
    m2 = (d1 + d2) (g0 + g1 + g2) / 2,   m3 = (d2 - d1) (g0 - g1 + g2) / 2,   m4 = (d1 - d3) g2

and each product is a 2D convolution. Frames and kernels are summed in float32 and rounded to what
is convolved; the products, as rounded as any convolution's result, are summed in float32 again.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.layers import norm_kernels
from odvae_jax.layers.group_norm import Scales, scaled


def convolved(
    inputs: list[Float[Array, "b _ h w c"]],
    kernel: Float[Array, "3 k k c d"],
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
    count: int,
) -> Float[Array, "b t u v d"]:
    """Output j is the sum over the taps i of frame j + i's 2D convolution with `kernel[i]`.

    Args:
      inputs: what `pair_inputs` makes of the frames.
      kernel: with its taps in the order of the frames.
      convolve: frames and a 2D kernel to their convolution.
      count: outputs wanted, the last ones.
    """
    g0, g1, g2 = kernel.astype(jnp.float32)
    kernels = g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2
    m1, m2, m3, m4 = (
        convolve(x, k.astype(x.dtype)).astype(jnp.float32)
        for x, k in zip(inputs, kernels, strict=True)
    )
    missing = ((0, 0), (m2.shape[1] - m1.shape[1], 0), (0, 0), (0, 0), (0, 0))
    m1, m3, m4 = (jnp.pad(m, missing) for m in (m1, m3, m4))
    y = jnp.stack([m1 + m2 + m3, m2 - m3 - m4], axis=2).astype(inputs[0].dtype)
    y = y.reshape(y.shape[0], -1, *y.shape[3:])
    return y[:, y.shape[1] - count :]


def kernel_gradient(
    inputs: list[Float[Array, "b _ h w c"]],
    dy: Float[Array, "b t u v d"],
    gradient: Callable[[jax.Array, jax.Array], jax.Array],
) -> Float[Array, "3 k k c d"]:
    """What `convolved` gives its kernel, in float32, with four products in place of six too.

    Args:
      inputs: as there.
      dy: the outputs' gradient.
      gradient: frames and their outputs' gradient to that of the 2D kernel.
    """
    if dy.shape[1] % 2:
        dy = jnp.pad(dy, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    even, odd = dy[:, ::2], dy[:, 1::2]
    total, difference = (
        f(even.astype(jnp.float32), odd.astype(jnp.float32)).astype(dy.dtype)
        for f in (jnp.add, jnp.subtract)
    )
    g1, g2, g3, g4 = (
        gradient(x, d[:, d.shape[1] - x.shape[1] :]).astype(jnp.float32)
        for x, d in zip(inputs, (even, total, difference, odd), strict=True)
    )
    outer = (g2 + g3) / 2
    return jnp.stack([g1 + outer, (g2 - g3) / 2, outer - g4])


def clip_inputs(x: Float[Array, "b t h w c"]) -> list[Float[Array, "b _ h w c"]]:
    """`pair_inputs` of a clip from its beginning, before which its first frame stands twice."""
    return pair_inputs(jnp.concatenate([x[:, :1]] * 2 + [x], axis=1), still=True)


def normed_clip_inputs(
    x: Float[Array, "b t h w c"], scales: Scales
) -> list[Float[Array, "b _ h w c"]]:
    """`clip_inputs` of a clip that goes through a norm and SiLU first. For NVIDIA GPUs."""
    if x.shape[1] > 1 and norm_kernels.runs_here(x):
        return _in_one_pass(x, *scales)
    return _written_out(x, *scales)


def _written_out(x, *scales):
    return clip_inputs(scaled(x, scales, activation=True))


@jax.custom_vjp
def _in_one_pass(x, *scales):
    return norm_kernels.norm_silu_pairs(x, *(a[:, :, 0, 0] for a in scales))


def _forward(*arrays):
    return _in_one_pass(*arrays), arrays


def _backward(arrays, gradients):
    return jax.vjp(_written_out, *arrays)[1](gradients)


_in_one_pass.defvjp(_forward, _backward)


def pair_inputs(
    frames: Float[Array, "b s h w c"], *, still: bool
) -> list[Float[Array, "b _ h w c"]]:
    """What the four products convolve.

    Where the number of outputs is odd, one more is thought before the first; at a still beginning
    all products but the second are zero there, and left out.

    Args:
      frames: those that the T outputs see, T + 2.
      still: the first three frames are the same, as at a clip's beginning.
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
