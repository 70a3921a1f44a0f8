"""What a gradient computes again instead of keeping it in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

Remat = Literal["none", "blocks", "convolutions"]
FIRST_CONVOLUTION = "first convolution of a residual block"


def rematerialised(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The layer, a function of arrays, of which a gradient keeps the input alone.

    With "convolutions" it keeps the first convolution of a residual block too; the output of the
    second is needed by no gradient, so that no convolution runs twice.
    """
    if remat == "none":
        return layer
    names = (FIRST_CONVOLUTION,) if remat == "convolutions" else ()
    return jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(*names))
