"""A convolution after repetition of rows and columns, at 4/9 of the work.

It is computed from the clip as it is before it is doubled. An even row of the result meets the row
above once and its own row twice. An odd row meets its own row twice and the row below once. The
same holds for columns. So the kernel's rows and columns that meet the same row or column are
summed, in float32, which makes a kernel of 2×2 for each of the four places. The even and the odd
columns are computed together, on one column more. The rows are computed apart, so that each result
has the input's rows, which can lie on several devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from odvae_jax.lowering.reference import Window


def applies(doubling) -> bool:
    """Returns whether rows and columns are doubled by repetition."""
    return doubling == "nearest"


def forward(x, kernel, before, precision, convolve):
    """Returns the convolution of the doubled clip, [B, T, 2 H, 2 W, D], in the dtype of `x`.

    Args:
      x: the clip before it is doubled.
      kernel: [kt, 3, 3, C, D], whose sums are taken in float32.
      before: the frames before `x`, not doubled, or None.
      precision: the precision of float32 products.
      convolve: a function of (x, kernel, before, window) to the convolution without doubling.
    """
    b, t, h, w, _ = x.shape
    rows = []
    for kernel_rows, zeros in zip(
        _pair_sums(kernel.astype(jnp.float32), 1), ((1, 0), (0, 1)), strict=True
    ):
        both = jnp.concatenate(_pair_sums(kernel_rows, 2), axis=-1)
        y = convolve(x, both, before, Window(1, 1, zeros, (1, 1), precision))
        even, odd = jnp.split(y, 2, axis=-1)
        rows.append(jnp.stack([even[:, :, :, :-1], odd[:, :, :, 1:]], axis=4))
    return jnp.stack(rows, axis=3).reshape(b, t, 2 * h, 2 * w, -1)


def _pair_sums(kernel, axis):
    """Returns the kernels for the even and for the odd places of an axis that was doubled."""
    first, second, third = (jax.lax.index_in_dim(kernel, i, axis) for i in range(3))
    return (
        jnp.concatenate([first, second + third], axis),
        jnp.concatenate([first + second, third], axis),
    )
