"""How arrays are spread over devices. No layer holds a mesh: XLA partitions what stands inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "height")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    height: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """A mesh of all devices, of all processes, with the axes "data", "fsdp" and "height".

    Args:
      data: devices that different clips go to; -1 takes all that the other axes leave.
      fsdp: devices that different clips go to, and that share out parameters and all that is kept
        for each of them.
      height: devices that share the rows of a clip.
      devices: all, unless told.
      axis_type: of all three axes.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, saying what would.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    for name, size, least in (("data", data, -1), ("fsdp", fsdp, 1), ("height", height, 1)):
        if size < least or size == 0:
            raise ValueError(f"{name}={size} must be at least 1.")
    if data == -1:
        data = max(count // (fsdp * height), 1)
    if data * fsdp * height != count:
        raise ValueError(
            f"a mesh of data={data}, fsdp={fsdp} and height={height} needs {data * fsdp * height} "
            f"devices, and there are {count}: choose sizes whose product is {count}."
        )
    shape = (data, fsdp, height)
    return jax.make_mesh(shape, AXES, axis_types=(axis_type,) * 3, devices=devices)


def clip_shards(mesh: Mesh) -> int:
    """Into how many parts a batch of clips is spread."""
    return mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)


def clip_sharding(mesh: Mesh) -> NamedSharding:
    """Clips [B, T, H, W, C] over "data" and "fsdp", their rows over "height".

    Those of the three that the mesh has.
    """
    clips = tuple(name for name in ("data", "fsdp") if name in mesh.shape)
    rows = "height" if "height" in mesh.shape else None
    return NamedSharding(mesh, PartitionSpec(clips or None, None, rows))


def check_spread(name: str, shape: tuple[int, ...], mesh: Mesh, unit: int) -> None:
    """Raises ValueError unless clips of a shape can be spread over a mesh.

    Args:
      name: of the clips, for the error.
      shape: [B, T, H, W, C].
      mesh: of some of the axes "data", "fsdp" and "height".
      unit: rows to a row of latents.
    """
    if unknown := [axis for axis in mesh.axis_names if axis not in AXES]:
        raise ValueError(
            f"the mesh has the axes {unknown}; expected some of {list(AXES)}, as of make_mesh."
        )
    for what, size, parts in (
        ("clips", shape[0], clip_shards(mesh)),
        ("rows", shape[2], unit * mesh.shape.get("height", 1)),
    ):
        if size % parts:
            raise ValueError(
                f"{name} has {size} {what}, which do not divide over the mesh "
                f"{dict(mesh.shape)}: there must be a multiple of {parts}; the nearest is "
                f"{parts * max(round(size / parts), 1)}."
            )


def spread_clips(x: Any, mesh: Mesh) -> jax.Array:
    """Clips placed as `clip_sharding` says; inside a compiled function, constrained to be."""
    return _placed(x, clip_sharding(mesh))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A pytree whole on every device of a mesh, inside a compiled function too."""
    return jax.tree.map(lambda leaf: _placed(leaf, replicated(mesh)), tree)


def _placed(x, sharding):
    if not isinstance(x, jax.core.Tracer):
        return jax.device_put(x, sharding)
    if AxisType.Explicit in sharding.mesh.axis_types:
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def with_axes(tree: Any, axis_type: AxisType) -> Any:
    """Arrays where they lie, the axes of their meshes called Auto or Explicit."""

    def renamed(leaf):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
            return leaf
        mesh = mesh_with_axes(sharding.mesh, axis_type)
        return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(renamed, tree)


def mesh_with_axes(mesh: Mesh, axis_type: AxisType) -> Mesh:
    """The mesh, all its axes Auto or Explicit."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(axis_type,) * len(mesh.axis_names))


def local_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> list[int]:
    """The indices along the first axis that this process's devices hold a part of."""
    held = sharding.addressable_devices_indices_map(shape).values()
    return sorted({row for index in held for row in range(*index[0].indices(shape[0]))})


LEAST_ROWS = 2
"""Rows of latents that a device must hold where a mesh has more axes than the rows are spread over.

XLA's partitioner gives wrong values for a convolution whose output has one row a device there.
"""


def sharding_of(x: Any) -> jax.sharding.Sharding | None:
    """Of an array, traced or not; None where there is none.

    What XLA spreads by itself, on Auto axes inside a compiled function, cannot be seen here.
    """
    traced = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else None
    return getattr(x, "sharding", None) if traced is None else traced


def check_rows(name: str, shape: tuple[int, ...], sharding: Any, compression: int) -> None:
    """Raises ValueError if an array, [B, T, H, W, C], is spread over too many devices by its rows.

    Args:
      name: of the array, for the error.
      shape: of the array.
      sharding: of the array (`sharding_of`); only a NamedSharding can be judged.
      compression: rows to a row of latents.
    """
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return
    if AxisType.Manual in sharding.mesh.axis_types:  # inside shard_map shapes are a device's own
        return
    h = shape[2]
    rows = sharding.shard_shape(tuple(shape))[2]
    if rows < h and rows < LEAST_ROWS * compression and sharding.mesh.size > h // rows:
        most = max(h // (LEAST_ROWS * compression), 1)
        raise ValueError(
            f"{name} has {rows} of its {h} rows on each device; at least "
            f"{LEAST_ROWS * compression} are needed: spread the rows over at most {most} devices."
        )


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """For each array of a pytree (or its shape), how training keeps it: kernels over "fsdp".

    A kernel, that is an array of two axes or more, is spread over its longest axis that divides;
    vectors and numbers, and what does not divide, are whole on every device.
    """

    def sharding(leaf):
        spec = [None] * len(leaf.shape)
        count = mesh.shape["fsdp"]
        dividing = [(size, axis) for axis, size in enumerate(leaf.shape) if size % count == 0]
        if count > 1 and len(leaf.shape) > 1 and dividing:
            spec[max(dividing)[1]] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Inside a compiled function, the arrays whole on every device.

    Without it XLA may choose to spread what parameters act on, which is larger, instead.
    """
    if mesh.shape["fsdp"] == 1:
        return tree
    context = jax.sharding.get_abstract_mesh()  # under `auto_axes`, the mesh with Auto axes
    return jax.lax.with_sharding_constraint(
        tree, NamedSharding(mesh if context.empty else context, PartitionSpec())
    )


def with_automatic_axes(
    run: Callable[..., jax.Array], arguments: tuple[Any, jax.Array], out_shape: tuple[int, ...]
) -> Callable[..., jax.Array]:
    """A function `run(parameters, x)` that also works where mesh axes are Explicit.

    Inside, these axes are Auto, so that XLA propagates shardings and exchanges halos. The result is
    spread as `x` is over batch, height and width where that divides. Where no axis is Explicit it
    is `run` itself.

    Args:
      run: of parameters and a clip [B, T, H, W, C].
      arguments: what it will be called with.
      out_shape: of its result.
    """
    _, x = arguments
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arguments[::-1])]
    mesh = next((m for m in meshes if AxisType.Explicit in m.axis_types), None)
    if mesh is None:
        return run
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in axes if kind == AxisType.Explicit)
    spec: list[Any] = [None] * len(out_shape)
    if not meshes[0].empty:
        given = jax.typeof(x).sharding.spec
        for axis in (0, 2, 3):
            names = given[axis] if isinstance(given[axis], tuple) else (given[axis],)
            count = math.prod(1 if name is None else mesh.shape[name] for name in names)
            if out_shape[axis] % count == 0:
                spec[axis] = given[axis]
    out_sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.sharding.auto_axes(run, axes=explicit, out_sharding=out_sharding)


def varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Inside `shard_map`, makes the arrays vary over the same mesh axes.

    Hand-written gradients and loops need that.
    """
    axes = [_varying(jax.typeof(a)) for a in arrays]
    union = frozenset().union(*axes)
    return tuple(
        jax.lax.pcast(a, tuple(union - own), to="varying") if union - own else a
        for a, own in zip(arrays, axes, strict=True)
    )


def _varying(array_type) -> frozenset[str]:
    """The mesh axes that an array varies over; releases of JAX call it differently."""
    if hasattr(array_type, "vma"):
        return frozenset(array_type.vma)
    return frozenset(array_type.manual_axis_type.varying)
