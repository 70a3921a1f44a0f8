"""Latents on disk: one file per video, or datasets. Nothing here needs JAX or a model."""

from odvae_jax.latents.batches import LatentBatches
from odvae_jax.latents.dataset import LatentDataset
from odvae_jax.latents.files import (
    SUFFIX,
    ForeignError,
    LatentsFile,
    LatentsWriter,
    find_latents,
)
from odvae_jax.latents.scale import Scale
from odvae_jax.latents.schema import CONTENTS, FORMAT, LatentsError, LatentsInfo
from odvae_jax.latents.statistics import Statistics

__all__ = [
    "CONTENTS",
    "FORMAT",
    "SUFFIX",
    "ForeignError",
    "LatentBatches",
    "LatentDataset",
    "LatentsError",
    "LatentsFile",
    "LatentsInfo",
    "LatentsWriter",
    "Scale",
    "Statistics",
    "find_latents",
]
