"""XLA's own 3D convolution: for TPUs.

On an NVIDIA GPU, cuDNN's 3D convolution is slower than the other ways, and far slower at large
sizes (docs/kernels.md).
"""

from __future__ import annotations

from odvae_jax.lowering.reference import convolve as forward

__all__ = ["applies", "forward"]


def applies(x, kernel, before, window) -> bool:
    """Returns whether a kernel sees several frames."""
    return kernel.shape[0] > 1
