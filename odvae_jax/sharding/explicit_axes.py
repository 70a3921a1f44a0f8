"""Meshes whose axes are Explicit: JAX, not XLA, then tracks how every array is spread.

The convolutions here leave the exchange of rows at the borders to XLA, or to operations that need
Auto axes. So Explicit axes are made Auto around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec


def mesh_with_axes(mesh: Mesh, axis_type: AxisType) -> Mesh:
    """Returns a mesh of the same devices whose axes are all of the given type."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(axis_type,) * len(mesh.axis_names))


def with_axes(tree: Any, axis_type: AxisType) -> Any:
    """Returns the arrays of a pytree on meshes whose axes are all of the given type.

    No data moves. Arrays that lie on no mesh, and leaves that are not arrays, stay as they are.
    """

    def renamed(leaf):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
            return leaf
        mesh = mesh_with_axes(sharding.mesh, axis_type)
        return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(renamed, tree)


def with_automatic_axes(
    run: Callable[[Any, jax.Array], jax.Array],
    arguments: tuple[Any, jax.Array],
    out_shape: tuple[int, ...],
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns a function of parameters and clips that works where mesh axes are Explicit, too.

    `jax.make_mesh` makes such axes. Inside `run` they are Auto, so that XLA propagates shardings
    and exchanges the rows that neighbouring devices need.

    Args:
      run: maps parameters (a pytree) and an array [B, T, H, W, C] to an array.
      arguments: what the function will be called with.
      out_shape: the shape of the result, [B, T, H, W, C].

    Returns:
      `run` itself where no axis is Explicit; else a function with its arguments, whose result is
      spread over the batch, rows and columns as the array that goes in, along every axis that
      divides.
    """
    parameters, x = arguments
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((x, parameters))]
    mesh = next((m for m in meshes if AxisType.Explicit in m.axis_types), None)
    if mesh is None:
        return run
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in axes if kind == AxisType.Explicit)
    # The first mesh is that of `x`: it is empty if only the parameters are on one.
    given = None if meshes[0].empty else jax.typeof(x).sharding.spec
    out_sharding = NamedSharding(mesh, _spread_alike(given, mesh, out_shape))
    return jax.sharding.auto_axes(run, axes=explicit, out_sharding=out_sharding)


def _spread_alike(given, mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns `given` for an array of another shape, without the axes that do not divide."""
    spec = [None] * len(shape)
    for axis in (0, 2, 3) if given is not None else ():
        names = given[axis] if isinstance(given[axis], tuple) else (given[axis],)
        count = 1
        for name in names:
            count *= 1 if name is None else mesh.shape[name]
        if shape[axis] % count == 0:
            spec[axis] = given[axis]
    return PartitionSpec(*spec)
