"""One 2D convolution to three times the channels, whose parts are shifted in time and summed.

For few output channels, where joining the input's frames would cost most. The sum is in float32,
which is also what comes out.
"""

from __future__ import annotations

import jax.numpy as jnp

from odvae_jax.lowering.frames_joined import seen_frames
from odvae_jax.lowering.per_frame import convolve_frames

_NARROW_OUTPUT = 16  # output channels up to which this way is the fastest


def applies(x, kernel, before, window) -> bool:
    """For kernels that see several frames and give few channels."""
    return kernel.shape[0] > 1 and kernel.shape[-1] <= _NARROW_OUTPUT


def forward(x, kernel, before, window):
    """The convolution of a clip, or of what follows `before`, in float32."""
    kt, kh, kw, c, d = kernel.shape
    wide = jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, c, kt * d)

    def taps(frames):
        return convolve_frames(frames, wide, window).astype(jnp.float32)

    before = None if before is None else taps(before)
    seen = seen_frames(taps(x), kt, window.time_stride, before)
    return sum(frames[..., i * d : (i + 1) * d] for i, frames in enumerate(seen))
