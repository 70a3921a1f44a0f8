"""Parts of a clip, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from odvae_jax.layers.carry import State

Part = Callable[[jax.Array, State, bool], tuple[jax.Array, State]]
"""A function of a part of a clip, the state before it and whether it is the last part, to the
part's output and the state after it; the state is None for a part that nothing is carried to."""


def joined(parts: Shaped[Array, "n b u ..."]) -> Shaped[Array, "b n*u ..."]:
    """Parts that lie along a first axis, one after another along the axis of frames."""
    n, b, u, *rest = parts.shape
    return jnp.moveaxis(parts, 0, 1).reshape(b, n * u, *rest)
