"""A lone frame at a clip's beginning: all the frames that a kernel sees are the same.

So its places in time are summed beforehand, and a 2D convolution is left, on every platform.
"""

from __future__ import annotations

import jax.numpy as jnp


def applies(x, kernel, before) -> bool:
    """For kernels that see several frames, where there is only one."""
    return x.shape[1] == 1 and kernel.shape[0] > 1 and before is None


def reduced(kernel):
    """The kernel of length 1 in time that gives the same."""
    return jnp.sum(kernel, axis=0, keepdims=True)
