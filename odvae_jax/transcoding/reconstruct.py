"""Videos beside what the model makes of them."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from odvae_jax.data.video import FrameBlocks, ThreadedVideoWriter
from odvae_jax.parameters import Autoencoder
from odvae_jax.transcoding.choosing import choose_tiling
from odvae_jax.transcoding.computation import (
    ModelOnDevices,
    as_clips,
    check_finite,
    computation_of,
)
from odvae_jax.transcoding.leftovers import remove_leftovers
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.run import Conversion, run_jobs
from odvae_jax.transcoding.settings import AlreadyThereError, Outcome, Settings
from odvae_jax.transcoding.videos import (
    count_video_frames,
    is_whole_video,
    open_video,
    read_video,
    without_written,
)


def reconstruct_files(
    vae: Autoencoder,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    devices: Sequence[jax.Device] | None = None,
    overwrite: bool = False,
    bar: bool = True,
) -> Outcome:
    """Writes videos as they come out of the encoder and the decoder, beside the originals, in mp4.

    Latents are the posterior's mean. PSNR is computed from 8-bit frames. Files that are there
    already are left. A video that ends too early, or of which nothing comes, is noted in
    `Outcome.problems`; what could be read of it is kept. Reconstructions that are not finite are
    not kept. A file that another process is writing is left to it.

    Args:
      vae: the model.
      jobs: which video goes to which file.
      settings: how videos are read, computed and written.
      mesh: the devices that the rows of frames are spread over; None for one device.
      devices: the devices that work side by side, each on another file; None for one.
      overwrite: whether files that are there already are replaced.
      bar: whether a progress bar is shown.

    Raises:
      ValueError: if the model cannot be tiled as `settings` says.
    """
    settings = choose_tiling(vae, jobs, settings, "reconstruct", mesh=mesh)
    computation = computation_of(vae, settings.tiling, mesh)
    outcome = Outcome()
    remove_leftovers(jobs)
    todo = without_written(jobs, overwrite, outcome)

    models = ModelOnDevices(vae)

    def convert(job, device):
        if not overwrite and is_whole_video(job.target):
            raise AlreadyThereError
        ours = dataclasses.replace(computation, vae=models.on(device))
        video = read_video(job, computation.frames_per_block, settings)
        originals: collections.deque[np.ndarray] = collections.deque()

        def compute(blocks):
            encoded = ours.encode(as_clips(_kept(blocks, originals)))
            channels = vae.config.latent_channels
            latents = (_mean(moments, count, channels) for moments, count in encoded)
            return ours.decode(latents, lambda: video.frames)

        given = (job, video, originals, settings, outcome, overwrite)
        comparison = functools.partial(_Comparison, *given)
        return Conversion(video, compute, comparison)

    count = functools.partial(count_video_frames, settings=settings)
    how = {"count_frames": count, "readers": settings.readers, "bar": bar}
    how["devices"] = devices or (None,)
    run_jobs(todo, convert, outcome, **how)
    return outcome


class _Comparison:
    """The file that shows one video beside its reconstruction.

    Args:
      job: the video and the file.
      video: the frames that are reconstructed.
      originals: the blocks of the video that were not compared yet.
      settings: how the file is written.
      outcome: where the PSNR is noted when the file is finished.
      overwrite: whether a file that is there by now is replaced.
    """

    def __init__(
        self,
        job: Job,
        video: FrameBlocks,
        originals: collections.deque,
        settings: Settings,
        outcome: Outcome,
        overwrite: bool,
    ):
        self._job, self._video, self._originals = job, video, originals
        self._settings, self._outcome, self._overwrite = settings, outcome, overwrite
        self._writer: ThreadedVideoWriter | None = None
        self._decibels: list[float] = []

    def write(self, part: tuple[np.ndarray, np.ndarray]) -> int:
        """Adds reconstructed frames, uint8 [1, n, H, W, 3]; what was padded is cut.

        Args:
          part: the frames, and the number of values that were not finite.

        Raises:
          NotFiniteError: if there are such values.
        """
        check_finite(int(part[1]), part[0].size, "the reconstruction")
        frames, before = part[0][0], len(self._decibels)
        if self._writer is None:  # frames per second are known once the video has been read
            self._writer = open_video(self._job, self._video.fps, self._settings, self._overwrite)
        # Frames come back in other numbers than they went in; those left over are padding.
        while len(frames) and self._originals:
            original = self._originals[0][: len(frames)]
            height, width = original.shape[1:3]
            ours, frames = frames[: len(original), :height, :width], frames[len(original) :]
            self._originals[0] = self._originals[0][len(original) :]
            if not len(self._originals[0]):
                self._originals.popleft()
            self._decibels += map(_psnr, original, ours)
            alone = self._settings.alone
            self._writer.write(ours if alone else np.concatenate([original, ours], axis=2))
        return len(self._decibels) - before

    def finish(self) -> tuple[int, str]:
        """Gives the file its name."""
        self._writer.finish()
        self._outcome.psnr[str(self._job.source)] = float(np.mean(self._decibels))
        return self._video.frames, self._video.problem

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""
        if self._writer is not None:
            self._writer.close()


def _kept(blocks: Iterable[np.ndarray], originals: collections.deque) -> Iterator[np.ndarray]:
    """Yields the blocks, and keeps each until its reconstruction is there."""
    for block in blocks:
        originals.append(block)
        yield block


@functools.partial(jax.jit, static_argnames=("count", "channels"))
def _mean(moments, count, channels):
    return moments[:, :count, ..., :channels]


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the PSNR of two frames, uint8 [H, W, 3], in dB; 100 for equal ones."""
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2) / 255**2
    return 100.0 if error < 1e-10 else -10 * float(np.log10(error))
