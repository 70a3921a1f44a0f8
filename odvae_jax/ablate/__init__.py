"""Variants, initialisations and tiling compared in one call (Fig. 4, Table 4), by `odvae ablate`.

Every variant is trained from the same 2D model by tail initialisation, and one variant by each
initialisation, each with the same data and seeds. Then they are measured on the held-out ends of
the videos, whole and tiled. The same call continues what was interrupted, run by run and step by
step.
"""

from odvae_jax.ablate.plan import Arm, Run, arms, default_ablation, runs
from odvae_jax.ablate.run import ablate, ablate_side_by_side, train_only

__all__ = [
    "Arm",
    "Run",
    "ablate",
    "ablate_side_by_side",
    "arms",
    "default_ablation",
    "runs",
    "train_only",
]
