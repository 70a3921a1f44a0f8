"""A 2D convolution with stride 2, padded alike on all sides: for NVIDIA GPUs.

With no zeros above and one row of them below, XLA would write the whole input again, with its
zeros, for cuDNN. With two rows or columns of zeros on each side it does not. The outputs that only
the additional zeros give are cut off.
"""

from __future__ import annotations

from odvae_jax.lowering.per_frame import backward, convolve_frames

__all__ = ["applies", "backward", "forward"]


def applies(x, kernel, before, window) -> bool:
    """Returns whether a kernel sees one frame and takes a stride in space."""
    return kernel.shape[0] == 1 and window.stride == 2


def forward(x, kernel, before, window):
    """Returns the convolution of every frame that is seen."""
    h, w = (
        (n + sum(pad) - k) // 2 + 1
        for n, pad, k in zip(
            x.shape[2:4], (window.rows, window.columns), kernel.shape[1:3], strict=True
        )
    )
    even = window._replace(rows=(2, 2), columns=(2, 2))
    y = convolve_frames(x[:, :: window.time_stride], kernel[0], even)
    return y[:, :, 1 : 1 + h, 1 : 1 + w]
