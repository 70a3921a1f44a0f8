"""Video files to files of latents and back, of any length and in constant memory.

Reading, computing and writing overlap: files are decoded ahead in threads, the device is given the
next part of a clip before the last one is fetched, and videos are written in threads.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import queue
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from odvae_jax.autoencoder import ODVAE, check_streams
from odvae_jax.blocks import decode_blocks, encode_blocks
from odvae_jax.checkpoints.native import digest, named_parameters
from odvae_jax.data.latents import (
    SUFFIX,
    LatentsError,
    LatentsFile,
    LatentsInfo,
    LatentsWriter,
    Statistics,
)
from odvae_jax.data.video import FrameBlocks, VideoError, VideoReader, VideoWriter
from odvae_jax.files import part_of
from odvae_jax.pixels import VideoSize
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.tiling import SpatialTiling, Streaming, TemporalTiling, Tiling, in_time_and_space


@dataclasses.dataclass(frozen=True)
class Job:
    """A file to read and the file to write."""

    source: Path
    target: Path


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
class Outcome:
    """What came of a run.

    Attributes:
      done: files written.
      skipped: files that were there already.
      frames: of the videos read or written.
      seconds: from the first file on.
      problems: what is wrong, by the name of the file read.
      statistics: of the latents, those that were there already included.
      psnr: of every reconstruction, a mean over its frames, in dB.
    """

    done: int = 0
    skipped: int = 0
    frames: int = 0
    seconds: float = 0.0
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    psnr: dict[str, float] = dataclasses.field(default_factory=dict)


def plan_jobs(
    inputs: Sequence[str | Path],
    output: str | Path,
    suffix: str,
    find: Callable[[Path], Sequence[str | Path]],
) -> list[Job]:
    """What is read and where it goes.

    One file goes to a file if `output` has the suffix; all else to the folder `output`, a folder's
    files keeping their places in it. Where two would get one name they keep their own suffix too.

    Args:
      inputs: files and folders.
      output: as above.
      suffix: of the files written, such as ".mp4".
      find: the files below a folder, or the one file.

    Raises:
      FileNotFoundError, ValueError: as `find`; ValueError for several inputs and one output file.
    """
    output = Path(output)
    found = [
        (Path(file), Path(file).relative_to(root) if root.is_dir() else Path(Path(file).name))
        for root in map(Path, inputs)
        for file in find(root)
    ]
    if output.suffix == suffix and not output.is_dir():
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} files cannot go into one, {output}: name a folder instead."
            )
        return [Job(found[0][0], output)]
    names = collections.Counter(place.with_suffix(suffix) for _, place in found)
    jobs = []
    for file, place in found:
        short = place.with_suffix(suffix)
        long = place.with_name(place.name + suffix)
        jobs.append(Job(file, output / (short if names[short] == 1 else long)))
    targets = collections.Counter(job.target for job in jobs)
    if doubled := [str(target) for target, count in targets.items() if count > 1]:
        raise ValueError(f"several inputs would go to {doubled[:4]}; encode the folders apart.")
    return jobs


def encoder_digest(vae: ODVAE) -> str:
    """Of all that decides what latents mean: the encoder's parameters and switches.

    A decoder that was trained on with its encoder frozen decodes the same latents.
    """
    config = vae.config.to_dict()
    fields = {n: config[n] for n in ("structure", "width", "latent_channels", "groups", "norm")}
    parameters = {
        name: np.asarray(value, np.float32)
        for name, value in named_parameters(vae).items()
        if name.startswith(("encoder.", "quant_conv."))
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
    progress: bool = True,
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
      progress: shows a bar.

    Raises:
      ValueError: if a target holds latents of another model, or made otherwise; for a tiling that
        the model cannot do.
    """
    tilings = _checked_tiling(vae, settings.tiling)
    time, space = in_time_and_space(tilings)
    made = {
        "encoder": encoder_digest(vae),
        "content": settings.content,
        "tiling": _described(tilings),
        "prepared": {"short_side": settings.short_side, "size": settings.size},
    }
    outcome, todo, parts = Outcome(), [], []
    for job in jobs:
        if overwrite or not job.target.exists():
            todo.append(job)
            continue
        info = LatentsFile(job.target).info
        if differing := [n for n, value in made.items() if getattr(info, n) != value]:
            raise ValueError(
                f"{job.target} holds latents that were made otherwise ({', '.join(differing)} "
                "differ): choose another folder, or --overwrite."
            )
        outcome.skipped += 1
        parts.append(info.statistics)
        if info.problem:
            outcome.problems[str(job.source)] = info.problem

    def parts_of(job, blocks):
        return encode_blocks(vae, _clips(blocks), time, space, mesh=mesh)

    class Encoding:
        """One file's."""

        def __init__(self, job, blocks):
            self.job, self.blocks = job, blocks
            self.writer = LatentsWriter(job.target, dtype=settings.store, content=settings.content)
            self.rng = np.random.default_rng([settings.seed, zlib.crc32(job.target.name.encode())])
            self.statistics = Statistics()

        def add(self, moments) -> int:
            posterior = DiagonalGaussian.from_moments(np.asarray(moments)[0])
            self.statistics.add(posterior.mean, posterior.logvar)
            stored = posterior.mean
            if settings.content == "moments":
                stored = np.concatenate([posterior.mean, posterior.logvar], axis=-1)
            elif settings.content == "sample":
                noise = self.rng.standard_normal(stored.shape, np.float32)
                stored = stored + np.exp(0.5 * posterior.logvar) * noise
            self.writer.write(stored)
            return len(stored) * vae.config.time_compression

        def finish(self):
            blocks = self.blocks
            info = LatentsInfo(
                source=self.job.source.name,
                model=str(model),
                config=vae.config.to_dict(),
                scaling_factor=vae.config.scaling_factor,
                frames=blocks.frames,
                height=blocks.height,
                width=blocks.width,
                fps=blocks.fps,
                dtype=vae.config.dtype,
                statistics=self.statistics.to_dict(),
                problem=blocks.problem,
                **made,
            )
            self.writer.finish(info)
            parts.append(info.statistics)

    _run(todo, _video_reader(time, settings), parts_of, Encoding, outcome, settings, progress)
    outcome.statistics = Statistics.total(parts)
    return outcome


def reconstruct_files(
    vae: ODVAE,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Outcome:
    """Writes videos as they come out of encoder and decoder, beside the originals, in mp4.

    Arguments and errors are those of `encode_files`. PSNR is of 8-bit frames.
    """
    tilings = _checked_tiling(vae, settings.tiling)
    time, space = in_time_and_space(tilings)
    outcome = Outcome()
    todo = _not_there(jobs, overwrite, outcome)

    waiting: dict[Job, collections.deque] = {}

    def parts_of(job, blocks):
        originals = waiting[job] = collections.deque()

        def kept():
            for block in blocks:
                originals.append(block)
                yield block

        moments = encode_blocks(vae, _clips(kept()), time, space, mesh=mesh)
        latents = (_mean(m, vae.config.latent_channels) for m in moments)
        return decode_blocks(vae, latents, time, space, uint8=True, mesh=mesh)

    class Reconstruction:
        """One file's."""

        def __init__(self, job, blocks):
            self.job, self.originals = job, waiting[job]
            self.writer = _Written(job.target, blocks.fps, settings.crf)
            self.left: np.ndarray | None = None
            self.decibels = []

        def add(self, frames) -> int:
            frames, before = np.asarray(frames)[0], len(self.decibels)
            while len(frames):
                if self.left is None or not len(self.left):
                    if not self.originals:
                        break  # the others were padded
                    self.left = self.originals.popleft()
                original = self.left[: len(frames)]
                self.left = self.left[len(original) :]
                height, width = original.shape[1:3]
                ours, frames = frames[: len(original), :height, :width], frames[len(original) :]
                self.decibels += map(_psnr, original, ours)
                both = ours if settings.alone else np.concatenate([original, ours], axis=2)
                self.writer.write(both)
            return len(self.decibels) - before

        def finish(self):
            self.writer.finish()
            del waiting[self.job]
            outcome.psnr[str(self.job.source)] = float(np.mean(self.decibels))

    _run(todo, _video_reader(time, settings), parts_of, Reconstruction, outcome, settings, progress)
    return outcome


def decode_files(
    vae: ODVAE,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Outcome:
    """Decodes files of latents into mp4, of the size that the videos had.

    Arguments are those of `encode_files`. Files that are damaged, or hold another model's latents,
    are noted in `Outcome.problems`.
    """
    outcome, ours = Outcome(), encoder_digest(vae)
    files, tilings = {}, {}
    for job in _not_there(jobs, overwrite, outcome):
        try:
            files[job] = LatentsFile(job.source)
            info = files[job].info
            if info.encoder != ours:
                raise LatentsError(
                    f"{job.source} holds latents of another model: of {info.model} "
                    f"({info.config['structure']}, width {info.config['width']}, encoder "
                    f"{info.encoder}); the encoder of this one is {ours}."
                )
            tilings[job] = _checked_tiling(vae, settings.tiling or _tilings(info.tiling))
        except LatentsError as error:
            outcome.problems[str(job.source)] = str(error)

    def reader(job):
        time, _ = in_time_and_space(tilings[job])
        return _LatentBlocks(files[job], time.step // vae.config.time_compression)

    def parts_of(job, blocks):
        time, space = in_time_and_space(tilings[job])
        return decode_blocks(vae, _clips(blocks), time, space, uint8=True, mesh=mesh)

    class Decoding:
        """One file's."""

        def __init__(self, job, blocks):
            info = files[job].info
            self.size = VideoSize(info.frames, info.height, info.width)
            self.writer = _Written(job.target, info.fps, settings.crf)
            self.count = 0

        def add(self, frames) -> int:
            frames = self.size.cut(np.asarray(frames))[0, : self.size.frames - self.count]
            self.count += len(frames)
            if len(frames):
                self.writer.write(frames)
            return len(frames)

        def finish(self):
            self.writer.finish()

    _run(list(tilings), reader, parts_of, Decoding, outcome, settings, progress)
    return outcome


def _video_reader(time, settings):
    def reader(job):
        return FrameBlocks(
            job.source,
            time.step,
            short_side=settings.short_side,
            size=settings.size,
            threads=settings.threads,
        )

    return reader


class _LatentBlocks:
    """Blocks of a file of latents, with what `_run` asks of a reader."""

    def __init__(self, file: LatentsFile, step: int):
        self.frames, self.problem = file.info.frames, file.info.problem
        self._file, self._step = file, step

    def __iter__(self):
        return self._file.blocks(self._step)


def _run(todo, reader, parts_of, make, outcome, settings, progress):
    """Every job: reads in threads, computes, and hands the parts on, one behind the device."""

    def dispatched():
        for job, blocks, ahead in _read_ahead(todo, reader, settings.readers):
            try:
                for part in parts_of(job, ahead):
                    part.copy_to_host_async()
                    yield job, blocks, part
            except (VideoError, LatentsError) as error:
                yield job, blocks, error
                continue
            yield job, blocks, None

    start, work = time.perf_counter(), None
    with _Bar(todo, outcome, progress) as bar, contextlib.closing(dispatched()) as parts:
        try:
            for job, blocks, part in _one_behind(parts):
                if isinstance(part, Exception):
                    outcome.problems[str(job.source)] = str(part)
                elif part is not None:
                    work = work or make(job, blocks)
                    bar.update(work.add(part))
                    continue
                else:
                    work.finish()
                    outcome.done += 1
                    outcome.frames += blocks.frames
                    if blocks.problem:
                        outcome.problems[str(job.source)] = blocks.problem
                if work is not None:
                    work.writer.close()
                work = None
                bar.next()
        finally:
            if work is not None:
                work.writer.close()
    outcome.seconds = time.perf_counter() - start


class _Bar:
    """Files and frames a second; of a single file, its frames."""

    def __init__(self, todo, outcome, progress):
        self._single = len(todo) == 1 and not outcome.skipped
        self._bar = tqdm(
            total=_frames_of(todo[0].source) if self._single else len(todo) + outcome.skipped,
            initial=outcome.skipped,
            unit="frame" if self._single else "file",
            dynamic_ncols=True,
            disable=not progress,
        )
        self._frames, self._start = 0, time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def update(self, frames):
        """So many more frames."""
        self._frames += frames
        if self._single:
            self._bar.update(frames)
        else:
            rate = self._frames / (time.perf_counter() - self._start)
            self._bar.set_postfix_str(f"{rate:.0f} frames/s")

    def next(self):
        """The file is done."""
        if not self._single:
            self._bar.update()


def _frames_of(path):
    """About how many; None if that cannot be told."""
    try:
        if path.suffix == SUFFIX:
            return LatentsFile(path).info.frames
        with VideoReader(str(path)) as video:
            return max(round((video.end - video.start) * video.fps), 1)
    except (VideoError, LatentsError):
        return None


class _Written:
    """A video written by a thread of its own, which appears whole or not at all."""

    def __init__(self, target: Path, fps: float, crf: int):
        target.parent.mkdir(parents=True, exist_ok=True)
        self._target, self._part = target, part_of(target)
        self._fps, self._crf = fps, crf
        self._waiting: queue.Queue = queue.Queue(2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self):
        try:
            with VideoWriter(str(self._part), self._fps, crf=self._crf, exact=True) as writer:
                while (frames := self._waiting.get()) is not None:
                    writer.write(frames)
        except BaseException as error:
            self._error = error
            while self._waiting.get() is not None:
                pass

    def write(self, frames):
        self._check()
        self._waiting.put(frames)

    def finish(self):
        """Waits for the last frames, and gives the file its name."""
        self._waiting.put(None)
        self._thread.join()
        self._check()
        self._part.replace(self._target)

    def close(self):
        """Leaves nothing of a file that was not finished."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._part.unlink(missing_ok=True)

    def _check(self):
        if self._error is not None:
            raise OSError(f"{self._target} cannot be written: {self._error}") from self._error


def _read_ahead(todo, reader, readers) -> Generator[tuple[Job, Any, Iterator], None, None]:
    """Each job, its reader, and its blocks, which a thread reads ahead; so of the next few jobs."""
    running: collections.deque = collections.deque()
    jobs = iter(todo)
    try:
        while True:
            while len(running) < readers and (job := next(jobs, None)) is not None:
                blocks = reader(job)
                running.append((job, blocks, _Ahead(blocks)))
            if not running:
                return
            job, blocks, ahead = running[0]
            yield job, blocks, iter(ahead)
            running.popleft()
            ahead.stop()
    finally:
        for _, _, ahead in running:
            ahead.stop()


class _Ahead:
    """Items of an iterable, of which a thread gets two ahead."""

    def __init__(self, items: Iterable):
        self._ready: queue.Queue = queue.Queue(2)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self._thread.start()

    def _work(self, items):
        end: tuple[Any, BaseException | None] = (None, None)
        try:
            for item in items:
                if not self._put((item, None)):
                    return
        except BaseException as error:
            end = (None, error)
        self._put(end)

    def _put(self, item):
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False

    def __iter__(self):
        while True:
            item, error = self._ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def stop(self):
        self._stopped.set()


def _one_behind(items: Iterable) -> Iterator:
    """The items, each once the next has been asked for."""
    waiting: collections.deque = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


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
        streams = vae.config.norm == "frame" or vae.config.structure == "image"
        time = Streaming(32) if streams else TemporalTiling(33)
    if isinstance(time, Streaming):
        check_streams(vae.config)
    return (time,) if space is None else (time, space)


_TILINGS = {t.__name__: t for t in (TemporalTiling, Streaming, SpatialTiling)}


def _described(tilings):
    return {type(tiling).__name__: dataclasses.asdict(tiling) for tiling in tilings}


def _tilings(described):
    return tuple(_TILINGS[name](**fields) for name, fields in described.items())
