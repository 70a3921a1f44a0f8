"""Causal 3D convolution, and the one place that decides how it is lowered.

A convolution of length 3 in time sees the frame itself and the two before it; before the first
frame stand two copies of the first. Length 1 in time is a 2D convolution of each frame. Kernels are
[kt, kh, kw, in, out] in both cases.

Four ways to lower the 3D one, by measurement (docs/performance.md):

- `_in_pairs`: two outputs at a time, with two thirds of the operations (odvae_jax/layers/
  frame_pairs.py). The fastest on an NVIDIA GPU. It takes no stride in time. What a clip's pairs
  convolve is made from it by a kernel, norm and SiLU included (odvae_jax/layers/norm_kernels.py).
- `_frames_joined`: the three frames side by side as channels, then one 2D convolution. On a CPU,
  and on all GPUs with a stride in time; the plain 3D convolution falls off a cliff there at large
  sizes.
- `_taps_summed`: one 2D convolution to three times the output channels, whose parts are then
  shifted in time and summed in float32. For few output channels, where joining the input would cost
  most.
- `_plain_3d`: XLA's own 3D convolution, for TPUs.

Two things more for the sake of cuDNN, in `_columns_joined` and `_evenly_padded`: it takes few input
channels, RGB, as slowly as many, and the same number of zeros on both sides.

After a doubling of rows and columns, `conv_of_doubled` computes the same from the small input, with
4/9 of the operations where it repeats and a quarter where it interpolates.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import Interpolation, ODVAEConfig
from odvae_jax.layers import frame_pairs, platforms
from odvae_jax.layers.group_norm import GroupNorm, Scales, scaled
from odvae_jax.layers.interpolation import interpolation_convolved
from odvae_jax.layers.state import State, carried
from odvae_jax.sharding import varying_alike

_NARROW_OUTPUT = 16  # output channels up to which the taps are summed after the convolution
_NARROW_INPUT = 32  # input channels up to which frames and columns are joined for cuDNN

Generator = np.random.Generator | None
"""Where initial kernels come from; None makes them zero, for models whose shapes alone matter."""


def gaussian_kernel(
    rng: Generator, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Gaussian values with variance 1/fan_in.

    NumPy draws them: JAX would compile a program for every shape, half a minute for a whole model.
    """
    if rng is None:
        return jnp.zeros(shape, dtype)
    values = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[:-1]), dtype=np.float32)
    return jnp.asarray(values.astype(dtype))


class CausalConv(nnx.Module):
    """Convolution over [B, T, H, W, C], causal in time, zeros around in space.

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: (kt, k): length in time, 1 or 3, and side in space, 1 or 3.
      strides: (st, s) in time and space. With stride 2 in space, one row of zeros is added below
        and one column to the right, none above or left; with stride 2 in time, output j sees the
        inputs 2j - 2, 2j - 1 and 2j.
      config: gives dtype, param_dtype and precision.
      rng: for the initial kernel, Gaussian with variance 1/fan_in; the bias starts at zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        strides: tuple[int, int] = (1, 1),
        *,
        config: ODVAEConfig,
        rng: Generator,
    ):
        kt, k = kernel_size
        self.strides = strides
        self.dtype = config.dtype
        self.precision = config.precision
        shape = (kt, k, k, in_features, out_features)
        self.kernel = nnx.Param(gaussian_kernel(rng, shape, config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), config.param_dtype))

    def __call__(
        self, x: Float[Array, "b t h w c"], *, out_dtype: str | None = None
    ) -> Float[Array, "b u v x d"]:
        """Shapes: [B, T, H, W, C] to [B, ceil(T / st), H / s, W / s, D].

        `out_dtype` is the dtype of the result, the compute dtype unless told.
        """
        return self.chunk(x, None, out_dtype=out_dtype)[0]

    def chunk(
        self,
        x: Float[Array, "b t h w c"],
        state: State,
        *,
        out_dtype: str | None = None,
        norm: GroupNorm | None = None,
        doubled: Interpolation | None = None,
    ) -> tuple[Float[Array, "b u v x d"], State]:
        """The same of one chunk of a clip; the state holds the last kt - 1 input frames.

        With stride 2 in time the first chunk has an odd number of frames, the others an even one.
        With `norm`, the input is normalised and goes through SiLU first. With `doubled`, rows and
        columns are doubled first, in that way.
        """
        kernel, x, before = self.kernel[...], x.astype(self.dtype), carried(state)
        scales = None
        if norm is not None:
            scales = norm.scales(x)
            # Only a whole clip meets the norm where it is convolved.
            if state is not None or doubled is not None:
                x, scales = scaled(x, scales, activation=True), None
        if state is not None and kernel.shape[0] > 1:
            seen = x if before is None else jnp.concatenate([before, x], axis=1)
            missing = max(kernel.shape[0] - 1 - seen.shape[1], 0)
            state = _repeat_first(seen, missing)[:, seen.shape[1] + missing - kernel.shape[0] + 1 :]
        if x.shape[1] == 1 and kernel.shape[0] > 1 and before is None:
            # All the frames that a lone frame sees are itself: its taps can be summed beforehand.
            kernel = jnp.sum(kernel, axis=0, keepdims=True)
        if doubled is None:
            y = causal_conv(x, kernel, self.strides, self.precision, out_dtype, before, scales)
        else:
            y = conv_of_doubled(x, kernel, doubled, self.precision, out_dtype, before)
        return y + self.bias[...].astype(y.dtype), state


class _Window(NamedTuple):
    """How a kernel goes over a clip: strides, and zeros before and after rows and columns."""

    time_stride: int
    stride: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    precision: str


def _window(k, strides, precision):
    side = (0, 1) if strides[1] == 2 else (k // 2, k // 2)
    return _Window(*strides, side, side, precision)


def causal_conv(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt k k c d"],
    strides: tuple[int, int] = (1, 1),
    precision: str = "default",
    out_dtype: str | None = None,
    before: Float[Array, "b s h w c"] | None = None,
    scales: Scales | None = None,
) -> Float[Array, "b u v x d"]:
    """The convolution itself, without bias; see `CausalConv`.

    Args:
      x: the input.
      kernel: as wide as the input.
      strides: in time and space.
      precision: of float32.
      out_dtype: the input's unless told.
      before: the kt - 1 frames before `x`, where `x` does not begin a clip.
      scales: of a norm that `x`, but not `before`, goes through first, and then through SiLU.
    """
    y = _convolved(x, kernel, before, _window(kernel.shape[1], strides, precision), scales)
    return y.astype(out_dtype or x.dtype)


def conv_of_doubled(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt 3 3 c d"],
    how: Interpolation,
    precision: str = "default",
    out_dtype: str | None = None,
    before: Float[Array, "b s h w c"] | None = None,
) -> Float[Array, "b t 2*h 2*w d"]:
    """`causal_conv` of a clip whose rows and columns are doubled first, from the clip as it is.

    "nearest" (they are repeated): an even row of the result meets the row above once and its own
    twice, an odd one its own twice and the row below once; columns likewise. So the kernel's rows
    and columns that meet the same are summed, in float32, which makes it one of 2×2 for each of the
    four places. The two of a row are computed together, on one column more; rows apart, so that
    each result has the input's rows and these can lie on several devices.

    "linear": what each of the kernel's 3×3 places gives of the small clip is interpolated and
    moved to its place, columns first.
    """
    b, t, h, w, _ = x.shape
    dtype = out_dtype or x.dtype
    if how == "linear":
        kt, kh, kw, c, d = kernel.shape
        every = jnp.moveaxis(kernel, 3, 1).swapaxes(2, 3).reshape(kt, 1, 1, c, kw * kh * d)
        y = _convolved(x, every, before, _Window(1, 1, (0, 0), (0, 0), precision))
        for axis in (3, 2):
            y = interpolation_convolved(jnp.split(y, 3, axis=-1), axis)
        return y.astype(dtype)
    kernel, rows = kernel.astype(jnp.float32), []
    for kernel_rows, padding in zip(_pair_sums(kernel, 1), ((1, 0), (0, 1)), strict=True):
        both = jnp.concatenate(_pair_sums(kernel_rows, 2), axis=-1)
        y = _convolved(x, both, before, _Window(1, 1, padding, (1, 1), precision))
        even, odd = jnp.split(y.astype(dtype), 2, axis=-1)
        rows.append(jnp.stack([even[:, :, :, :-1], odd[:, :, :, 1:]], axis=4))
    return jnp.stack(rows, axis=3).reshape(b, t, 2 * h, 2 * w, -1)


def _pair_sums(kernel, axis):
    """What a kernel is to the even and to the odd places of an axis that was doubled."""
    first, second, third = (jax.lax.index_in_dim(kernel, i, axis) for i in range(3))
    return (
        jnp.concatenate([first, second + third], axis),
        jnp.concatenate([first + second, third], axis),
    )


def _is_wide(kernel):
    return kernel.shape[0] > 1 and kernel.shape[-1] > _NARROW_OUTPUT


def _convolved(x, kernel, before, window, scales=None):
    if _is_wide(kernel) and before is None:
        x, kernel, *scales = varying_alike(x, kernel, *(scales or ()))
        return _wide(x, kernel, tuple(scales) or None, window)
    x = _normed(x, scales)
    if kernel.shape[0] == 1:
        return _frame_by_frame(*varying_alike(x[:, :: window.time_stride], kernel[0]), window)
    if not _is_wide(kernel):
        return _taps_summed(x, kernel, before, window=window)
    return _lowered(x, kernel, None, before, window)


def _lowered(x, kernel, scales, before, window):
    """The one choice of how, by platform and by what the convolution is."""

    def plain_3d(x, kernel, scales, before):
        return _plain_3d(_normed(x, scales), kernel, before, window=window)

    def frames_joined(x, kernel, scales, before):
        return _frames_joined(_normed(x, scales), kernel, before, window=window)

    def in_pairs(x, kernel, scales, before):
        return _in_pairs(x, kernel, before, scales, window=window)

    def columns_joined_too(x, kernel, scales, before):
        y = _normed(x, scales)
        return _frames_joined(y, kernel, before, window=window, convolve=_columns_joined)

    cuda = frames_joined
    if _has_pairs(x, kernel, window):
        cuda = in_pairs
    elif _is_narrow_input(kernel.shape, window):
        cuda = columns_joined_too
    return platforms.by_platform(
        x, kernel, scales, before, tpu=plain_3d, cuda=cuda, default=frames_joined
    )


def _has_pairs(x, kernel, window):
    # 1×1 kernels do little work for each value that pairs would write. In float16 the sum of two
    # frames could overflow.
    worth_it = kernel.shape[1] > 1 and not _is_narrow_input(kernel.shape, window)
    return window.time_stride == 1 and worth_it and x.dtype != jnp.float16


def _is_narrow_input(shape, window):
    kt, _, kw, c, _ = shape
    return kw > 1 and window.stride == 1 and kt * kw * c <= _NARROW_INPUT


# The gradient is written by hand so that nothing larger than the input is kept for it: the norm and
# SiLU are computed again. The kernel's is taken a time tap, or a product of pairs, at a time.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _wide(x, kernel, scales, window):
    return _lowered(x, kernel, scales, None, window)


def _wide_forward(x, kernel, scales, window):
    return _wide(x, kernel, scales, window), (x, kernel, scales)


def _wide_backward(window, residuals, dy):
    def plain_3d(x, kernel, scales, dy):
        def forward(x, kernel, scales):
            return _plain_3d(_normed(x, scales), kernel, window=window)

        return jax.vjp(forward, x, kernel, scales)[1](dy)

    def frames_joined(x, kernel, scales, dy, in_pairs=False):
        y, pull = jax.vjp(_normed, x, scales)
        unstrided = (window.time_stride, window.stride) == (1, 1)
        if unstrided and kernel.shape[1] == 1:
            normed_gradient = _input_gradient_by_taps(dy, kernel, window)
        elif unstrided:
            normed_gradient = _input_gradient(dy, kernel, window, in_pairs)
        else:
            _, pull_conv = jax.vjp(lambda y: _frames_joined(y, kernel, window=window), y)
            (normed_gradient,) = pull_conv(dy)

        def gradient(frames, dy):
            return _kernel_gradient(frames, kernel[0].astype(x.dtype), dy, window)

        if in_pairs:
            taps = frame_pairs.kernel_gradient(_pair_inputs(x, scales), dy, gradient)
        else:
            seen = _seen_frames(y, kernel.shape[0], window.time_stride)
            taps = jnp.stack([gradient(frames, dy) for frames in seen])
        dx, dscales = pull(normed_gradient)
        return dx, taps.astype(kernel.dtype), dscales

    def joined_or_in_pairs(x, kernel, scales, dy):
        return frames_joined(x, kernel, scales, dy, _has_pairs(x, kernel, window))

    return platforms.by_platform(
        *residuals, dy, tpu=plain_3d, cuda=joined_or_in_pairs, default=frames_joined
    )


_wide.defvjp(_wide_forward, _wide_backward)


def _normed(x, scales):
    return x if scales is None else scaled(x, scales, activation=True)


def _pair_inputs(x, scales):
    """What the products of a whole clip's pairs convolve."""
    if scales is None:
        return frame_pairs.clip_inputs(x)
    return frame_pairs.normed_clip_inputs(x, scales)


def _products(inputs, kernel, window, count):
    convolve = functools.partial(_per_frame, window=window)
    return frame_pairs.convolved(inputs, kernel, convolve, count)


def _plain_3d(x, kernel, before=None, *, window):
    return jax.lax.conv_general_dilated(
        _preceded(x, kernel.shape[0], window.time_stride, before),
        kernel.astype(x.dtype),
        window_strides=(window.time_stride, window.stride, window.stride),
        padding=((0, 0), window.rows, window.columns),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision=window.precision,
    )


def _frames_joined(x, kernel, before=None, *, window, convolve=None):
    kt, kh, kw, c, d = kernel.shape
    joined = jnp.concatenate(_seen_frames(x, kt, window.time_stride, before), axis=-1)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, d)
    return (convolve or _per_frame)(joined, kernel, window)


def _in_pairs(x, kernel, before=None, scales=None, *, window):
    if before is None:
        inputs = _pair_inputs(x, scales)
    else:
        inputs = frame_pairs.pair_inputs(_preceded(x, 3, 1, before), still=False)
    return _products(inputs, kernel, window, x.shape[1])


def _input_gradient(dy, kernel, window, in_pairs):
    """The gradient for the input of a convolution without strides: itself one, over later frames.

    Input t is met by outputs t to t + kt - 1. The first input stands in for those before it too:
    what it gets as such is added afterwards.
    """
    kt, kh, kw = kernel.shape[:3]
    window = window._replace(
        rows=tuple(kh - 1 - n for n in window.rows),
        columns=tuple(kw - 1 - n for n in window.columns),
    )
    transposed = jnp.flip(kernel, (1, 2)).swapaxes(-1, -2)
    t = dy.shape[1]
    padded = jnp.pad(dy, ((0, 0), (0, kt - 1), (0, 0), (0, 0), (0, 0)))
    if in_pairs:
        inputs = frame_pairs.pair_inputs(padded, still=False)
        dx = _products(inputs, transposed[::-1], window, t)
    else:
        later = jnp.concatenate([padded[:, i : i + t] for i in range(kt)], axis=-1)
        dx = _per_frame(later, jnp.concatenate(list(transposed[::-1]), axis=2), window)
    first = [jnp.sum(transposed[: kt - 1 - i], axis=0) for i in range(min(kt - 1, t))]
    stood_in = jnp.concatenate([dy[:, i : i + 1] for i in range(len(first))], axis=-1)
    extra = _per_frame(stood_in, jnp.concatenate(first, axis=2), window)
    return dx.at[:, :1].add(extra)


def _input_gradient_by_taps(dy, kernel, window):
    """The same of a 1×1 kernel to many channels, of which joined frames would be too many."""
    kt, _, _, c, d = kernel.shape
    wide = kernel.transpose(1, 2, 4, 0, 3).reshape(1, 1, d, kt * c)
    taps = jnp.split(_per_frame(dy, wide, window).astype(jnp.float32), kt, axis=-1)
    places = [((0, 0), (i, kt - 1 - i), (0, 0), (0, 0), (0, 0)) for i in range(kt)]
    dx = sum(jnp.pad(tap, place) for tap, place in zip(taps, places, strict=True))
    first = jnp.sum(dx[:, :kt], axis=1, keepdims=True)
    return jnp.concatenate([first, dx[:, kt:]], axis=1).astype(dy.dtype)


def _taps_summed(x, kernel, before=None, *, window):
    kt, kh, kw, c, d = kernel.shape
    wide = jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, c, kt * d)

    def taps(frames):
        return _per_frame(frames, wide, window).astype(jnp.float32)

    before = None if before is None else taps(before)
    seen = _seen_frames(taps(x), kt, window.time_stride, before)
    return sum(frames[..., i * d : (i + 1) * d] for i, frames in enumerate(seen))


def _per_frame(x, kernel, window):
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _frame_by_frame(x, kernel, window):
    def per_frame(x, kernel):
        return _per_frame(x, kernel, window)

    if _is_narrow_input((1, *kernel.shape), window):
        cuda = functools.partial(_columns_joined, window=window)
    elif window.stride == 2:
        cuda = functools.partial(_evenly_padded, window=window)
    else:
        return per_frame(x, kernel)
    return platforms.by_platform(x, kernel, cuda=cuda, default=per_frame)


def _columns_joined(x, kernel, window):
    """`_per_frame`, the columns that the kernel sees side by side as channels, a multiple of 16."""
    kh, kw, c, d = kernel.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), window.columns, (0, 0)))
    width, missing = x.shape[3] - kw + 1, -kw * c % 16
    columns = [x[:, :, :, i : i + width] for i in range(kw)]
    columns.append(jnp.zeros((*columns[0].shape[:-1], missing), x.dtype))
    kernel = jnp.pad(kernel.reshape(kh, 1, kw * c, d), ((0, 0), (0, 0), (0, missing), (0, 0)))
    return _per_frame(jnp.concatenate(columns, -1), kernel, window._replace(columns=(0, 0)))


def _evenly_padded(x, kernel, window):
    """`_per_frame` with a stride of two: two zeros on each side, what comes of the first two cut.

    With none above and one below, XLA would write the whole input again with its zeros.
    """
    h, w = (
        (n + sum(pad) - k) // 2 + 1
        for n, pad, k in zip(
            x.shape[2:4], (window.rows, window.columns), kernel.shape[:2], strict=True
        )
    )
    y = _per_frame(x, kernel, window._replace(rows=(2, 2), columns=(2, 2)))
    return y[:, :, 1 : 1 + h, 1 : 1 + w]


def _frame_by_frame_forward(x, kernel, window):
    return _frame_by_frame(x, kernel, window), (x, kernel)


def _frame_by_frame_backward(window, residuals, dy):
    x, kernel = residuals
    (dx,) = jax.vjp(lambda x: _per_frame(x, kernel, window), x)[1](dy)
    return dx, _kernel_gradient(x, kernel, dy, window)


_frame_by_frame.defvjp(_frame_by_frame_forward, _frame_by_frame_backward)


def _kernel_gradient(x, kernel, dy, window):
    """Of a 2D convolution.

    XLA sees cuDNN's operation for it, where there is no stride, only if as many zeros stand above
    as below: a kernel of two rows gets a third one, of which the gradient is not needed.
    """
    above, below = window.rows
    more = (max(below - above, 0), max(above - below, 0)) if window.stride == 1 else (0, 0)
    window = window._replace(rows=(above + more[0], below + more[1]))
    kernel = jnp.pad(kernel, (more, (0, 0), (0, 0), (0, 0)))
    (gradient,) = jax.vjp(lambda k: _per_frame(x, k, window), kernel)[1](dy)
    return gradient[more[0] : gradient.shape[0] - more[1]]


def _seen_frames(x, kt, stride, before=None):
    """For each of the kernel's `kt` time taps, the frames that it meets.

    Each is [B, ceil(T / stride), ...], or, after `before`, [B, T / stride, ...].
    """
    padded = _preceded(x, kt, stride, before)
    t = padded.shape[1] - kt + 1
    return [padded[:, i : i + t : stride] for i in range(kt)]


def _preceded(x, kt, stride, before):
    """The frames with those that the first output sees before them.

    A clip's first output is its first frame's; after `before`, with a stride, it is the frame's
    that ends the first step.
    """
    if before is None:
        return _repeat_first(x, kt - 1)
    return jnp.concatenate([before[:, stride - 1 :], x], axis=1)


def _repeat_first(x, count):
    return jnp.concatenate([x[:, :1]] * count + [x], axis=1)
