"""The mesh of devices and the names of its axes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "height")
"""The names of the mesh axes: clips go over the first two, the rows of frames over the third."""


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    height: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """Makes a mesh of devices with the axes "data", "fsdp" and "height".

    By default it holds all devices of all processes.

    Args:
      data: number of devices over which clips are spread. -1 takes all devices that the other two
        axes leave.
      fsdp: number of devices over which clips are spread too, and over which the parameters, their
        averages and the optimizer's moments are split.
      height: number of devices over which the rows of each clip are spread.
      devices: the devices to use; all of them if None.
      axis_type: the type of all three axes.

    Raises:
      ValueError: if a size is no positive integer, or if the sizes do not multiply to the number of
        devices. The message says which product is needed.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    for name, size, least in (("data", data, -1), ("fsdp", fsdp, 1), ("height", height, 1)):
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise ValueError(f"{name}={size!r:.100}: expected a whole number of devices.")
        if size < least or size == 0:
            raise ValueError(f"{name}={size} must be at least 1.")
    if data == -1:
        data = max(count // (fsdp * height), 1)
    if data * fsdp * height != count:
        raise ValueError(
            f"a mesh of data={data}, fsdp={fsdp} and height={height} needs {data * fsdp * height} "
            f"devices, and there are {count}: choose sizes whose product is {count}."
        )
    shape = (int(data), int(fsdp), int(height))
    return jax.make_mesh(shape, AXES, axis_types=(axis_type,) * 3, devices=devices)
