"""Clips in parts: groups in time, exact streaming, and tiles in space."""

from __future__ import annotations

from typing import Literal

from odvae_jax.tiling.auto import AutoTiling, choose
from odvae_jax.tiling.spatial import SpatialTiling
from odvae_jax.tiling.streaming import Streaming
from odvae_jax.tiling.temporal import TemporalTiling

__all__ = [
    "AnyTiling",
    "AutoTiling",
    "SpatialTiling",
    "Streaming",
    "TemporalTiling",
    "Tiling",
    "Tilings",
    "choose",
    "in_time_and_space",
]

Tiling = TemporalTiling | Streaming | SpatialTiling
Tilings = Tiling | tuple[Tiling, ...] | None
AnyTiling = Tilings | AutoTiling | Literal["auto"]


def in_time_and_space(
    tiling: Tilings,
) -> tuple[TemporalTiling | Streaming | None, SpatialTiling | None]:
    """Returns the tiling in time and the tiling in space, each of them None if there is none.

    Raises:
      ValueError: if something is no tiling, or two tilings are of one kind.
    """
    given = tiling if isinstance(tiling, tuple) else () if tiling is None else (tiling,)
    space = [t for t in given if isinstance(t, SpatialTiling)]
    time = [t for t in given if isinstance(t, TemporalTiling | Streaming)]
    if len(space) > 1 or len(time) > 1 or len(space) + len(time) < len(given):
        raise ValueError(
            f"tiling={tiling!r}: expected TemporalTiling, Streaming or SpatialTiling, a tuple of "
            'one in time and one in space, or "auto".'
        )
    return (*time, None)[0], (*space, None)[0]
