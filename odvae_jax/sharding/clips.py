"""Batches of clips spread over the devices of a mesh."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from odvae_jax.sharding.mesh import AXES
from odvae_jax.sharding.placement import place


def clip_shards(mesh: Mesh) -> int:
    """Returns the number of parts that a batch of clips is split into: "data" times "fsdp"."""
    return mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)


def clip_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of clips [B, T, H, W, C].

    The clips B are spread over the mesh axes "data" and "fsdp", the rows H over "height". Axes that
    the mesh does not have are left out.
    """
    clips = tuple(name for name in ("data", "fsdp") if name in mesh.shape)
    rows = "height" if "height" in mesh.shape else None
    return NamedSharding(mesh, PartitionSpec(clips or None, None, rows))


def spread_clips(x: Any, mesh: Mesh) -> jax.Array:
    """Spreads clips [B, T, H, W, C] over a mesh as `clip_sharding` says.

    Inside a compiled function the clips are constrained to lie so.
    """
    return place(x, clip_sharding(mesh))


def check_spread(name: str, shape: tuple[int, ...], mesh: Mesh, unit: int) -> None:
    """Checks that clips of a shape can be spread over a mesh.

    Args:
      name: what the error message calls the clips.
      shape: the shape of the clips, [B, T, H, W, C].
      mesh: a mesh with some of the axes "data", "fsdp" and "height".
      unit: the number of rows that make one row of latents: 8 for video, 1 for latents.

    Raises:
      ValueError: if the mesh has other axes, or if clips or rows do not divide over it. The message
        names the nearest number that does.
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


def local_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> list[int]:
    """Returns the sorted indices along the first axis that the devices of this process hold.

    For a batch of clips these are the clips that this process must read.
    """
    held = sharding.addressable_devices_indices_map(shape).values()
    return sorted({row for index in held for row in range(*index[0].indices(shape[0]))})
