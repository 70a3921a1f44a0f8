"""Datasets of latents: planned, encoded on this machine's devices, and described."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from odvae_jax import digests
from odvae_jax.baselines.base import Baseline
from odvae_jax.checks import check_untiled
from odvae_jax.config import IMAGE_CHANNELS
from odvae_jax.data.sources import open_source, workers_for
from odvae_jax.data.video import READ_TIMEOUT
from odvae_jax.files import BusyError, WholeFile, counted, printable
from odvae_jax.latents.description import (
    DATASET,
    PROBLEMS,
    Description,
    Plan,
    entries_file,
    problem_row,
    read_description,
    read_plan,
)
from odvae_jax.latents.entries import Cut, Planned, plan_entries, source_identity
from odvae_jax.latents.scale import Scale
from odvae_jax.latents.schema import compression, in_time
from odvae_jax.latents.shards import Limits, read_indices, total_statistics, without_doubles
from odvae_jax.latents.storage import Folder, LocalFolder, open_folder
from odvae_jax.parameters import Autoencoder
from odvae_jax.tiling import AutoTiling, Streaming, Tiling, choose, in_time_and_space
from odvae_jax.tiling.auto import whole_clip
from odvae_jax.transcoding.computation import DEFAULT_CHUNK, computation_of
from odvae_jax.transcoding.digest import described, encoder_digest
from odvae_jax.transcoding.units import Came, Reading, UnitEncoder

logger = logging.getLogger(__name__)
LEFT_OUT = "left-out.jsonl"
"""The file of a dataset with the videos that no entry was planned for, each with the reason."""
# Frames of a video as a whole for which a tiling is chosen; longer ones are cut alike.
_WHOLE_VIDEO = 129
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """How a dataset of latents is made.

    Attributes:
      cut: how clips are cut out of videos.
      content: what is stored of the posterior: "mean", "moments" or "sample".
      store: the dtype of latents in records: "float32", "float16" or "bfloat16".
      seed: the seed of samples.
      tiling: how clips are cut on the device; None computes clips of a bucket as a whole, and
        `AutoTiling` chooses by the memory when the dataset is planned.
      batch: the number of clips that a device computes together; None chooses it by their size.
      workers: the number of processes that read videos; 0 reads in threads.
      threads: the number of threads that read, in each process.
      read_timeout: the limit for one read in seconds; None for no limit.
      limits: when a shard is closed and another one begun.
    """

    cut: Cut = dataclasses.field(default_factory=Cut)
    content: str = "mean"
    store: str = "float32"
    seed: int = 0
    tiling: tuple[Tiling, ...] | AutoTiling | None = None
    batch: int | None = None
    workers: int = 0
    threads: int = 4
    read_timeout: float | None = READ_TIMEOUT
    limits: Limits = dataclasses.field(default_factory=Limits)


@dataclasses.dataclass
class Summary:
    """What came of a run over a dataset.

    Attributes:
      clips: the number of clips that this run encoded.
      frames: the number of their frames.
      there: the number of clips that were there already.
      seconds: the time from when the programs were compiled to the last record that was written. On
        devices of this process, the first clips have been read by then.
      compiling: the time that compiling took, in seconds; on a cluster, that until an actor was
        ready.
      programs: the number of programs that were compiled, of each device.
      problems: what came to nothing, in a sentence, by the name of the video.
      left_out: how many videos were left out, by the reason.
      description: what the dataset says of itself in the end.
    """

    clips: int = 0
    frames: int = 0
    there: int = 0
    seconds: float = 0.0
    compiling: float = 0.0
    programs: int = 0
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    description: Description | None = None


def encode_dataset(
    vae: Autoencoder,
    model: str,
    source: str,
    dest: str,
    settings: DatasetSettings,
    *,
    devices: Sequence[jax.Device] | None = None,
    part: tuple[int, int] = (0, 1),
    run: Callable[..., Iterator[Came]] | None = None,
    bar: bool = True,
) -> Summary:
    """Encodes the videos of a source into a dataset of latents, or goes on with it.

    The first run plans the dataset. Later ones do what is missing. Videos and clips that cannot be
    used are named in `problems.jsonl`, and tried again by the next run.

    Args:
      vae: the model.
      model: what `odvae_jax.from_pretrained` was given for it; the records say so.
      source: names the source (see `odvae_jax.data.sources`).
      dest: the path or URL of the dataset's folder.
      settings: how the dataset is made.
      devices: the devices that encode; None takes all of this process.
      part: which of how many parts of the dataset this process encodes, as in (0, 1) for all.
      run: what encodes units instead of this process's devices. It is called with the description,
        the plan, how clips are read, the units and the finished entries; when it returns, what
        encodes is ready. The iterator that it returns says what comes of the units.
      bar: whether progress bars are shown.

    Raises:
      BusyError: if another process of this machine encodes the same part.
      ValueError: if the folder holds a dataset that was made otherwise, or other files; if nothing
        of the source can be encoded.
      OSError: if something cannot be written.
    """
    folder = open_folder(dest)
    with _held(folder, f"part-{part[0]}-of-{part[1]}"):
        prepared = prepare(vae, model, source, folder, settings, bar=bar)
        folder.tidy()  # not before it is known that the folder is a dataset's
        encoding = _Encoding(folder, *prepared, part, bar)
        try:
            if run is None:
                given = {"limits": settings.limits, "devices": devices or jax.local_devices()}
                encoding.here(vae, **given)
            else:
                encoding.elsewhere(run)
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what is said
                encoding.finish()
            raise
        encoding.finish()
    return encoding.summary


class _Encoding:
    """One part of a dataset under way."""

    def __init__(self, folder, description, plan, reading, part, bar):
        self._folder, self._description, self._plan = folder, description, plan
        self._reading, self._part, self._bar = reading, part, bar
        indices = without_doubles(read_indices(folder, description.plan))
        self._finished = {int(e) for index, mask in indices for e in index.entries[mask]}
        units = plan.units(description.buckets)[part[0] :: part[1]]
        ours = {int(e) for _, entries in units for e in entries}
        self._units = [u for u in units if not self._finished.issuperset(u[1].tolist())]
        self._problems: dict[int, tuple[str, str]] = {}
        self._total = len(ours)
        self._numbers = {bucket for bucket, _ in self._units}
        lengths = [description.buckets[bucket].frames for bucket in self._numbers]
        self.summary = Summary(
            there=len(ours & self._finished),
            left_out=description.left_out,
            programs=len(lengths) - lengths.count(None),
        )

    def here(self, vae: Autoencoder, **how: Any) -> None:
        """Encodes units on devices of this process."""
        given = (self._description, self._plan, self._reading, self._folder)
        with UnitEncoder(vae, *given, **how) as encoder:
            start = time.perf_counter()
            with contextlib.closing(encoder.run(self._units, self._finished)) as events:
                next(events)  # begins to read
                encoder.compile(self._numbers)
                self._note_compiling(start)
                start = time.perf_counter()
                self._follow(events)
            encoder.finish()
            self.summary.seconds = time.perf_counter() - start

    def elsewhere(self, run: Callable[..., Iterator[Came]]) -> None:
        """Lets something else encode units."""
        start = time.perf_counter()
        given = (self._description, self._plan, self._reading, self._units, self._finished)
        events = run(*given)
        self._note_compiling(start)
        start = time.perf_counter()
        self._follow(events)
        self.summary.seconds = time.perf_counter() - start

    def _note_compiling(self, start):
        summary = self.summary
        summary.compiling = time.perf_counter() - start
        if self._bar and summary.compiling > 1:
            programs = counted(summary.programs, "program")
            print(f"{programs} compiled in {summary.compiling:.1f} s", flush=True)

    def _follow(self, events: Iterator[Came]) -> None:
        """Shows how far the run is, and notes what comes of it."""
        summary, start = self.summary, time.perf_counter()
        progress = tqdm(
            total=self._total,
            initial=summary.there,
            unit="clip",
            dynamic_ncols=True,
            disable=not self._bar,
        )
        with progress, contextlib.closing(events):
            for came in events:
                summary.clips += came.clips
                summary.frames += came.frames
                self._problems |= came.problems | came.short
                progress.update(came.clips + came.lost)
                rate = summary.frames / (time.perf_counter() - start)
                problems = counted(len(self._problems), "problem")
                progress.set_postfix_str(f"{rate:.0f} frames/s, {problems}")

    def finish(self) -> None:
        """Writes problems, and, if nothing is missing, the counts and the scale.

        Of several parts that end together, the last one finds nothing missing.
        """
        with _in_turn(self._folder):
            _write_problems(self._folder, self._part, self._problems, self.summary)
            self.summary.description = _sum_up(self._folder)


@contextlib.contextmanager
def _held(folder: Folder, name: str) -> Iterator[None]:
    """Holds a file of a folder of this machine that only one process can have open.

    Raises:
      BusyError: if another process has it.
    """
    if not isinstance(folder, LocalFolder):
        yield
        return
    try:
        lock = WholeFile(folder.path / name)
    except BusyError:
        raise BusyError(
            f"{folder.name} is being written by another process; wait for it, choose another "
            "folder, or let each do its part with --shard."
        ) from None
    with contextlib.closing(lock):
        yield


@contextlib.contextmanager
def _in_turn(folder: Folder) -> Iterator[None]:
    """Waits until no other process of this machine plans the dataset or sums it up."""
    waited = False
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(_held(folder, "planning"))
                break
            except BusyError:
                if not waited:
                    logger.warning("%s is being planned by another process; waiting", folder.name)
                waited = True
                time.sleep(0.5)
        yield


def prepare(
    vae: Autoencoder,
    model: str,
    source: str,
    folder: Folder,
    settings: DatasetSettings,
    *,
    bar: bool,
) -> tuple[Description, Plan, Reading]:
    """Plans a dataset, or reads the plan that is there.

    Raises:
      ValueError: if the folder holds a dataset that was made otherwise, or other files; if nothing
        of the source can be encoded.
    """
    opened = open_source(source, timeout=settings.read_timeout)
    workers = workers_for([opened], settings.workers)
    reading = Reading(opened, settings.cut, workers, settings.threads)
    described = Description(
        shared_fields(vae, model, settings),
        source_identity(source, opened),
        {**settings.cut.to_dict(), "batch": settings.batch},
        (),
        {},
    )
    automatic = AutoTiling.of(settings.tiling)
    with _in_turn(folder):
        if (there := _planned(folder, described, automatic is not None)) is not None:
            return *_with_mended(folder, *there, opened, settings, bar), reading
        if others := [n for n in folder.names() if not _may_be_there(n)]:
            raise ValueError(
                f"{folder.name} holds other files ({others[0]}); choose an empty folder or a new "
                "one."
            )
        planned = plan(opened, settings, bar=bar)
        if automatic is not None:
            described.shared["tiling"] = _chosen(vae, planned, automatic)
        there = _planned(folder, described, automatic is not None)
        if there is not None:  # far folders have no turns
            return *there, reading
        content = planned.plan.to_bytes()
        described = dataclasses.replace(
            described,
            buckets=planned.buckets,
            left_out=planned.counts,
            plan=digests.of_bytes(content)[:8],
        )
        folder.write(entries_file(described.plan), content)
        folder.write(LEFT_OUT, _left_out_rows(planned))
        folder.write(DATASET, described.to_bytes())  # the last: it says that the plan is there
        # At far places another process may have planned at the same time: what is there now counts.
        there = _planned(folder, described, automatic is not None)
    return *there, reading


def _planned(
    folder: Folder, described: Description, automatic: bool
) -> tuple[Description, Plan] | None:
    """Reads what another run has planned; None if there is nothing.

    Raises:
      ValueError: if that run made another dataset.
    """
    if (there := read_description(folder)) is None:
        return None
    shared = dict(described.shared)
    if automatic:  # it was chosen once for all runs
        shared["tiling"] = there.shared["tiling"]
    described = dataclasses.replace(described, shared=shared, buckets=there.buckets)
    if differing := there.differences(described):
        raise ValueError(
            f"{folder.name} holds a dataset that was made otherwise "
            f"({', '.join(differing)} differ): choose another folder, or go on with the "
            "model, the source and the options that it was begun with."
        )
    return there, read_plan(folder, there)


def _may_be_there(name: str) -> bool:
    """Whether a file may be in a folder that is no dataset yet: it is of a plan that was begun."""
    return name == LEFT_OUT or (name.startswith("entries") and name.endswith(".index"))


def _with_mended(
    folder: Folder, description: Description, plan: Plan, source, settings, bar
) -> tuple[Description, Plan]:
    """Looks again at videos that could not be read; entries of those that can be come last."""
    rows = _left_out(folder)
    again = [row["number"] for row in rows if row["unreadable"] and row["number"] < len(source)]
    if not again:
        return description, plan
    batches = {bucket.name: bucket.batch for bucket in description.buckets}
    given = {"workers": settings.workers, "threads": settings.threads, "bar": bar}
    found = plan_entries(source, settings.cut, batch=settings.batch, videos=again, **given)
    if len(found.unusable) == len(again):
        return description, plan
    names = list(batches) + [b.name for b in found.buckets if b.name not in batches]
    more = {bucket.name: bucket for bucket in found.buckets}
    numbers = np.array([names.index(bucket.name) for bucket in found.buckets], np.int64)
    merged = dataclasses.replace(found.plan, bucket=numbers[found.plan.bucket])
    plan = Plan(
        *(
            np.concatenate([getattr(plan, f.name), getattr(merged, f.name)])
            for f in dataclasses.fields(Plan)
        )
    )
    there = {bucket.name: bucket for bucket in description.buckets}
    buckets = [
        dataclasses.replace(
            there.get(name, more.get(name)), entries=int((plan.bucket == number).sum())
        )
        for number, name in enumerate(names)
    ]
    kept = [r for r in rows if not r["unreadable"] or (r["number"], r["video"]) in found.unusable]
    found = dataclasses.replace(found, unusable={})
    left_out = b"".join([*(problem_row(**row) for row in kept), _left_out_rows(found)])
    counts = collections.Counter(
        "cannot be read" if row["unreadable"] else row["reason"]
        for row in map(json.loads, left_out.splitlines())
    )
    description = dataclasses.replace(
        description, buckets=tuple(buckets), left_out=dict(counts), records=None, scale=None
    )
    folder.write(entries_file(description.plan), plan.to_bytes())
    folder.write(LEFT_OUT, left_out)
    folder.write(DATASET, description.to_bytes())
    return description, plan


def _left_out(folder) -> list[dict[str, Any]]:
    """The videos that no entry was planned for, as they stand in the folder."""
    with contextlib.suppress(FileNotFoundError):
        return list(map(json.loads, folder.read(LEFT_OUT).splitlines()))
    return []


def _chosen(vae: Autoencoder, planned: Planned, auto: AutoTiling) -> dict[str, Any]:
    """Describes the tiling that the largest clips need."""
    largest = max(planned.buckets, key=lambda b: b.batch * (b.frames or 1) * b.height * b.width)
    frames = largest.frames or _WHOLE_VIDEO
    shape = (largest.batch, frames, largest.height, largest.width, IMAGE_CHANNELS)
    chosen = choose(vae, shape, encodes=True, memory=auto.memory)
    time, space = in_time_and_space(chosen)
    if time is None and largest.frames is None and vae.config.streams:
        time = Streaming(DEFAULT_CHUNK)
    elif time is None:
        time = whole_clip(vae.config, max(b.frames or _WHOLE_VIDEO for b in planned.buckets))
    made = computation_of(vae, (time,) if space is None else (time, space)).describe()
    return json.loads(json.dumps(made))


def plan(source, settings: DatasetSettings, *, bar: bool) -> Planned:
    """Plans the entries of an opened source.

    Raises:
      ValueError: if there are none.
    """
    given = {"batch": settings.batch, "threads": settings.threads}
    given["workers"] = workers_for([source], settings.workers)
    planned = plan_entries(source, settings.cut, bar=bar, **given)
    if not len(planned.plan):
        reasons = list(planned.unusable.values())[:5]
        reasons += [f"{printable(n)}: {why}" for n, why in [*planned.left_out.items()][:5]]
        listed = "\n  ".join(reasons)
        raise ValueError(f"none of {counted(len(source), 'video')} can be encoded:\n  {listed}")
    return planned


def _left_out_rows(planned: Planned) -> bytes:
    rows = [
        problem_row(None, name, why, unreadable=True, number=number)
        for (number, name), why in planned.unusable.items()
    ]
    rows += [
        problem_row(None, name, why, unreadable=False, number=None)
        for name, why in planned.left_out.items()
    ]
    return b"".join(rows)


def shared_fields(vae: Autoencoder, model: str, settings: DatasetSettings) -> dict[str, Any]:
    """Returns the fields of `LatentsInfo` that all records of a dataset have in common.

    Raises:
      ValueError: if the model cannot be tiled as the settings say, or has no continuous latents.
    """
    config, cut = vae.config, settings.cut
    tiling = None if AutoTiling.of(settings.tiling) else settings.tiling
    if isinstance(vae, Baseline):
        check_untiled(config, settings.tiling)
    elif tiling is None and (cut.frames or cut.buckets):
        longest = max([cut.frames or 1, *(size.frames for size in cut.buckets)])
        tiling = (whole_clip(config, longest),)
    tiling = computation_of(vae, tiling).describe()
    return json.loads(
        json.dumps(
            {
                "model": str(Path(model).absolute()) if Path(model).exists() else str(model),
                "encoder": encoder_digest(vae),
                "config": described(config),
                "content": settings.content,
                "scaling_factor": config.scaling_factor,
                "tiling": tiling,
                "dtype": config.dtype,
                "store": settings.store,
                "seed": settings.seed if settings.content == "sample" else None,
            }
        )
    )


def _write_problems(folder, part, problems, summary) -> None:
    """Writes what came to nothing in this part."""
    which, count = part
    rows = [problem_row(e, name, why) for e, (name, why) in sorted(problems.items())]
    unreadable = [problem_row(**row) for row in _left_out(folder) if row["unreadable"]]
    if which == 0:
        rows = unreadable + rows
    for row in rows:
        row = json.loads(row)
        summary.problems[row["video"]] = row["reason"]
    name = PROBLEMS if count == 1 else f"problems-{which}-of-{count}.jsonl"
    if rows:
        folder.write(name, b"".join(rows))
    else:
        folder.remove(name)
    if count == 1:  # what parts said before is older
        for other in folder.names():
            if other.startswith("problems-") and other.endswith(".jsonl"):
                folder.remove(other)


def _sum_up(folder) -> Description:
    """Writes the counts and the scale, if nothing is missing, and returns what the dataset says.

    Description and plan are read anew: another part may have added entries of mended videos.
    """
    description = read_description(folder)
    plan = read_plan(folder, description)
    indices = without_doubles(read_indices(folder, description.plan))
    there = {int(e) for index, mask in indices for e in index.entries[mask]}
    complete = len(there | _with_problems(folder)) == len(plan)
    done = dataclasses.replace(
        description,
        records=len(there) if complete else None,
        scale=Scale.of(total_statistics(indices)).to_dict() if there and complete else None,
    )
    if done != description:
        folder.write(DATASET, done.to_bytes())
    return done


def _with_problems(folder) -> set[int]:
    """The entries of which some part of the work says that they came to nothing."""
    entries: set[int] = set()
    for name in folder.names():
        if name.startswith("problems") and name.endswith(".jsonl"):
            rows = map(json.loads, folder.read(name).splitlines())
            entries |= {row["entry"] for row in rows if row["entry"] is not None}
    return entries


def dataset_bytes(planned: Planned, settings: DatasetSettings, config: dict[str, Any]) -> int:
    """Returns about how many bytes of latents a planned dataset has.

    Args:
      planned: what was planned.
      settings: how the dataset is made.
      config: the model's config, as records have it.
    """
    _, space = compression(config)
    channels = config["latent_channels"] * (2 if settings.content == "moments" else 1)
    total = 0
    for bucket in planned.buckets:
        lengths = planned.frames.get(bucket.name, [bucket.frames or 1] * bucket.entries)
        latent_frames = sum(map(in_time(config).latent_frames, lengths))
        positions = -(-bucket.height // space) * -(-bucket.width // space)
        total += latent_frames * positions * channels * _BYTES[settings.store]
    return total
