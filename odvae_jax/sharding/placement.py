"""Arrays put on the devices of a mesh, and where an array lies."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps a whole copy of an array on every device of a mesh."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of every array of a pytree on every device of a mesh.

    It works inside a compiled function too.
    """
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def place(x: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array where a sharding says; inside a compiled function, requires it to be there."""
    if not isinstance(x, jax.core.Tracer):
        return jax.device_put(x, sharding)
    # A constraint is a hint to XLA's partitioner, which Explicit axes do without.
    if AxisType.Explicit in sharding.mesh.axis_types:
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def sharding_of(x: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding of an array, traced or not; None for what has no sharding.

    Inside a compiled function, XLA itself decides how arrays lie on Auto axes. That decision cannot
    be seen here.
    """
    traced = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else None
    return getattr(x, "sharding", None) if traced is None else traced
