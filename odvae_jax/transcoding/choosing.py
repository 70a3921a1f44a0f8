"""One tiling for all files of a run, by what the device's memory takes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from odvae_jax.baselines.base import Baseline
from odvae_jax.checks import check_continuous, check_untiled
from odvae_jax.config import IMAGE_CHANNELS
from odvae_jax.data.video import within
from odvae_jax.files import printable
from odvae_jax.latents import SUFFIX, LatentsFile, find_latents
from odvae_jax.parameters import Autoencoder
from odvae_jax.sharding import clip_sharding, replicate
from odvae_jax.tiling import AutoTiling, Streaming, Tiling, in_time_and_space
from odvae_jax.tiling.auto import run_largest, whole_clip
from odvae_jax.tiling.needs import Work
from odvae_jax.transcoding.computation import DEFAULT_CHUNK, Computation, override_tiling
from odvae_jax.transcoding.digest import encoder_digest
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.settings import Settings
from odvae_jax.transcoding.videos import count_video_frames, read_video

logger = logging.getLogger(__name__)
_READERS = 8  # files whose size is read at the same time


def choose_tiling(
    vae: Autoencoder,
    jobs: Sequence[Job],
    settings: Settings,
    kind: Literal["encode", "decode", "reconstruct"],
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
) -> Settings:
    """Returns settings whose tiling is chosen, if they leave the choice to `AutoTiling`.

    There is one choice for all files, so that their latents are made alike. It is the largest for
    which the memory suffices for the longest of them and the largest frames, and it is tried once.
    If latents of the same encoder are there already where files are to be encoded to, the choice is
    what they were made with.

    Args:
      vae: the model.
      jobs: all files of the run, also those that other processes do.
      settings: how files are read, computed and written.
      kind: what is done with the files.
      mesh: the devices that the rows of frames are spread over; None for one device.
      overwrite: whether latents that are there already are replaced, and say nothing.

    Raises:
      JaxRuntimeError: if the memory does not suffice for the smallest choice.
      ValueError: if it is not known what memory there is, or the model takes no tiling or has no
        continuous latents.
    """
    check_continuous(vae.config)
    if isinstance(vae, Baseline):
        check_untiled(vae.config, settings.tiling)
    if not isinstance(settings.tiling, AutoTiling):
        return settings
    made = None if kind != "encode" or overwrite else _made_with(vae, jobs, settings)
    if made is None:
        made = _largest(vae, jobs, settings, kind, mesh)
    return dataclasses.replace(settings, tiling=made)


def _made_with(vae, jobs, settings) -> tuple[Tiling, ...] | None:
    """Returns the tilings of the first latents of this encoder at the place that is written to."""
    encoder = None
    for path in _written(jobs):
        try:
            opened = within(settings.read_timeout, printable(path), LatentsFile, path)
            made = override_tiling(opened.info.tiling, None)
            Computation.of(vae, made)
        except Exception:  # what is wrong with it is said where it stands in the way
            continue
        encoder = encoder or encoder_digest(vae)
        if opened.info.encoder == encoder:
            logger.info('tiling="auto": %s, as %s has it', made, printable(path))
            return made
    return None


def _written(jobs) -> Iterator[Path]:
    """Yields the files of latents where the files of a run go, those of other runs too."""
    yield from (job.target for job in jobs if job.target.exists())
    if len(jobs) == 1:  # perhaps to one file, beside which anything may lie
        yield from sorted(jobs[0].target.parent.glob(f"*{SUFFIX}"))
    elif jobs:
        depth = max(len(Path(jobs[0].name).parts), 1)
        with contextlib.suppress(OSError, ValueError):
            yield from find_latents([jobs[0].target, *jobs[0].target.parents][depth], problems={})


def _largest(vae, jobs, settings, kind, mesh) -> tuple[Tiling, ...] | None:
    """Chooses for the longest video and the largest frames, and tries it on blocks of zeros."""
    frames, height, width = _largest_size(vae, jobs, settings, kind)
    if not frames:
        return None  # no file can be read, which is said where they are read
    config, encodes = vae.config, kind == "encode"
    # More than the header promises, so that a few frames more make no group of their own.
    frames = config.clip_size(frames + config.time_compression, 1, 1)[0]
    shape = (1, *config.clip_size(frames, height, width), IMAGE_CHANNELS)
    shape = shape if encodes else config.latent_shape(shape)
    dtype = "uint8" if encodes else "float32"
    sharding = None if mesh is None else clip_sharding(mesh)
    placed = vae if mesh is None else replicate(vae, mesh)
    work = Work(shape, dtype, encodes, uint8=False, sharding=sharding)

    def try_out(tilings):
        made = _of_files(config, tilings, frames)
        computation = Computation.of(placed, made, mesh)
        if kind != "decode":
            video = (1, frames, height, width, IMAGE_CHANNELS)
            blocks = _zeros(video, computation.frames_per_block, np.uint8)
            jax.block_until_ready(list(computation.encode(blocks)))
        if kind != "encode":
            latents = config.latent_shape((1, frames, *config.clip_size(1, height, width)[1:], 3))
            blocks = _zeros(latents, computation.latent_frames_per_block, np.float32)
            jax.block_until_ready(list(computation.decode(blocks, lambda: frames)))
        return made

    # Streaming is exact and as fast with short chunks, which take less memory of the host.
    most = DEFAULT_CHUNK if config.streams else None
    return run_largest(try_out, placed, work, settings.tiling, most=most)


def _of_files(config, tilings, frames) -> tuple[Tiling, ...]:
    """Returns tilings with one in time, since files are read block by block."""
    time, space = in_time_and_space(tilings)
    if time is None:
        time = Streaming(DEFAULT_CHUNK) if config.streams else whole_clip(config, frames)
    return (time,) if space is None else (time, space)


def _zeros(shape, step, dtype) -> Iterator[np.ndarray]:
    """Yields the first two blocks of a clip of zeros, which need most, or as many as it has."""
    first = min(step + 1, shape[1])
    for length in filter(None, (first, min(step, shape[1] - first))):
        yield np.zeros((shape[0], length, *shape[2:]), dtype)


def _largest_size(vae, jobs, settings, kind) -> tuple[int, int, int]:
    """Returns the most frames of all files, and the sides of the largest frames; 0 for no file."""

    def size(job):
        try:
            if kind == "decode":
                opened = within(
                    settings.read_timeout, printable(job.source), LatentsFile, job.source
                )
                return opened.info.frames, opened.info.height, opened.info.width
            if settings.size is not None:
                sides = settings.size, settings.size
            else:
                sides = next(iter(read_video(job, 1, settings))).shape[1:3]
            return count_video_frames(job, settings) or 1, *sides
        except Exception:  # is said when the file's turn comes
            return 0, 0, 0

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        sizes = list(pool.map(size, jobs))
    longest = max((frames for frames, _, _ in sizes), default=0)
    return longest, *max((sides for _, *sides in sizes), key=np.prod, default=(0, 0))
