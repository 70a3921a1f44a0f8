"""How arrays are spread over devices.

No layer holds a mesh. Arrays are placed where a program begins, and XLA decides how everything
inside is partitioned, except for operations that say it themselves (`partitioned.py`).
"""

from odvae_jax.sharding.clips import (
    check_spread,
    clip_sharding,
    clip_shards,
    local_rows,
    spread_clips,
)
from odvae_jax.sharding.explicit_axes import mesh_with_axes, with_automatic_axes, with_axes
from odvae_jax.sharding.manual import varying_alike
from odvae_jax.sharding.mesh import AXES, make_mesh
from odvae_jax.sharding.parameters import gathered, state_shardings
from odvae_jax.sharding.placement import replicate, replicated, sharding_of
from odvae_jax.sharding.rows import LEAST_ROWS, check_rows

__all__ = [
    "AXES",
    "LEAST_ROWS",
    "check_rows",
    "check_spread",
    "clip_sharding",
    "clip_shards",
    "gathered",
    "local_rows",
    "make_mesh",
    "mesh_with_axes",
    "replicate",
    "replicated",
    "sharding_of",
    "spread_clips",
    "state_shardings",
    "varying_alike",
    "with_automatic_axes",
    "with_axes",
]
