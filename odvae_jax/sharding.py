"""How arrays are spread over devices. No layer holds a mesh: XLA partitions what stands inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, "data", over all devices (or these)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Clips over the "data" axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def under_explicit_axes(run: Callable[[Any, jax.Array], jax.Array], out_shape: tuple[int, ...]):
    """Makes `run(parameters, x)` work where mesh axes are Explicit.

    Those of `jax.make_mesh` are.

    Inside, these axes are Auto, so that XLA propagates shardings and exchanges halos; the result,
    of shape `out_shape`, is spread as `x` is over batch, height and width where that divides.
    """

    def call(parameters, x):
        meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((x, parameters))]
        for mesh in meshes:
            explicit = tuple(
                name
                for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
                if kind == AxisType.Explicit
            )
            if explicit:
                break
        else:
            return run(parameters, x)
        spec = [None] * len(out_shape)
        if not meshes[0].empty:
            given = jax.typeof(x).sharding.spec
            for axis in (0, 2, 3):
                names = given[axis] if isinstance(given[axis], tuple) else (given[axis],)
                count = 1
                for name in names:
                    count *= 1 if name is None else mesh.shape[name]
                if out_shape[axis] % count == 0:
                    spec[axis] = given[axis]
        out_sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.sharding.auto_axes(run, axes=explicit, out_sharding=out_sharding)(parameters, x)

    return call
