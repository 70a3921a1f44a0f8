"""A single frame at a clip's beginning: all frames that a kernel sees are equal.

So the kernel's places in time are summed beforehand, and a 2D convolution is left, on every
platform.
"""

from __future__ import annotations

import jax.numpy as jnp


def applies(x, kernel, before) -> bool:
    """Returns whether a kernel sees several frames although the clip has only one."""
    return x.shape[1] == 1 and kernel.shape[0] > 1 and before is None


def reduced(kernel):
    """Returns the kernel of length 1 in time that has the same effect on equal frames."""
    return jnp.sum(kernel, axis=0, keepdims=True)
