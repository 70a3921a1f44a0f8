"""A batch that is computed in parts, one after another, for lack of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_micro_batches(function: Callable[..., Any], batch: tuple[Any, ...], count: int) -> Any:
    """The mean of `function`'s results over `count` parts of the batch, one after another.

    Part i takes the elements i, i + count, …, so that every device works on each part.

    Args:
      function: is given a part of each array of `batch`; returns a pytree of arrays.
      batch: arrays whose first axis, a multiple of `count`, is cut.
      count: parts; 1 calls the function once, with the whole batch.
    """
    if count == 1:
        return function(*batch)
    parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(lambda parts: function(*jax.tree.map(lambda a: a[0], parts)), parts)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda a: a / count, total)
