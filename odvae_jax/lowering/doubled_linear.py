"""A convolution after linear interpolation of rows and columns, at a quarter of the work.

It is computed from the clip as it is before it is doubled. Interpolation and a product at each
place commute. So each of the kernel's 3×3 places is applied to the small clip, as one 1×1
convolution to nine times the channels. The results are interpolated and moved to their places,
columns first. Interpolation has half-pixel centres and clamped edges.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.lowering import rows_exchanged
from odvae_jax.lowering.reference import Window


def applies(doubling) -> bool:
    """Returns whether rows and columns are doubled by linear interpolation."""
    return doubling == "linear"


def forward(x, kernel, before, precision, convolve):
    """Returns the convolution of the doubled clip, [B, T, 2 H, 2 W, D].

    Args:
      x: the clip before it is doubled.
      kernel: [kt, 3, 3, C, D].
      before: the frames before `x`, not doubled, or None.
      precision: the precision of float32 products.
      convolve: a function of (x, kernel, before, window) to the convolution without doubling.
    """
    kt, kh, kw, c, d = kernel.shape
    every = jnp.moveaxis(kernel, 3, 1).swapaxes(2, 3).reshape(kt, 1, 1, c, kw * kh * d)
    y = convolve(x, every, before, Window(1, 1, (0, 0), (0, 0), precision))
    y = _interpolation_convolved(y, 3)
    return rows_exchanged.along_rows(_interpolation_convolved, y)


def interpolated(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Returns an array twice as long along an axis, interpolated linearly and summed in float32."""
    even, odd = _interpolations(x, axis, _first(x, axis), _last(x, axis))
    return _interleaved(even, odd, axis, x.dtype)


def _interpolation_convolved(
    y: Array, axis: int, outer: rows_exchanged.Outer | None = None
) -> Array:
    """What a kernel of length 3 gives along an axis that is interpolated first, zeros around.

    Args:
      y: what each of the kernel's three places gives of the axis as it is, as channels.
      axis: the axis that is doubled.
      outer: gives the rows of other devices, if `y` has only some of the frames' rows.

    Returns:
      The sum, over the three, of their interpolations, the first moved one place forward and the
      third one back; in float32 until it is rounded once.
    """
    taps = jnp.split(y, 3, axis=-1)
    if outer is None:
        edges = [(_first(tap, axis), _last(tap, axis)) for tap in taps]
    else:
        edges = list(zip(*(jnp.split(rows, 3, axis=-1) for rows in outer.clamped(y)), strict=True))
    (even0, odd0), (even1, odd1), (even2, odd2) = (
        _interpolations(tap, axis, *edge) for tap, edge in zip(taps, edges, strict=True)
    )
    # The odd place before the first, of the first tap, and the even place after the last.
    before, after = jnp.zeros_like(_first(odd0, axis)), jnp.zeros_like(_last(even2, axis))
    if outer is not None:
        (above, _), (_, below) = edges[0], edges[2]
        _, odd = _interpolations(above, axis, above, _first(taps[0], axis))
        even, _ = _interpolations(below, axis, _last(taps[2], axis), below)
        before, after = outer.unless_first(odd, before), outer.unless_last(even, after)
    before = jnp.concatenate([before, _slice(odd0, axis, 0, -1)], axis)
    after = jnp.concatenate([_slice(even2, axis, 1, None), after], axis)
    return _interleaved(before + even1 + odd2, even0 + odd1 + after, axis, y.dtype)


def _interpolations(x, axis, first, last):
    """Returns the values at the even and at the odd places, in float32.

    `first` stands before the first value, and `last` after the last one.
    """
    before = jnp.concatenate([first, _slice(x, axis, 0, -1)], axis)
    after = jnp.concatenate([_slice(x, axis, 1, None), last], axis)
    before, x, after = (a.astype(jnp.float32) for a in (before, x, after))
    return 0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after


def _interleaved(even, odd, axis, dtype):
    both = jnp.stack([even.astype(dtype), odd.astype(dtype)], axis=axis + 1)
    return both.reshape(*even.shape[:axis], 2 * even.shape[axis], *even.shape[axis + 1 :])


def _first(x, axis):
    return _slice(x, axis, 0, 1)


def _last(x, axis):
    return _slice(x, axis, -1, None)


def _slice(x, axis, start, stop):
    return x[(slice(None),) * axis + (slice(start, stop),)]
