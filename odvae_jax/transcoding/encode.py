"""Videos to files of latents."""

from __future__ import annotations

import dataclasses
import functools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from odvae_jax.data.video import FrameBlocks, within
from odvae_jax.files import line_about, printable
from odvae_jax.latents import (
    ForeignError,
    LatentsError,
    LatentsFile,
    LatentsInfo,
    LatentsWriter,
    Statistics,
)
from odvae_jax.parameters import Autoencoder
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.transcoding.choosing import choose_tiling
from odvae_jax.transcoding.computation import (
    Computation,
    ModelOnDevices,
    WholeComputation,
    as_clips,
    check_finite,
    computation_of,
    content_of,
)
from odvae_jax.transcoding.digest import described, encoder_digest
from odvae_jax.transcoding.leftovers import remove_leftovers
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.programs import compile_ahead, sizes_of
from odvae_jax.transcoding.run import Conversion, run_jobs
from odvae_jax.transcoding.settings import AlreadyThereError, Outcome, Settings
from odvae_jax.transcoding.videos import count_video_frames, read_video


def encode_files(
    vae: Autoencoder,
    model: str,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    devices: Sequence[jax.Device] | None = None,
    overwrite: bool = False,
    bar: bool = True,
) -> Outcome:
    """Encodes videos into files of latents. Files that are there already are left.

    A video that ends too early, or of which nothing comes, is noted in `Outcome.problems`. What
    could be read of it is kept, and it is encoded again by the next run. Latents that are not
    finite are not kept. A file that another process is writing is left to it.

    Args:
      vae: the model.
      model: what `odvae_jax.from_pretrained` was given for it; the files say so.
      jobs: which video goes to which file.
      settings: how videos are read, computed and stored.
      mesh: the devices that the rows of frames are spread over; None for one device.
      devices: the devices that encode side by side, each another video; None for one.
      overwrite: whether files that are there already are replaced.
      bar: whether a progress bar is shown.

    Raises:
      ValueError: if all files that are there already hold latents of another model, or latents
        that were made otherwise (if only some do, they are problems of their own); if the model
        cannot be tiled as `settings` says.
    """
    settings = choose_tiling(vae, jobs, settings, "encode", mesh=mesh, overwrite=overwrite)
    computation = computation_of(vae, settings.tiling, mesh)
    made = _how_made(computation, settings)
    shared = {
        **made,
        "model": os.path.abspath(model) if os.path.exists(model) else str(model),
        "config": described(vae.config),
        "scaling_factor": vae.config.scaling_factor,
        "time_compression": vae.config.time_compression,
    }
    outcome, statistics = Outcome(), []
    remove_leftovers(jobs)
    todo = (
        list(jobs)
        if overwrite
        else _not_finished(jobs, made, outcome, statistics, settings.read_timeout)
    )

    def check_again(job):
        if not overwrite and (info := _finished(job.target, made, settings.read_timeout)):
            statistics.append(info.statistics)
            raise AlreadyThereError

    def open_file(job, video, *given):
        file = _LatentsOfVideo(job, video, *given)
        try:  # from here on no other process writes the file, so that each is written once
            check_again(job)
        except BaseException:
            file.close()
            raise
        return file

    models = ModelOnDevices(vae)

    def convert(job, device):
        check_again(job)
        ours = dataclasses.replace(computation, vae=models.on(device))
        video = read_video(job, computation.frames_per_block, settings)
        given = (job, video, settings, shared, statistics)
        writer = functools.partial(open_file, *given)
        return Conversion(video, lambda blocks: ours.encode(as_clips(blocks)), writer)

    devices = devices or (None,)
    compile_ahead(computation, models, devices, sizes_of(todo, settings))
    count = functools.partial(count_video_frames, settings=settings)
    how = {"count_frames": count, "readers": settings.readers, "bar": bar}
    how["devices"] = devices
    run_jobs(todo, convert, outcome, **how)
    outcome.statistics = Statistics.total(statistics)
    return outcome


class _LatentsOfVideo:
    """The file of latents of one video.

    Args:
      job: the video and the file.
      video: the frames that are encoded.
      settings: what is stored, and how.
      shared: the fields of `LatentsInfo` that all files of the run have in common.
      statistics: what the file's statistics are added to when it is finished.
    """

    def __init__(
        self,
        job: Job,
        video: FrameBlocks,
        settings: Settings,
        shared: dict[str, Any],
        statistics: list[dict[str, Any]],
    ):
        self._job, self._video, self._content = job, video, settings.content
        self._shared, self._of_all, self._own = shared, statistics, Statistics()
        self._rng = np.random.default_rng([settings.seed, zlib.crc32(os.fsencode(job.name))])
        self._writer = LatentsWriter(job.target, dtype=settings.store, content=settings.content)

    def write(self, part: tuple[np.ndarray, int]) -> int:
        """Adds moments.

        Args:
          part: moments, [1, t, h, w, 2 C], and how many of their frames count.

        Raises:
          NotFiniteError: if some of them are not finite.
        """
        moments = part[0][:, : part[1]]
        check_finite(int(moments.size - np.isfinite(moments).sum()), moments.size, "the latents")
        posterior = DiagonalGaussian.from_moments(moments[0])
        self._own.add(posterior.mean, posterior.logvar)
        stored = content_of(posterior, self._content, self._rng)
        self._writer.write(stored)
        # Frames are counted from those of the latents: the reader is some blocks ahead.
        return len(stored) * self._shared["time_compression"]

    def finish(self) -> tuple[int, str]:
        """Gives the file its name."""
        statistics = self._own.to_dict()
        names = ("frames", "height", "width", "fps", "problem")
        of_video = {name: getattr(self._video, name) for name in names}
        if of_video["problem"]:
            of_video["problem"] = line_about(self._job.source, ValueError(of_video["problem"]))
        source = printable(self._job.source.name)
        self._writer.finish(
            LatentsInfo(source=source, statistics=statistics, **of_video, **self._shared)
        )
        self._of_all.append(statistics)
        return self._video.frames, self._video.problem

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""
        self._writer.close()


def _how_made(computation: Computation | WholeComputation, settings: Settings) -> dict[str, Any]:
    """Returns the fields of `LatentsInfo` that say how latents are made."""
    return {
        "encoder": encoder_digest(computation.vae),
        "content": settings.content,
        "tiling": computation.describe(),
        "prepared": {"short_side": settings.short_side, "size": settings.size},
        "dtype": computation.vae.config.dtype,
        "store": settings.store,
        "seed": settings.seed if settings.content == "sample" else None,
    }


class _OtherwiseError(ValueError):
    """A file that is there holds latents of another model, or latents that were made otherwise."""


def _not_finished(
    jobs: Sequence[Job],
    made: dict[str, Any],
    outcome: Outcome,
    statistics: list[dict[str, Any]],
    timeout: float | None,
) -> list[Job]:
    """Returns the jobs whose file is not there yet, or not whole.

    Counts the files that are there in `outcome` and adds to `statistics` what they say; notes files
    that are there, but are others.

    Raises:
      ValueError: if all files that are there were made otherwise: then the command is at fault, not
        a file.
    """
    todo, otherwise = [], []
    for job in jobs:
        try:
            info = _finished(job.target, made, timeout)
        except Exception as error:
            otherwise += [error] if isinstance(error, _OtherwiseError) else []
            outcome.note(job.source, error)
            continue
        if info is None:
            todo.append(job)
        else:
            statistics.append(info.statistics)
            outcome.skipped += 1
    if otherwise and not outcome.skipped:
        raise otherwise[0]
    return todo


def _info_of(path: Path) -> LatentsInfo | None:
    return LatentsFile(path).info if path.exists() else None


def _finished(target: Path, made: dict[str, Any], timeout: float | None) -> LatentsInfo | None:
    """Returns what a file says if it is there and complete; None if it must be made.

    Raises:
      ValueError: if it holds latents of another model, or latents that were made otherwise, or
        something else than latents; if it is not read within `timeout` seconds.
    """
    try:
        info = within(timeout, printable(target), _info_of, target)
    except ForeignError:
        raise ValueError(
            f"{printable(target)}, its output, is there and holds no latents: choose another "
            "folder, or --overwrite."
        ) from None
    except LatentsError:
        return None  # damaged: made anew
    if info is None:
        return None
    if differing := [name for name, value in made.items() if getattr(info, name) != value]:
        raise _OtherwiseError(
            f"{printable(target)} holds latents that were made otherwise ({', '.join(differing)} "
            "differ): choose another folder, or --overwrite."
        )
    return None if info.problem else info  # the video may be complete by now
