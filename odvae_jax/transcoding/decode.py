"""Files of latents to videos."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from odvae_jax.autoencoder import ODVAE
from odvae_jax.data.latents import LatentsError, LatentsFile, LatentsInfo
from odvae_jax.data.video import ThreadedVideoWriter
from odvae_jax.pixels import VideoSize
from odvae_jax.transcoding.computation import Computation, as_clips, override_tiling
from odvae_jax.transcoding.digest import encoder_digest
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.run import Conversion, run_jobs
from odvae_jax.transcoding.settings import Outcome, Settings
from odvae_jax.transcoding.videos import without_written


def decode_files(
    vae: ODVAE,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    bar: bool = True,
) -> Outcome:
    """Decodes files of latents into mp4 videos, of the size that the encoded videos had.

    Videos that are there already are left. Files that are damaged, or that hold another model's
    latents, are noted in `Outcome.problems`; so is what was wrong with the encoded video.

    Args:
      vae: the model.
      jobs: which file of latents goes to which video.
      settings: how latents are computed and videos are written.
      mesh: the devices that the rows of frames are spread over; None for one device.
      overwrite: whether videos that are there already are replaced.
      bar: whether a progress bar is shown.

    Raises:
      ValueError: if the model cannot be tiled as `settings` or a file says.
      OSError: if a video cannot be written.
    """
    outcome = Outcome()
    todo = without_written(jobs, overwrite, outcome)
    infos = _usable(jobs, encoder_digest(vae), outcome)
    computations = {
        job: Computation.of(vae, override_tiling(info.tiling, settings.tiling), mesh)
        for job, info in infos.items()
    }

    def convert(job):
        computation = computations[job]
        blocks = LatentsFile(job.source).blocks(computation.latent_frames_per_block)
        writer = functools.partial(_VideoOfLatents, job.target, infos[job], settings.crf)
        return Conversion(blocks, lambda blocks: computation.decode(as_clips(blocks)), writer)

    run_jobs(
        [job for job in todo if job in infos],
        convert,
        outcome,
        count_frames=lambda job: infos[job].frames,
        readers=settings.readers,
        bar=bar,
    )
    return outcome


class _VideoOfLatents:
    """The video that one file of latents is decoded to.

    Args:
      target: the path of the video.
      info: what the file of latents says of itself.
      crf: the quality of H.264.
    """

    def __init__(self, target: Path, info: LatentsInfo, crf: int):
        self._info, self._left = info, info.frames
        self._size = VideoSize(info.frames, info.height, info.width)
        self._writer = ThreadedVideoWriter(target, info.fps, crf)

    def write(self, frames: np.ndarray) -> int:
        """Adds frames, uint8 [1, n, H, W, 3]; rows, columns and frames that were padded are cut."""
        frames = self._size.cut(frames)[0, : self._left]
        self._left -= len(frames)
        if len(frames):
            self._writer.write(frames)
        return len(frames)

    def finish(self) -> tuple[int, str]:
        """Gives the video its name."""
        self._writer.finish()
        return self._info.frames, self._info.problem

    def close(self) -> None:
        """Removes what was written, unless the video was finished."""
        self._writer.close()


def _usable(jobs: Sequence[Job], encoder: str, outcome: Outcome) -> dict[Job, LatentsInfo]:
    """Returns what the files of latents that can be decoded say; notes the others' problems."""
    infos = {}
    for job in jobs:
        try:
            info = LatentsFile(job.source).info
            if info.encoder != encoder:
                raise LatentsError(
                    f"{job.source} holds latents of another model: of {info.model} "
                    f"({info.config['structure']}, width {info.config['width']}, encoder "
                    f"{info.encoder}); the encoder of this one is {encoder}."
                )
        except LatentsError as error:
            outcome.problems[str(job.source)] = str(error)
        else:
            infos[job] = info
            if info.problem:
                outcome.problems[str(job.source)] = info.problem
    return infos
