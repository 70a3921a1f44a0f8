"""Convolutions of clips whose rows are spread over devices: neighbours exchange their outer rows.

Each device gets the rows that its kernel sees of the devices above and below, and then convolves
what it has as one device does. XLA's own partitioner exchanges rows of all that a convolution reads
(the four sums of pairs, for instance, in place of the clip), and writes all of it once more.

It serves models that also use the GPU kernels. An operation with a rule for spreading allows only
one mesh in a program, and so do the kernels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from odvae_jax.lowering import norm_kernels
from odvae_jax.lowering.reference import Window
from odvae_jax.sharding.partitioned import Rows, partitioned


def applies(x, kernel, window: Window) -> bool:
    """Returns whether a kernel sees several rows, and these may be spread over devices evenly.

    Not known here is over how many devices. So the rows of the result must be a multiple of all
    devices. XLA's partitioner does the rest.
    """
    return kernel.shape[1] > 1 and _may_be_spread(x, window.stride, max(kernel.shape[-2:]))


def _may_be_spread(x, stride, channels):
    count = jax.device_count()
    evenly = x.shape[2] % (stride * count) == 0
    return count > 1 and evenly and channels.bit_count() == 1 and norm_kernels.allowed(x)


def forward(run, x, kernel, scales, before, window: Window):
    """Returns the convolution of a clip, or of what follows `before`.

    Args:
      run: a function of (x, kernel, scales, before, window, outer) to the convolution of what one
        device holds. On a device that holds whole frames, `outer` is None. Otherwise it is an
        `Outer`, which has the rows of the neighbours, and the window has no zeros above and below.
      x: the clip.
      kernel: the kernel, [kt, kh, kw, C, D].
      scales: what a norm multiplies by and adds first, or None.
      before: the frames before `x`, or None.
      window: how the kernel goes over the clip.
    """
    operation = _operation(run, window, scales is not None, before is not None)
    scales = () if scales is None else tuple(a[:, :, 0, 0] for a in scales)
    frames = () if before is None else (before,)
    return operation(x, kernel, _named_by_shape(window), *scales, *frames)[0]


def _named_by_shape(window):
    """Returns an array that has another shape for another window, and is not used.

    The cache of compiled programs knows an operation that is spread by the shapes of its arrays.
    The precision is not among them, because bfloat16 has only one.
    """
    return jnp.zeros([1 + n for n in (*window.rows, *window.columns)], jnp.int8)


@functools.cache
def _operation(run, window, has_scales, has_before):
    clip = "b t (v z) w c"
    arrays = [clip, "k i j c d", "e f g l", *["b s c"] * (2 * has_scales)]
    arrays += ["b p (v z) w c"] * has_before
    together = (*"twckijdefgl", *"s" * has_scales, *"p" * has_before, "u", "y")
    sizes = {"z": window.stride}
    if window.stride == 1:
        arrays, sizes = [a.replace("(v z)", "v") for a in arrays], {}
    else:
        together += ("z",)

    rule = f"{', '.join(arrays)} -> b u v y d"

    @partitioned(rule, together=together, rows_multiple=window.stride, **sizes)
    def operation(x, kernel, _, *others, rows: Rows):
        scales = tuple(a[:, :, None, None] for a in others[:2]) if has_scales else None
        before = others[-1] if has_before else None
        if rows.count == 1:
            return [run(x, kernel, scales, before, window, None)]
        inner = window._replace(rows=(0, 0))
        return [run(x, kernel, scales, before, inner, Outer(rows, *window.rows))]

    return operation


def along_rows(function, x):
    """Returns `function(x, 2)`, a clip with twice as many rows.

    If rows are spread over devices, each device computes it for its own rows.

    Args:
      function: a linear function of a clip and the axis that it doubles. It takes an `Outer` as a
        third argument for what one device holds. Each row of the result depends on a row of the
        clip and on the two beside it.
      x: the clip, whose channels come from three places of a kernel.
    """
    if _may_be_spread(x, 1, x.shape[-1] // 3):
        return _along_rows(function, x)
    return function(x, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _along_rows(function, x):
    return _doubling(function)(x)[0]


def _along_rows_forward(function, x):
    return _along_rows(function, x), x[:0]  # nothing is kept but the shape


def _along_rows_backward(function, none, dy):
    x = jax.ShapeDtypeStruct((dy.shape[0], *none.shape[1:]), none.dtype)
    return jax.linear_transpose(lambda x: function(x, 2), x)(dy)


_along_rows.defvjp(_along_rows_forward, _along_rows_backward)


@functools.cache
def _doubling(function):
    together = (*"twcd", "p")

    @partitioned("b t h w c -> b t (h p) w d", together=together, rows_multiple=1, p=2)
    def operation(x, rows: Rows):
        return [function(x, 2, None if rows.count == 1 else Outer(rows, 1, 1))]

    return operation


class Outer:
    """The rows outside of those that a device holds.

    Args:
      rows: which rows the device holds.
      above: the number of rows that a kernel sees above.
      below: the number of rows that a kernel sees below.
    """

    def __init__(self, rows: Rows, above: int, below: int):
        self.rows, self.above, self.below = rows, above, below

    def around(self, x):
        """Returns `x` within the rows above and below it, which are zeros outside of the frames.

        XLA takes four times as long to concatenate rows as to pad them. Without the barrier, it
        would make a concatenation of what is written at the edge of a padded clip.
        """

        def write(outputs, rows, _, place):
            return [jax.lax.dynamic_update_slice_in_dim(outputs[0], rows, place, axis=2)]

        room = jnp.pad(x, ((0, 0), (0, 0), (self.above, self.below), (0, 0), (0, 0)))
        return self._filled(x, [jax.lax.optimization_barrier(room)], write)[0]

    def around_results(self, kernel, x, scales):
        """Returns what a kernel computes of `x` and of the rows above and below it.

        The kernel leaves room for these rows and writes into it, so that nothing is written twice.
        Outside of the frames its results are zeros.

        Args:
          kernel: a `norm_kernels.RowKernel`.
          x: the rows of this device.
          scales: what the norm multiplies by and adds, [B, S, 1, 1, C].
        """
        scales = [a[:, :, 0, 0] for a in scales]

        def write(outputs, rows, present, place):
            return kernel.into(outputs, rows, *scales, present, place)

        return self._filled(x, kernel.within(x, *scales, self.above, self.below), write)

    def clamped(self, x):
        """Returns the rows above and below those of `x`, where the outermost rows are repeated."""
        above, below = self.rows.above(x, 1), self.rows.below(x, 1)
        return self.unless_first(above, x[:, :, :1]), self.unless_last(below, x[:, :, -1:])

    def unless_first(self, x, otherwise):
        """Returns `x`, but `otherwise` on the device that has the first rows of the frames."""
        return jnp.where(self.rows.first(), otherwise, x)

    def unless_last(self, x, otherwise):
        """Returns `x`, but `otherwise` on the device that has the last rows of the frames."""
        return jnp.where(self.rows.last(), otherwise, x)

    def _filled(self, x, outputs, write):
        if self.above:
            rows = self.rows.above(x, self.above)
            outputs = write(outputs, rows, ~self.rows.first(), 0)
        if self.below:
            rows, place = self.rows.below(x, self.below), outputs[0].shape[2] - self.below
            outputs = write(outputs, rows, ~self.rows.last(), place)
        return outputs
