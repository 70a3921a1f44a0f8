"""One 2D convolution to three times the channels, whose parts are shifted in time and summed.

It is for few output channels, where joining the input's frames would cost most. The sum is taken in
float32, and the result is float32 too.
"""

from __future__ import annotations

import jax.numpy as jnp

from odvae_jax.lowering.frames_joined import seen_frames
from odvae_jax.lowering.per_frame import convolve_frames

_NARROW_OUTPUT = 16  # output channels up to which this way is the fastest


def applies(x, kernel, before, window) -> bool:
    """Returns whether a kernel sees several frames and gives few channels."""
    return kernel.shape[0] > 1 and kernel.shape[-1] <= _NARROW_OUTPUT


def forward(x, kernel, before, window):
    """Returns the convolution of a clip, or of what follows `before`, in float32."""
    kt, kh, kw, c, d = kernel.shape
    wide = jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, c, kt * d)

    def taps(frames):
        return convolve_frames(frames, wide, window).astype(jnp.float32)

    before = None if before is None else taps(before)
    seen = seen_frames(taps(x), kt, window.time_stride, before)
    return sum(frames[..., i * d : (i + 1) * d] for i, frames in enumerate(seen))
