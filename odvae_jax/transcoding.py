"""Video files to files of latents and back, of any length and in constant memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import ENCODER, digest
from odvae_jax.checks import check_streams
from odvae_jax.data.latents import (
    SUFFIX,
    LatentsError,
    LatentsFile,
    LatentsInfo,
    LatentsWriter,
    Statistics,
)
from odvae_jax.data.video import EXTENSIONS, FrameBlocks, VideoError, VideoReader
from odvae_jax.parameters import named_parameters
from odvae_jax.pipeline import Job, Progress, VideoInThread, run_jobs
from odvae_jax.pixels import VideoSize
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.tiling import SpatialTiling, Streaming, TemporalTiling, Tiling, in_time_and_space
from odvae_jax.tiling.from_host import decode_blocks, encode_blocks

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How files are read, computed and written.

    Attributes:
      tiling: in time, and perhaps in space; None takes `Streaming(32)` for models that can be
        streamed, `TemporalTiling(33)` for others; of latents what they were made with.
      short_side: scales videos so that the shorter side has so many pixels.
      size: cuts the centre of so many rows and columns.
      content: of files of latents, one of `latents.CONTENTS`.
      store: dtype of latents in files.
      seed: of samples.
      crf: quality of H.264, 0 to 51, lower is better.
      alone: writes reconstructions alone, not beside the originals.
      readers: files that are read at the same time.
      threads: that scale the frames of one file.
    """

    tiling: tuple[Tiling, ...] | None = None
    short_side: int | None = None
    size: int | None = None
    content: str = "mean"
    store: str = "float32"
    seed: int = 0
    crf: int = 16
    alone: bool = False
    readers: int = 2
    threads: int = 2


@dataclasses.dataclass
class Outcome(Progress):
    """What came of a run.

    Attributes:
      statistics: of the latents, those that were there already included.
      psnr: of every reconstruction, a mean over its frames, in dB.
    """

    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    psnr: dict[str, float] = dataclasses.field(default_factory=dict)


def plan_jobs(
    inputs: Sequence[str | Path],
    output: str | Path,
    suffix: str,
    find: Callable[[Path], Sequence[str | Path]],
    *,
    skip_output: bool = False,
) -> list[Job]:
    """What is read and where it goes.

    One file goes to a file if `output` has the suffix; all else to the folder `output`, a folder's
    files keeping their places in it. Where two would get one name they keep their own suffix too.

    Args:
      inputs: files and folders.
      output: as above.
      suffix: of the files written, such as ".mp4".
      find: the files below a folder, or the one file.
      skip_output: leaves out what lies below `output` inside an input, for what is written is of
        the kind that is read; the log says how many.

    Raises:
      FileNotFoundError, ValueError: as `find`; ValueError for several inputs and one output file,
        for an output file of another kind, and where inputs would be written over.
    """
    output = Path(output)
    if output.suffix in {*EXTENSIONS, SUFFIX} - {suffix} and not output.is_dir():
        raise ValueError(f"{output} is no {suffix} file, which is what is written, and no folder.")
    if output.is_file() and output.suffix != suffix:
        raise ValueError(f"{output} is a file; expected a folder to write to.")
    found = []
    for root in map(Path, inputs):
        files = list(map(Path, find(root)))
        if skip_output and root.is_dir() and output.resolve() != root.resolve():
            files = _without_output(files, output)
        places = [f.relative_to(root) if root.is_dir() else Path(f.name) for f in files]
        found += zip(files, places, strict=True)
    sources = {file.resolve() for file, _ in found}
    if output.suffix == suffix and not output.is_dir():
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} files cannot go into one, {output}: name a folder instead."
            )
        jobs = [Job(found[0][0], output, output.name)]
    else:
        names = collections.Counter(place.with_suffix(suffix) for _, place in found)
        jobs = []
        for file, place in found:
            short, long = place.with_suffix(suffix), place.with_name(place.name + suffix)
            name = short if names[short] == 1 else long
            jobs.append(Job(file, output / name, name.as_posix()))
    if same := [str(job.target) for job in jobs if job.target.resolve() in sources]:
        raise ValueError(f"{same[:4]} would be written over: choose another place to write to.")
    targets = collections.Counter(job.target for job in jobs)
    if doubled := [str(target) for target, count in targets.items() if count > 1]:
        raise ValueError(f"several inputs would go to {doubled[:4]}; encode the folders apart.")
    return jobs


def _without_output(files, output):
    """Without what an earlier call wrote below an input."""
    ours = output.resolve()
    kept = [f for f in files if ours not in (f.resolve(), *f.resolve().parents)]
    if not kept:
        raise ValueError(f"there are no videos but those in {output}, which is to be written.")
    if len(kept) < len(files):
        logger.warning(
            "%d videos in %s are left out: they are taken for what was written there before",
            len(files) - len(kept),
            output,
        )
    return kept


def encoder_digest(vae: ODVAE) -> str:
    """Of all that decides what latents mean: the encoder's parameters and switches.

    A decoder that was trained on with its encoder frozen decodes the same latents.
    """
    config = vae.config.to_dict()
    fields = {n: config[n] for n in ("structure", "width", "latent_channels", "groups", "norm")}
    parameters = {
        name: np.asarray(value, np.float32)
        for name, value in named_parameters(vae).items()
        if name.startswith(ENCODER)
    }
    return digest(fields, parameters)


def encode_files(
    vae: ODVAE,
    model: str,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    bar: bool = True,
) -> Outcome:
    """Encodes videos into files of latents; those that are there already are left.

    A video that ends in the middle, or cannot be read, is noted in `Outcome.problems`; what could
    be read of it is kept.

    Args:
      vae: the model.
      model: where it came from, for `ODVAE.from_pretrained`.
      jobs: what goes where.
      settings: how.
      mesh: to spread rows over devices.
      overwrite: replaces files that are there already.
      bar: shows one.

    Raises:
      ValueError: if a target holds latents of another model, or made otherwise; for a tiling that
        the model cannot do.
    """
    task = _Encode(vae, model, settings, mesh)
    outcome = Outcome()
    todo = [job for job in jobs if overwrite or not task.is_done(job)]
    outcome.skipped = len(jobs) - len(todo)
    run_jobs(task, todo, outcome, readers=settings.readers, bar=bar)
    outcome.statistics = Statistics.total(task.statistics)
    return outcome


def decode_files(
    vae: ODVAE,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    bar: bool = True,
) -> Outcome:
    """Decodes files of latents into mp4, of the size that the videos had.

    Arguments are those of `encode_files`. Files that are damaged, or hold another model's latents,
    are noted in `Outcome.problems`.
    """
    outcome, ours, infos = Outcome(), encoder_digest(vae), {}
    todo = _not_there(jobs, overwrite, outcome)
    for job in jobs:
        try:
            info = LatentsFile(job.source).info
            _check_encoder(job.source, info, ours)
        except LatentsError as error:
            outcome.problems[str(job.source)] = str(error)
        else:
            infos[job] = info
            if info.problem:
                outcome.problems[str(job.source)] = info.problem
    task = _Decode(vae, infos, settings, mesh)
    run_jobs(task, [j for j in todo if j in infos], outcome, readers=settings.readers, bar=bar)
    return outcome


def reconstruct_files(
    vae: ODVAE,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    bar: bool = True,
) -> Outcome:
    """Writes videos as they come out of encoder and decoder, beside the originals, in mp4.

    Arguments and errors are those of `encode_files`. PSNR is of 8-bit frames.
    """
    outcome = Outcome()
    task = _Reconstruct(vae, settings, mesh, outcome.psnr)
    todo = _not_there(jobs, overwrite, outcome)
    run_jobs(task, todo, outcome, readers=settings.readers, bar=bar)
    return outcome


class _OfVideos:
    """What encoding and reconstructing share: they read videos."""

    def __init__(self, vae: ODVAE, settings: Settings, mesh: Mesh | None):
        self.vae, self.settings = vae, settings
        self.tilings = _checked_tiling(vae, settings.tiling)
        self.time, self.space = in_time_and_space(self.tilings)
        self.run = {"time": self.time, "space": self.space, "mesh": mesh}

    def read(self, job: Job) -> FrameBlocks:
        names = ("short_side", "size", "threads")
        how = {name: getattr(self.settings, name) for name in names}
        return FrameBlocks(job.source, self.time.step, **how)

    def total_frames(self, job: Job) -> int | None:
        try:
            with VideoReader(str(job.source)) as video:
                return max(round((video.end - video.start) * video.fps), 1)
        except VideoError:
            return None


class _Encode(_OfVideos):
    """Videos to files of latents; `statistics` are those of every file."""

    def __init__(self, vae, model, settings, mesh):
        super().__init__(vae, settings, mesh)
        self.statistics: list[dict[str, Any]] = []
        prepared = {"short_side": settings.short_side, "size": settings.size}
        self.made = {
            "encoder": encoder_digest(vae),
            "content": settings.content,
            "tiling": _described(self.tilings),
            "prepared": prepared,
            "dtype": vae.config.dtype,
            "store": settings.store,
            "seed": settings.seed if settings.content == "sample" else None,
        }
        self.of_model = {
            "model": os.path.abspath(model) if os.path.exists(model) else str(model),
            "config": vae.config.to_dict(),
            "scaling_factor": vae.config.scaling_factor,
        }

    def is_done(self, job: Job) -> bool:
        """Whether the file is there already, and whole; if so its latents are counted in.

        Raises:
          ValueError: if it is another model's, or made otherwise.
        """
        if not job.target.exists():
            return False
        try:
            info = LatentsFile(job.target).info
        except LatentsError:
            return False  # damaged: made anew
        if differing := [n for n, value in self.made.items() if getattr(info, n) != value]:
            raise ValueError(
                f"{job.target} holds latents that were made otherwise ({', '.join(differing)} "
                "differ): choose another folder, or --overwrite."
            )
        if info.problem:
            return False  # the video may be whole by now
        self.statistics.append(info.statistics)
        return True

    def begin(self, job: Job, blocks: FrameBlocks) -> _Encoding:
        return _Encoding(self, job, blocks)


class _Encoding:
    """One video to its file of latents."""

    def __init__(self, task: _Encode, job: Job, blocks: FrameBlocks):
        settings = task.settings
        self.task, self.job, self.blocks = task, job, blocks
        self.writer = LatentsWriter(job.target, dtype=settings.store, content=settings.content)
        self.rng = np.random.default_rng([settings.seed, zlib.crc32(job.name.encode())])
        self.statistics = Statistics()

    def parts(self, blocks):
        return encode_blocks(self.task.vae, _clips(blocks), **self.task.run)

    def add(self, moments) -> int:
        posterior = DiagonalGaussian.from_moments(moments[0])
        self.statistics.add(posterior.mean, posterior.logvar)
        stored, content = posterior.mean, self.task.settings.content
        if content == "moments":
            stored = np.concatenate([posterior.mean, posterior.logvar], axis=-1)
        elif content == "sample":
            noise = self.rng.standard_normal(stored.shape, np.float32)
            stored = stored + np.exp(0.5 * posterior.logvar) * noise
        self.writer.write(stored)
        return len(stored) * self.task.vae.config.time_compression

    def finish(self) -> None:
        statistics = self.statistics.to_dict()
        names = ("frames", "height", "width", "fps", "problem")
        info = LatentsInfo(
            source=self.job.source.name,
            statistics=statistics,
            **{name: getattr(self.blocks, name) for name in names},
            **self.task.made,
            **self.task.of_model,
        )
        self.writer.finish(info)
        self.task.statistics.append(statistics)

    def close(self) -> None:
        self.writer.close()


class _Reconstruct(_OfVideos):
    """Videos to videos; `psnr` is filled in."""

    def __init__(self, vae, settings, mesh, psnr):
        super().__init__(vae, settings, mesh)
        self.psnr = psnr

    def begin(self, job: Job, blocks: FrameBlocks) -> _Reconstruction:
        return _Reconstruction(self, job, blocks)


class _Reconstruction:
    """One video beside what the model makes of it."""

    def __init__(self, task: _Reconstruct, job: Job, blocks: FrameBlocks):
        self.task, self.job, self.blocks = task, job, blocks
        self.writer: VideoInThread | None = None
        self.originals: collections.deque[np.ndarray] = collections.deque()  # not yet compared
        self.decibels: list[float] = []

    def parts(self, blocks):
        def kept():
            for block in blocks:
                self.originals.append(block)
                yield block

        vae, run = self.task.vae, self.task.run
        moments = encode_blocks(vae, _clips(kept()), **run)
        latents = (_mean(part, vae.config.latent_channels) for part in moments)
        return decode_blocks(vae, latents, uint8=True, **run)

    def add(self, frames) -> int:
        frames, settings, before = frames[0], self.task.settings, len(self.decibels)
        if self.writer is None:
            self.writer = VideoInThread(self.job.target, self.blocks.fps, settings.crf)
        while len(frames) and self.originals:  # those that are left were padded
            original = self.originals[0][: len(frames)]
            height, width = original.shape[1:3]
            ours, frames = frames[: len(original), :height, :width], frames[len(original) :]
            self.originals[0] = self.originals[0][len(original) :]
            if not len(self.originals[0]):
                self.originals.popleft()
            self.decibels += map(_psnr, original, ours)
            both = ours if settings.alone else np.concatenate([original, ours], axis=2)
            self.writer.write(both)
        return len(self.decibels) - before

    def finish(self) -> None:
        self.writer.finish()
        self.task.psnr[str(self.job.source)] = float(np.mean(self.decibels))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _Decode:
    """Files of latents to videos."""

    def __init__(self, vae, infos: dict[Job, LatentsInfo], settings: Settings, mesh):
        self.vae, self.infos, self.settings, self.mesh = vae, infos, settings, mesh
        self.tilings = {}
        for job, info in infos.items():
            made = in_time_and_space(_tilings(info.tiling))
            asked = in_time_and_space(settings.tiling)
            both = (a or m for a, m in zip(asked, made, strict=True))
            self.tilings[job] = _checked_tiling(vae, tuple(filter(None, both)))

    def read(self, job: Job) -> _LatentBlocks:
        time, _ = in_time_and_space(self.tilings[job])
        return _LatentBlocks(LatentsFile(job.source), time.step // self.vae.config.time_compression)

    def begin(self, job: Job, blocks: _LatentBlocks) -> _Decoding:
        return _Decoding(self, job)

    def total_frames(self, job: Job) -> int:
        return self.infos[job].frames


class _Decoding:
    """One file of latents to its video."""

    def __init__(self, task: _Decode, job: Job):
        info = task.infos[job]
        self.task, self.job = task, job
        self.size = VideoSize(info.frames, info.height, info.width)
        self.writer = VideoInThread(job.target, info.fps, task.settings.crf)
        self.left = info.frames

    def parts(self, blocks):
        time, space = in_time_and_space(self.task.tilings[self.job])
        clips, mesh = _clips(blocks), self.task.mesh
        return decode_blocks(self.task.vae, clips, time, space, uint8=True, mesh=mesh)

    def add(self, frames) -> int:
        frames = self.size.cut(frames)[0, : self.left]
        self.left -= len(frames)
        if len(frames):
            self.writer.write(frames)
        return len(frames)

    def finish(self) -> None:
        self.writer.finish()

    def close(self) -> None:
        self.writer.close()


class _LatentBlocks:
    """A file of latents in blocks."""

    def __init__(self, file: LatentsFile, step: int):
        self.frames, self.problem = file.info.frames, file.info.problem
        self._file, self._step = file, step

    def __iter__(self):
        return self._file.blocks(self._step)


def _check_encoder(source: Path, info: LatentsInfo, ours: str) -> None:
    if info.encoder != ours:
        raise LatentsError(
            f"{source} holds latents of another model: of {info.model} "
            f"({info.config['structure']}, width {info.config['width']}, encoder {info.encoder}); "
            f"the encoder of this one is {ours}."
        )


def _clips(blocks):
    """Blocks as batches of one clip."""
    return (block[None] for block in blocks)


@functools.partial(jax.jit, static_argnames="channels")
def _mean(moments, channels):
    return moments[..., :channels]


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2) / 255**2
    return 100.0 if error < 1e-10 else -10 * float(np.log10(error))


def _not_there(jobs, overwrite, outcome):
    todo = [job for job in jobs if overwrite or not job.target.exists()]
    outcome.skipped = len(jobs) - len(todo)
    return todo


def _checked_tiling(vae, tilings) -> tuple[Tiling, ...]:
    """The tilings, one in time among them.

    Raises:
      ValueError: for what the model cannot do.
    """
    time, space = in_time_and_space(tilings)
    if time is None:
        time = Streaming(32) if vae.config.streams else TemporalTiling(33)
    if isinstance(time, Streaming):
        check_streams(vae.config)
    return (time,) if space is None else (time, space)


_TILINGS = {t.__name__: t for t in (TemporalTiling, Streaming, SpatialTiling)}


def _described(tilings):
    return {type(tiling).__name__: dataclasses.asdict(tiling) for tiling in tilings}


def _tilings(described):
    return tuple(_TILINGS[name](**fields) for name, fields in described.items())
