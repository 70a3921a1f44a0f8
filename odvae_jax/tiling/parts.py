"""The parts of a clip, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from odvae_jax.layers.carry import State

Part = Callable[[Shaped[Array, "b t h w c"], State, bool], tuple[Shaped[Array, "b u v x d"], State]]
"""A function that encodes or decodes one part of a clip.

It takes the part, the state before it, and whether it is the last part. It returns its output and
the state after it. The state is None if nothing is carried from part to part.
"""


def joined(parts: Shaped[Array, "n b u ..."]) -> Shaped[Array, "b n*u ..."]:
    """Returns parts, which lie along the first axis, one after another along the axis of frames."""
    n, b, u, *rest = parts.shape
    return jnp.moveaxis(parts, 0, 1).reshape(b, n * u, *rest)
