"""Parameters split over the mesh axis "fsdp", and put together again where they are used."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns how training keeps each array of a pytree: kernels are split over "fsdp".

    A kernel is an array of two or more axes. It is split along its longest axis that divides by the
    number of devices. Vectors, numbers and kernels that do not divide are whole on every device.

    Args:
      mesh: a mesh with the axis "fsdp".
      state: a pytree of arrays, or of anything that has a shape.

    Returns:
      A pytree like `state` with a NamedSharding in place of every array.
    """

    def sharding(leaf):
        spec = [None] * len(leaf.shape)
        count = mesh.shape["fsdp"]
        dividing = [(size, axis) for axis, size in enumerate(leaf.shape) if size % count == 0]
        if count > 1 and len(leaf.shape) > 1 and dividing:
            spec[max(dividing)[1]] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, state)


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Inside a compiled function, makes every array of a pytree whole on every device.

    It changes nothing on a mesh whose axis "fsdp" has size 1.
    """
    # Without this XLA may choose to split the activations instead, which are larger.
    if mesh.shape["fsdp"] == 1:
        return tree
    context = jax.sharding.get_abstract_mesh()  # under `auto_axes`, the mesh with Auto axes
    return jax.lax.with_sharding_constraint(
        tree, NamedSharding(mesh if context.empty else context, PartitionSpec())
    )
