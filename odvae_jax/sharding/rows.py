"""How few rows of a frame a device may hold."""

from __future__ import annotations

from typing import Any

from jax.sharding import AxisType, NamedSharding

LEAST_ROWS = 2
"""The least number of rows of latents per device, on a mesh that spreads more than rows.

XLA's partitioner computes wrong values for a convolution whose output has a single row per device
there.
"""


def check_rows(name: str, shape: tuple[int, ...], sharding: Any, compression: int) -> None:
    """Checks that the rows of an array are not spread over too many devices.

    Args:
      name: what the error message calls the array.
      shape: the shape of the array, [B, T, H, W, C].
      sharding: the sharding of the array, from `sharding_of`. Only a NamedSharding can be judged;
        all others pass.
      compression: the number of rows that make one row of latents: 8 for video, 1 for latents.

    Raises:
      ValueError: if a device holds fewer rows than `LEAST_ROWS` rows of latents. The message says
        over how many devices the rows may be spread.
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
            f"{LEAST_ROWS * compression} are needed: spread the rows over fewer devices, "
            f"{most} at most."
        )
