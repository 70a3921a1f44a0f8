"""Units of clips encoded on several devices, and written into the shards of a dataset.

Worker processes read clips. One thread per device takes the next unit when the device is free, and
fetches a result while the device works on the next. The caller's thread writes. All queues are
short, so that memory does not depend on the number of clips.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import queue
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt8

from odvae_jax.data.processes import InOrder
from odvae_jax.data.sources import Source, problem_of
from odvae_jax.data.video import Blocks, VideoError
from odvae_jax.files import one_line
from odvae_jax.inference import encode_uint8
from odvae_jax.latents import LatentsError, LatentsInfo, Statistics
from odvae_jax.latents.buckets import Size
from odvae_jax.latents.clips import ReadClip, read_clip
from odvae_jax.latents.description import Bucket, Description, Plan
from odvae_jax.latents.entries import Cut
from odvae_jax.latents.records import as_stored, pack_record
from odvae_jax.latents.shards import Limits, ShardWriter
from odvae_jax.latents.storage import Folder
from odvae_jax.parameters import Autoencoder
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.tiling import TemporalTiling, Tiling
from odvae_jax.transcoding.computation import (
    ModelOnDevices,
    as_clips,
    check_finite,
    computation_of,
    content_of,
    override_tiling,
)
from odvae_jax.transcoding.programs import AT_ONCE, compile_ahead
from odvae_jax.transcoding.run import ReadAhead, begin_copy, one_behind
from odvae_jax.transcoding.settings import NotFiniteError, advised, is_device_fault

_UNITS = 4  # units in memory for each device: read, computed, or to be written
_OPEN = 64  # shards that are open at the same time; each takes two file descriptors
_SOME_BLOCKS = 1000  # frames of a video that needs every program that long ones need
_LONGEST = 2**31
"""The most bytes of latents that a video as a whole may have in one record."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How clips are read.

    Attributes:
      source: the source.
      cut: how clips are cut out of videos.
      workers: the number of processes that read; 0 reads in threads.
      threads: the number of threads, in each process.
    """

    source: Source
    cut: Cut
    workers: int = 0
    threads: int = 4


@dataclasses.dataclass
class Came:
    """What came of units so far; rows that are small, whatever the latents' size.

    Attributes:
      units: the number of units that it is about; 0 if shards were finished meanwhile.
      clips: the number of their clips that were encoded.
      lost: the number of clips that came to nothing.
      frames: the number of frames of the clips that were encoded.
      finished: entries in shards that are finished.
      problems: entries that came to nothing, each with the video's name and the reason.
      short: entries whose video ended too early, each with the video's name and the reason; their
        records have what there was.
    """

    units: int = 1
    clips: int = 0
    lost: int = 0
    frames: int = 0
    finished: list[int] = dataclasses.field(default_factory=list)
    problems: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    short: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Clip:
    """One clip of a unit: its place in the unit, what is said of it, and why it cannot be used."""

    entry: int
    place: int
    name: str = ""
    fps: float = 1.0
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    frames: int = 0
    problem: str = ""


@dataclasses.dataclass
class _Unit:
    """What a device computes together: clips in an array, or the blocks of one whole video."""

    bucket: int
    clips: list[_Clip]
    video: UInt8[np.ndarray, "b t h w 3"] | None = None
    blocks: Blocks | None = None
    ahead: Any = None
    moments: Any = None


class UnitEncoder:
    """Encodes units of a dataset's plan on devices, and writes them into shards.

    It is to be used in a `with`. What was written of a shard when the context ends, for whatever
    reason, is finished as a smaller shard, if it can be.

    Args:
      vae: the model.
      description: the dataset.
      plan: its entries.
      reading: how clips are read.
      folder: the dataset's folder.
      devices: the devices.
      limits: when a shard is closed.
    """

    def __init__(
        self,
        vae: Autoencoder,
        description: Description,
        plan: Plan,
        reading: Reading,
        folder: Folder,
        *,
        devices: Sequence[jax.Device],
        limits: Limits | None = None,
    ):
        self._description, self._plan, self._reading = description, plan, reading
        self._devices, self._config = list(devices), vae.config
        made = override_tiling(description.shared["tiling"], None)
        longest = max((bucket.frames or 1 for bucket in description.buckets), default=1)
        # A group that holds every clip is the clip as a whole.
        self._tiling = tuple(t for t in made if not _holds(t, longest)) or None
        self._models = ModelOnDevices(vae)
        self._computation = None
        if any(bucket.frames is None for bucket in description.buckets):
            self._computation = computation_of(vae, made)
        self._programs: dict[tuple[int, jax.Device], Callable] = {}
        writer = f"{description.plan}{secrets.token_hex(6)}"
        self._hand = concurrent.futures.ThreadPoolExecutor(1)
        self._stopping = threading.Event()
        self._reading_ahead: set[ReadAhead] = set()
        self._writers = [ShardWriter(folder, b.name, writer, limits) for b in description.buckets]

    def __enter__(self) -> UnitEncoder:
        return self

    def __exit__(self, kind, *_):
        failures = self._hand.submit(self._finish_all).result()
        self._hand.shutdown()
        if failures and kind is None:
            raise failures[0]

    def _finish_all(self) -> list[Exception]:
        """Finishes what can be finished, and removes the rest."""
        failures = []
        for writer in self._writers:
            try:
                writer.finish()
            except Exception as error:
                failures.append(error)
                writer.close()
        return failures

    def finish(self) -> list[int]:
        """Closes all shards, and returns the entries that are in them."""
        return self._hand.submit(self._finish, lambda writer: True).result()

    def _finish(self, chosen: Callable[[ShardWriter], bool]) -> list[int]:
        return [e for writer in self._writers if chosen(writer) for e in writer.finish()]

    def _finish_due(self) -> list[int]:
        """Closes shards that are large or old enough, and the oldest ones if many are open."""
        finished = self._finish(lambda writer: writer.due)
        opened = sorted((w for w in self._writers if w.is_open), key=lambda w: w.began)
        excess = opened[: max(len(opened) - _OPEN, 0)]
        return finished + self._finish(lambda writer: writer in excess)

    def compile(self, buckets: Collection[int]) -> None:
        """Compiles the programs of buckets side by side, for one device first, then for the others.

        Those of videos as a whole are compiled here if they are the same for all lengths.

        Args:
          buckets: the numbers of the buckets.
        """
        chosen = [(number, self._description.buckets[number]) for number in sorted(buckets)]
        fixed = [number for number, bucket in chosen if bucket.frames is not None]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for devices in (self._devices[:1], self._devices[1:]):
                # The others take them from JAX's cache, where it serves all devices.
                pairs = [(number, device) for number in fixed for device in devices]
                list(pool.map(lambda pair: self._program(*pair), pairs))
        whole = [(_SOME_BLOCKS, b.height, b.width) for _, b in chosen if b.frames is None]
        if whole and self._computation.programs_fit_all:
            compile_ahead(self._computation, self._models, self._devices, whole)

    def _program(self, bucket: int, device: jax.Device) -> Callable:
        if (bucket, device) not in self._programs:
            size, vae = self._description.buckets[bucket], self._models.on(device)
            shape = (size.batch, size.frames, size.height, size.width, 3)
            video = jax.ShapeDtypeStruct(
                shape, np.uint8, sharding=jax.sharding.SingleDeviceSharding(device)
            )
            lowered = encode_unit.lower(vae, video, tiling=self._tiling)
            self._programs[bucket, device] = lowered.compile()
        return self._programs[bucket, device]

    @property
    def ahead(self) -> int:
        """The number of clips that are read, at most, before a device takes them."""
        if self._computation is not None:
            return len(self._devices)
        most = max((bucket.batch for bucket in self._description.buckets), default=1)
        reading = self._reading
        return most * (len(self._devices) + 1) + 2 * max(reading.workers, 1) * reading.threads

    def run(
        self, units: Iterable[tuple[int, np.ndarray]], finished: Collection[int] = ()
    ) -> Iterator[Came]:
        """Encodes units, and yields for each what came of it, and what was finished meanwhile.

        With one device they come in their order. First it begins to read, and yields an empty
        `Came`: programs can be compiled while the first clips are read.

        Args:
          units: pairs of a bucket's number and the unit's entries, as `Plan.units` returns them.
            They are drawn as they are needed, by a thread, and may be long in coming.
          finished: entries that are in the dataset already, and are left. Nothing comes of a unit
            that has no others.
        """
        begun: queue.SimpleQueue = queue.SimpleQueue()
        stopped = threading.Event()
        self._stopping.clear()
        clips = self._clips(self._jobs(units, finished, begun))
        lanes = _Lanes(self._devices, self._compute)
        # What waits for clips ends when these are closed, so they are closed first.
        with contextlib.closing(lanes), contextlib.closing(clips):
            try:
                yield Came(units=0)
                for unit in lanes.results(self._units(begun, clips, stopped)):
                    # In a thread, so that no signal comes in the middle of a record or a shard.
                    came = self._hand.submit(self._write, unit).result()
                    if came.units or came.finished:
                        yield came
            finally:
                stopped.set()
                self._stopping.set()
                for ahead in list(self._reading_ahead):
                    ahead.stop()

    # ------------------------------------------------------------ reading

    def _jobs(self, units, finished, begun) -> Iterator[tuple[int, int, bool, Size]]:
        """Yields what is to be read of units that are drawn, and puts the units into a queue."""
        for number, entries in units:
            places = [i for i, entry in enumerate(entries.tolist()) if entry not in finished]
            if not places:
                continue
            bucket = self._description.buckets[number]
            begun.put((number, entries[places].tolist(), places))
            if bucket.frames is None:
                continue
            for entry in entries[places].tolist():
                video, start = int(self._plan.video[entry]), int(self._plan.start[entry])
                yield video, start, bool(self._plan.mirrored[entry]), _size(bucket)
        begun.put(None)

    def _clips(self, jobs) -> InOrder:
        """Begins to read clips, in their order."""
        reading, whole = self._reading, self._computation is not None
        return InOrder(
            read_clip,
            (reading.source, reading.cut),
            jobs,
            workers=0 if whole else reading.workers,
            threads=1 if whole else reading.threads,
            ahead=self.ahead,
            lost=lambda job, reason, _: ReadClip(name=reading.source.name(job[0]), problem=reason),
        )

    def _units(self, begun, clips, stopped) -> Iterator[_Unit]:
        """Yields units whose clips were read, in their order."""
        while not stopped.is_set():
            try:
                unit = begun.get(timeout=0.2)
            except queue.Empty:
                if clips.ended:
                    next(clips, None)  # raises what ended it
                    return
                continue
            if unit is None:
                return
            number, entries, places = unit
            if self._description.buckets[number].frames is None:
                yield self._begin_whole(number, entries[0])
            else:
                yield self._collect(number, entries, places, clips)

    def _collect(self, number, entries, places, clips) -> _Unit:
        """Puts the clips of a unit at their places; what is missing stays black."""
        bucket = self._description.buckets[number]
        shape = (bucket.batch, bucket.frames, bucket.height, bucket.width, 3)
        unit = _Unit(number, [])
        for entry, place in zip(entries, places, strict=True):
            read = next(clips)
            clip = _Clip(entry, place, read.name, read.fps, read.columns, bucket.frames)
            clip.problem = read.problem
            if not clip.problem and read.clip.shape != shape[1:]:
                clip.problem = (
                    f"{read.name} has clips of {read.clip.shape[:3]} frames, rows and columns; its "
                    f"header promised {shape[1:4]}."
                )
            unit.clips.append(clip)
            if clip.problem:
                continue
            if bucket.batch == 1:  # without a copy
                unit.video = read.clip[None]
                continue
            if unit.video is None:
                unit.video = np.zeros(shape, np.uint8)
            unit.video[place] = read.clip
        return unit

    def _begin_whole(self, bucket, entry) -> _Unit:
        """Begins to read a video as a whole, in threads."""
        source, cut = self._reading.source, self._reading.cut
        video = int(self._plan.video[entry])
        clip = _Clip(entry, 0, source.name(video))
        unit = _Unit(bucket, [clip])
        try:
            clip.columns = source.columns(video)
            short_side = cut.short_side or cut.size
            unit.blocks = source.blocks(
                video,
                self._computation.frames_per_block,
                short_side=short_side,
                size=cut.size,
                threads=self._reading.threads,
            )
            mirrored = bool(self._plan.mirrored[entry])
            turned = (b[:, :, ::-1] if mirrored else b for b in unit.blocks)
            unit.ahead = ReadAhead(turned)
            self._reading_ahead.add(unit.ahead)
        except Exception as error:  # whatever is wrong with one video is not the others' problem
            clip.problem = problem_of(clip.name, error)
        return unit

    # ------------------------------------------------------------ computing

    def _compute(self, unit: _Unit, device: jax.Device) -> Callable[[], None]:
        """Gives a unit to a device; what is returned fetches the result into `unit.moments`."""
        if unit.video is not None:
            program = self._program(unit.bucket, device)
            moments = program(self._models.on(device), jax.device_put(unit.video, device))
            moments.copy_to_host_async()

            def fetch():
                unit.moments = np.asarray(moments)

            unit.video = None
            return fetch
        if unit.ahead is not None:
            self._compute_whole(unit, device)
        return lambda: None

    def _compute_whole(self, unit, device):
        ours = dataclasses.replace(self._computation, vae=self._models.on(device))
        clip, parts, size = unit.clips[0], [], 0
        try:
            with jax.default_device(device):
                encoded = ours.encode(as_clips(unit.ahead))
                started = ((begin_copy(moments), moments, n) for moments, n in encoded)
                for _, moments, count in one_behind(started):
                    if self._stopping.is_set():
                        raise VideoError(f"{clip.name} was not encoded to its end.")
                    parts.append(np.asarray(moments)[:, :count])
                    size += parts[-1].nbytes
                    if size > _LONGEST:
                        raise LatentsError(
                            f"{clip.name} has more than {_LONGEST} bytes of latents, too many for "
                            "one record; encode it in clips (--frames), or into a file of its own."
                        )
            unit.moments = np.concatenate(parts, axis=1)
            clip.frames, clip.fps = unit.blocks.frames, unit.blocks.fps
            bucket = self._description.buckets[unit.bucket]
            if (found := (unit.blocks.height, unit.blocks.width)) != (bucket.height, bucket.width):
                raise VideoError(
                    f"{clip.name} has frames of {found[0]}×{found[1]}; its header promised "
                    f"{bucket.height}×{bucket.width}."
                )
        except Exception as error:  # whatever is wrong with one video is not the others' problem
            if is_device_fault(error):
                raise
            clip.problem = problem_of(clip.name, advised(error))
        finally:
            unit.ahead.stop()
            self._reading_ahead.discard(unit.ahead)

    # ------------------------------------------------------------ writing

    def _write(self, unit: _Unit | None) -> Came:
        """Writes the records of a unit, all into one shard, and says what came of it.

        For None it only closes shards that are due.
        """
        if unit is None:
            return Came(units=0, finished=self._finish_due())
        came, writer = Came(), self._writers[unit.bucket]
        for clip in unit.clips:
            try:
                if not clip.problem:
                    writer.add(clip.entry, *self._record(unit, clip))
                    came.clips += 1
                    came.frames += clip.frames
            except (LatentsError, NotFiniteError) as error:
                clip.problem = f"{clip.name}: {one_line(error)}"
            if clip.problem:
                came.problems[clip.entry] = clip.name, clip.problem
                came.lost += 1
            elif unit.blocks is not None and unit.blocks.problem:  # what there was of it is kept
                came.short[clip.entry] = clip.name, unit.blocks.problem
        came.finished = self._finish_due()
        return came

    def _record(self, unit, clip) -> tuple[bytes, int, int, float, Statistics]:
        shared = self._description.shared
        moments = unit.moments[clip.place]
        check_finite(int(moments.size - np.isfinite(moments).sum()), moments.size, "the latents")
        posterior = DiagonalGaussian.from_moments(moments)
        statistics = Statistics()
        statistics.add(posterior.mean, posterior.logvar)
        rng = np.random.default_rng([shared["seed"] or 0, clip.entry])
        stored = as_stored(content_of(posterior, shared["content"], rng), shared["store"])
        cut, bucket = self._reading.cut, self._description.buckets[unit.bucket]
        prepared = {"short_side": cut.short_side or cut.size, "size": cut.size}
        height, width = bucket.height, bucket.width
        if cut.buckets:
            prepared["cover"] = [height, width]
        if unit.blocks is not None:
            height, width = unit.blocks.height, unit.blocks.width
        info = LatentsInfo(
            source=clip.name,
            frames=clip.frames,
            height=height,
            width=width,
            fps=clip.fps,
            prepared=prepared,
            problem=unit.blocks.problem if unit.blocks is not None else "",
            time_compression=self._config.time_compression,
            columns=clip.columns,
            place={
                "video": int(self._plan.video[clip.entry]),
                "start": int(self._plan.start[clip.entry]),
                "stride": None if cut.fps or cut.spread else cut.stride,
                "mirrored": bool(self._plan.mirrored[clip.entry]),
            },
            **shared,
        )
        record = pack_record(clip.entry, info, stored)
        return record, clip.frames, len(stored), clip.frames / clip.fps, statistics


def _holds(tiling: Tiling, frames: int) -> bool:
    """Whether a tiling leaves clips of so many frames whole."""
    return isinstance(tiling, TemporalTiling) and tiling.group >= frames


@functools.partial(jax.jit, static_argnames="tiling")
def encode_unit(
    vae: Autoencoder, video: UInt8[Array, "b t h w 3"], tiling: tuple[Tiling, ...] | None
) -> Float32[Array, "b u y x c2"]:
    """Returns mean and log-variance of the posterior of clips, side by side in the channels.

    Args:
      vae: the model.
      video: the clips, uint8 [B, T, H, W, 3], of any length and sides.
      tiling: how clips are cut; None computes them as a whole.

    Returns:
      float32 [B, t, h, w, 2 C].
    """
    posterior = encode_uint8(vae, video, tiling=tiling, pad=True)
    return jax.numpy.concatenate([posterior.mean, posterior.logvar], axis=-1)


def _size(bucket: Bucket) -> Size:
    return Size(bucket.frames, bucket.height, bucket.width)


class _Lanes:
    """One thread per device, which takes the next unit when its device is free.

    Args:
      devices: the devices.
      compute: gives a unit to a device, and returns a function that waits for the result.
    """

    def __init__(self, devices: Sequence[jax.Device], compute: Callable):
        self._compute = compute
        self._units: queue.Queue = queue.Queue(len(devices))
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        # Units that were given away and did not come back: they bound what is in memory.
        self._room = threading.Semaphore(_UNITS * len(devices))
        self._stopped = threading.Event()
        self._lanes = len(devices)
        self._threads = [
            threading.Thread(target=self._work, args=(d,), daemon=True) for d in devices
        ]

    def results(self, units: Iterator[_Unit]) -> Iterator[_Unit | None]:
        """Yields units when they are computed, in the order in which they are.

        While there is none it yields None from time to time.

        Raises:
          BaseException: what was raised while units were read or computed.
        """
        feeder = threading.Thread(target=self._feed, args=(units,), daemon=True)
        for thread in (feeder, *self._threads):
            thread.start()
        self._threads.append(feeder)
        running = self._lanes
        while running:
            try:
                unit = self._done.get(timeout=0.2)  # signals are handled in between
            except queue.Empty:
                yield None
                continue
            if unit is None:
                running -= 1
            elif isinstance(unit, BaseException):
                raise unit
            else:
                yield unit
                self._room.release()

    def _feed(self, units):
        try:
            for unit in units:
                while not self._room.acquire(timeout=0.2):
                    if self._stopped.is_set():
                        return
                if not self._put(unit):
                    return
            for _ in range(self._lanes):
                self._put(None)
        except BaseException as error:
            if not self._stopped.is_set():
                self._done.put(error)

    def _put(self, unit) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._units.put(unit, timeout=0.2)
                return True
        return False

    def _work(self, device):
        pending: collections.deque[tuple[_Unit, Callable]] = collections.deque()
        try:
            while not self._stopped.is_set():
                try:
                    # While nothing new comes, what the device has done is fetched.
                    unit = self._units.get(timeout=0.05 if pending else 0.2)
                except queue.Empty:
                    if pending:
                        self._finish(*pending.popleft())
                    continue
                if unit is None:
                    break
                pending.append((unit, self._compute(unit, device)))
                if len(pending) > 1:
                    self._finish(*pending.popleft())
            while pending and not self._stopped.is_set():
                self._finish(*pending.popleft())
            self._done.put(None)
        except BaseException as error:
            self._done.put(advised(error))

    def _finish(self, unit, fetch):
        fetch()
        self._done.put(unit)

    def close(self) -> None:
        """Ends the threads; what a device works on is waited for."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
