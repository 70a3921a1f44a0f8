"""XLA's own 3D convolution: for TPUs.

On an NVIDIA GPU cuDNN's 3D convolution is slower than the other ways, and at large sizes far
slower (docs/performance.md).
"""

from __future__ import annotations

from odvae_jax.lowering.reference import convolve as forward

__all__ = ["applies", "forward"]


def applies(x, kernel, before, window) -> bool:
    """For kernels that see several frames and give many channels; see `lowering.TABLE`."""
    return kernel.shape[0] > 1
