"""Video files to files of latents and back, of any length and in constant memory.

`plan_jobs` says which file goes where; `encode_files`, `decode_files` and `reconstruct_files` do
it. All three have one shape: blocks are read, the device computes on them, and a file is written.
`encode_dataset` makes a dataset of latents out of any source.
"""

from odvae_jax.latents.buckets import parse_buckets
from odvae_jax.latents.entries import Cut
from odvae_jax.transcoding.choosing import choose_tiling
from odvae_jax.transcoding.dataset import DatasetSettings, encode_dataset
from odvae_jax.transcoding.decode import decode_files
from odvae_jax.transcoding.digest import encoder_digest
from odvae_jax.transcoding.encode import encode_files
from odvae_jax.transcoding.plan import Job, plan_jobs, plan_records
from odvae_jax.transcoding.reconstruct import reconstruct_files
from odvae_jax.transcoding.settings import Outcome, Settings

__all__ = [
    "Cut",
    "DatasetSettings",
    "Job",
    "Outcome",
    "Settings",
    "choose_tiling",
    "decode_files",
    "encode_dataset",
    "encode_files",
    "encoder_digest",
    "parse_buckets",
    "plan_jobs",
    "plan_records",
    "reconstruct_files",
]
