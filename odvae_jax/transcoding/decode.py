"""Files of latents to videos."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from odvae_jax.data.video.limits import each_within, within
from odvae_jax.files import printable
from odvae_jax.latents import LatentsError, LatentsFile, LatentsInfo
from odvae_jax.latents.chosen import RecordLatents, open_latents
from odvae_jax.parameters import Autoencoder
from odvae_jax.pixels import VideoSize
from odvae_jax.transcoding.choosing import choose_tiling
from odvae_jax.transcoding.computation import (
    ModelOnDevices,
    as_clips,
    check_finite,
    computation_of,
    override_tiling,
)
from odvae_jax.transcoding.digest import described, encoder_digest, encoder_fields
from odvae_jax.transcoding.leftovers import remove_leftovers
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.run import Conversion, run_jobs
from odvae_jax.transcoding.settings import AlreadyThereError, NotFiniteError, Outcome, Settings
from odvae_jax.transcoding.videos import is_whole_video, open_video


def decode_files(
    vae: Autoencoder,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    devices: Sequence[jax.Device] | None = None,
    overwrite: bool = False,
    bar: bool = True,
) -> Outcome:
    """Decodes files of latents into mp4 videos, of the size that the encoded videos had.

    Videos that are there already are left. Files that are damaged, that say of themselves what
    cannot be true, or that hold another model's latents, are noted in `Outcome.problems`; so is
    what was wrong with the encoded video. A video that another process is writing is left to it.

    Args:
      vae: the model.
      jobs: which file of latents goes to which video.
      settings: how latents are computed and videos are written.
      mesh: the devices that the rows of frames are spread over; None for one device.
      devices: the devices that work side by side, each on another file; None for one.
      overwrite: whether videos that are there already are replaced.
      bar: whether a progress bar is shown.

    Raises:
      ValueError: if the model cannot be tiled as `settings` says.
    """
    settings = choose_tiling(vae, jobs, settings, "decode", mesh=mesh)
    outcome = Outcome()
    if settings.tiling is not None:
        computation_of(vae, settings.tiling, mesh)  # what is wrong with it is no file's problem
    remove_leftovers(jobs)
    encoder = encoder_digest(vae)

    models = ModelOnDevices(vae)

    def convert(job, device):
        file = open_decodable(job.source, vae, encoder, settings)
        if not overwrite and is_whole_video(job.target):
            raise AlreadyThereError(file.info.problem)
        tiling = override_tiling(file.info.tiling, settings.tiling)
        computation = computation_of(models.on(device), tiling, mesh)
        blocks = _finite(file, computation.latent_frames_per_block, settings)
        writer = functools.partial(_VideoOfLatents, job, file.info, settings, overwrite)

        def compute(blocks):
            return computation.decode(as_clips(blocks), lambda: file.info.frames)

        return Conversion(blocks, compute, writer)

    def count_frames(job):
        return open_decodable(job.source, vae, encoder, settings).info.frames

    how = {"count_frames": count_frames, "readers": settings.readers, "bar": bar}
    how["devices"] = devices or (None,)
    run_jobs(jobs, convert, outcome, **how)
    return outcome


def open_decodable(
    path: os.PathLike, vae: Autoencoder, encoder: str, settings: Settings
) -> LatentsFile | RecordLatents:
    """Opens a file of latents, or a record of a dataset, that a model can decode.

    Args:
      path: the path of the file, or the record.
      vae: the model.
      encoder: the digest of the model's encoder.
      settings: whether the file is compared with its digests, the limit for reading, and tilings
        instead of the file's.

    Raises:
      LatentsError: if the file is damaged, or holds latents of another model.
      TimeLimitError: if it is not read in time.
      ValueError: if the model cannot be tiled as the file says.
    """
    opened = functools.partial(open_latents, path, verify=settings.verify)
    file = within(settings.read_timeout, printable(path), opened)
    info, config = file.info, described(vae.config)
    row = json.loads(json.dumps(encoder_fields(vae.config)))
    if info.encoder != encoder or {name: info.config.get(name) for name in row} != row:
        raise LatentsError(
            f"{printable(path)} holds latents of another model: of {info.model} "
            f"({_name(info.config)}, encoder {info.encoder}); this one is {_name(config)}, encoder "
            f"{encoder}."
        )
    type(vae.config).from_dict({n: v for n, v in info.config.items() if n != "model"})
    computation_of(vae, override_tiling(info.tiling, settings.tiling))
    return file


def _name(config: dict[str, Any]) -> str:
    structure = config.get("model") or config["structure"]
    structure = structure if isinstance(structure, str) else "custom"
    return f"{structure}, width {config['width']}, {config['latent_channels']} channels"


def _finite(
    file: LatentsFile | RecordLatents, length: int, settings: Settings
) -> Iterator[np.ndarray]:
    """Yields blocks of stored latents.

    Raises:
      NotFiniteError: if some of them are not finite.
      TimeLimitError: if a block is not read in time.
    """
    blocks = file.blocks(length)
    for block in each_within(settings.read_timeout, printable(file.path), blocks):
        if bad := block.size - int(np.isfinite(block).sum()):
            raise NotFiniteError(f"{bad} of {block.size} stored values are not finite.")
        yield block


class _VideoOfLatents:
    """The video that one file of latents is decoded to.

    Args:
      job: the file of latents and the video.
      info: what the file of latents says of itself.
      settings: how the video is written.
      overwrite: whether a video that is there by now is replaced.
    """

    def __init__(self, job: Job, info: LatentsInfo, settings: Settings, overwrite: bool):
        self._info, self._left = info, info.frames
        self._size = VideoSize(info.frames, info.height, info.width)
        try:
            self._writer = open_video(job, info.fps, settings, overwrite)
        except AlreadyThereError:
            raise AlreadyThereError(info.problem) from None

    def write(self, part: tuple[np.ndarray, np.ndarray]) -> int:
        """Adds frames, uint8 [1, n, H, W, 3]; rows, columns and frames that were padded are cut.

        Args:
          part: the frames, and the number of values that were not finite.

        Raises:
          NotFiniteError: if there are such values.
        """
        frames, bad = part
        check_finite(int(bad), frames.size, "the decoded frames")
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
