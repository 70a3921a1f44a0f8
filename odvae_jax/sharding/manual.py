"""What code inside `jax.shard_map` needs."""

from __future__ import annotations

import jax


def varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Inside `jax.shard_map`, makes arrays vary over the same mesh axes; the values stay.

    Hand-written gradients and the carries of loops must have one type, and the axes that an array
    varies over are part of its type.
    """
    axes = [_varying(jax.typeof(a)) for a in arrays]
    union = frozenset().union(*axes)
    return tuple(
        jax.lax.pcast(a, tuple(union - own), to="varying") if union - own else a
        for a, own in zip(arrays, axes, strict=True)
    )


def _varying(array_type) -> frozenset[str]:
    """Returns the mesh axes that an array varies over; releases of JAX name them differently."""
    if hasattr(array_type, "vma"):
        return frozenset(array_type.vma)
    return frozenset(array_type.manual_axis_type.varying)
