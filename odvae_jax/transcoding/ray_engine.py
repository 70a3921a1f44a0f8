"""Datasets of latents encoded by the machines of a Ray cluster.

The driver plans and hands units to actors, one actor per GPU. An actor holds the model, encodes
what it is given, and writes whole shards; only small rows come back. An actor that dies is
replaced, and what it had not written is done again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from odvae_jax import registry
from odvae_jax.compilation import use_compilation_cache
from odvae_jax.data.processes import WorkerError
from odvae_jax.data.urls import is_here_only
from odvae_jax.files import counted, one_line, printable
from odvae_jax.latents.description import DATASET, Description, Plan, read_description
from odvae_jax.latents.shards import Limits, read_indices
from odvae_jax.latents.storage import LocalFolder, open_folder
from odvae_jax.transcoding.digest import encoder_digest
from odvae_jax.transcoding.units import Came, Reading, UnitEncoder

logger = logging.getLogger(__name__)
_TRIES = 3
"""A unit that so many actors died of is given up."""
_DEATHS = 10
"""The run ends after so many deaths in a row between which nothing was encoded."""
_PATIENCE = 25.0  # seconds that actors get to finish their shards; schedulers kill after 30
_STORE = 2**29  # bytes of memory that a Ray on this machine alone sets aside for what it sends
_LONG = 120.0  # seconds after which the log says that no actor is ready yet
_TURN = 2.0  # seconds between two reports of an actor


@dataclasses.dataclass(frozen=True)
class Work:
    """What every actor is told when it begins.

    Attributes:
      folder: the folder that relative paths belong to.
      model, dtype, verify: how the model is loaded (see `odvae_jax.from_pretrained`).
      dest: the path or URL of the dataset's folder.
      description: the dataset.
      plan: its entries.
      reading: how clips are read.
      workers: whether `reading` says how many processes read; else each actor takes its share of
        the cores of its machine.
      actors: the number of actors.
      limits: when a shard is closed.
      buckets: the numbers of the buckets whose programs are compiled.
      on_gpus: whether each actor has a GPU.
    """

    folder: str
    model: str
    dtype: str
    verify: bool
    dest: str
    description: Description
    plan: Plan
    reading: Reading
    workers: bool
    actors: int
    limits: Limits
    buckets: tuple[int, ...]
    on_gpus: bool


@dataclasses.dataclass
class Report:
    """What an actor has done since it was asked last.

    Attributes:
      units: the number of clips and of frames that each unit has brought, in the order in which the
        units were given.
      problems: entries that came to nothing, as in `Came`.
      short: entries whose video ended too early, as in `Came`.
      finished: entries in shards that are finished.
      fault: what ended the actor's work; empty if nothing has.
      is_disk: whether the fault is that something could not be read or written.
    """

    units: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    problems: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    short: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    finished: list[int] = dataclasses.field(default_factory=list)
    fault: str = ""
    is_disk: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to say."""
        return not (self.units or self.problems or self.short or self.finished or self.fault)


class Encoder:
    """What an actor runs: a `UnitEncoder` on one device, whose units come from the driver."""

    def __init__(self):
        self._given: queue.SimpleQueue = queue.SimpleQueue()
        self._report, self._changed = Report(), threading.Condition()
        self._stopped, self._finished = threading.Event(), set()
        self._lots: dict[int, Any] = {}
        self._next = 0
        self._thread: threading.Thread | None = None

    def begin(self, work: Work) -> dict[str, Any]:
        """Loads the model, compiles, and says what is ready.

        Raises:
          ValueError: if the machine sees another model, or not the dataset, or no GPU.
          OSError: if the model cannot be read.
        """
        host = socket.gethostname()
        with contextlib.suppress(OSError):
            os.chdir(work.folder)
        use_compilation_cache()
        vae = registry.load(work.model, dtype=work.dtype, verify=work.verify)
        if encoder_digest(vae) != work.description.shared["encoder"]:
            raise ValueError(
                f"{printable(work.model)} on {host} is another model than the driver's; give all "
                "machines the same files."
            )
        folder = open_folder(work.dest)
        if read_description(folder) is None:
            raise ValueError(
                f"{host} does not see {folder.name}/{DATASET}; expected a folder that all machines "
                "share, or a URL."
            )
        reading, devices = work.reading, jax.local_devices()[:1]
        if work.on_gpus and devices[0].platform == "cpu":
            raise ValueError(f"JAX finds no GPU on {host}: pip install 'odvae_jax[cuda]' there.")
        if not work.workers:
            reading = dataclasses.replace(reading, workers=_share_of_cores(work.actors))
        self._encoder = UnitEncoder(
            vae,
            work.description,
            work.plan,
            reading,
            folder,
            devices=devices,
            limits=work.limits,
        )
        self._encoder.compile(work.buckets)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return {
            "room": self._encoder.ahead + max(b.batch for b in work.description.buckets),
            "device": f"{devices[0].device_kind} of {host}",
        }

    def give(
        self, number: int, units: Sequence[tuple[int, np.ndarray]], finished: Sequence[int]
    ) -> None:
        """Takes units, and the entries of them that are in the dataset already.

        Without units it says that nothing more comes for now, so that shards are to be finished.

        Args:
          number: how often something was given before. Ray may deliver one call before another.
          units: pairs of a bucket's number and the unit's entries.
          finished: the entries that are in the dataset.
        """
        with self._changed:
            self._lots[number] = units, finished
            while (lot := self._lots.pop(self._next, None)) is not None:
                self._next += 1
                self._finished.update(lot[1])
                for unit in lot[0] or [None]:
                    self._given.put(unit)

    def come(self, seconds: float) -> Report:
        """Waits at most so long until there is something to report, and returns it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._report.is_empty, seconds)
            report, self._report = self._report, Report()
        return report

    def stop(self) -> None:
        """Finishes the shards with what is encoded so far, and ends."""
        self._stopped.set()
        self._given.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self):
        try:
            with self._encoder:
                while not self._stopped.is_set():
                    self._work_until_pause()
                    self._note(finished=self._encoder.finish())
        except Exception as error:
            kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
            self._note(fault=kind + one_line(error), is_disk=isinstance(error, OSError))

    def _work_until_pause(self):
        if (first := self._given.get()) is None:
            return
        with contextlib.closing(self._encoder.run(self._units(first), self._finished)) as events:
            for came in events:
                self._note(
                    unit=(came.clips, came.frames) if came.units else None,
                    problems=came.problems,
                    short=came.short,
                    finished=came.finished,
                )
                if self._stopped.is_set():
                    return

    def _units(self, unit):
        while unit is not None and not self._stopped.is_set():
            yield unit
            unit = self._given.get()

    def _note(self, *, unit=None, problems=(), short=(), finished=(), fault="", is_disk=False):
        with self._changed:
            report = self._report
            report.units += [] if unit is None else [unit]
            report.problems |= dict(problems)
            report.short |= dict(short)
            report.finished += finished
            report.fault, report.is_disk = fault or report.fault, is_disk or report.is_disk
            self._changed.notify_all()


def _share_of_cores(actors: int) -> int:
    """The number of processes that read for one of the actors of this machine."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = [n for n in ray.nodes() if n["Alive"]]
    gpus = sum(int(n["Resources"].get("GPU", 0)) for n in nodes if n["NodeID"] == here)
    cores = len(os.sched_getaffinity(0))
    return max(cores // (gpus or max(-(-actors // len(nodes)), 1)), 1)


@dataclasses.dataclass
class _Unit:
    """A unit of the plan, and how many actors died while they worked on it and nothing else."""

    bucket: int
    entries: np.ndarray
    deaths: int = 0
    suspect: bool = False
    clips: int = 0
    frames: int = 0


@dataclasses.dataclass
class _Actor:
    """An actor as the driver knows it: what it was given, and what it has not yet written."""

    handle: Any
    asked: Any  # the answer that is awaited
    room: int = 0  # the number of clips that it takes ahead; 0 until it is ready
    given: collections.deque[_Unit] = dataclasses.field(default_factory=collections.deque)
    encoded: list[_Unit] = dataclasses.field(default_factory=list)
    paused: bool = True
    lots: int = 0

    @property
    def clips(self) -> int:
        return sum(len(unit.entries) for unit in self.given)

    def give(self, pairs, finished):
        self.handle.give.remote(self.lots, pairs, finished)
        self.lots, self.paused = self.lots + 1, not pairs


def _knock(address: str) -> None:
    """Tries to reach a cluster whose address has a port; Ray itself would try for minutes.

    Raises:
      OSError: if nobody answers.
    """
    if match := re.fullmatch(r"([^/:]+):(\d+)", address):
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


class RayEngine:
    """Encodes units on a Ray cluster. It is to be used in a `with`, in the main thread.

    Args:
      address: the address of the cluster, as `ray.init` takes it; None takes what RAY_ADDRESS
        names, or else starts Ray on this machine, for the time of the `with`.
      actors: the number of actors; None takes one per GPU of the cluster, or one if there is none.

    Attributes:
      gpus: the number of GPUs of the cluster.
      actors: the number of actors.

    Raises:
      ValueError: if Ray is not installed, or the cluster has too little for so many actors.
      ConnectionError: if there is no cluster at the address.
    """

    def __init__(self, address: str | None = None, actors: int | None = None):
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                f"Ray is not installed ({one_line(error)}): pip install 'odvae_jax[ray]'."
            ) from error
        self._ray = ray
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"include_dashboard": False, "object_store_memory": _STORE}
            options["num_cpus"] = max(len(os.sched_getaffinity(0)), actors or 1)
        before = signal.getsignal(signal.SIGTERM)  # Ray takes it for itself, and keeps it
        try:
            _knock(address)
            ray.init(address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConnectionError(
                f"there is no Ray cluster at {printable(address)}: {one_line(error, 200)}"
            ) from error
        finally:
            signal.signal(signal.SIGTERM, before)
        resources = ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0))
        self.actors = actors or self.gpus or 1
        there, what = (self.gpus, "GPUs") if self.gpus else (int(resources.get("CPU", 0)), "CPUs")
        if self.actors > there:
            ray.shutdown()
            raise ValueError(
                f"{counted(self.actors, 'actor needs', 'actors need')} as many {what}, and the "
                f"cluster has {there}."
            )
        kind = {"num_gpus": 1} if self.gpus else {"num_cpus": 1}
        self._remote = ray.remote(Encoder).options(
            **kind, max_concurrency=4, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._actors: list[_Actor] = []

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_):
        self._ray.shutdown()

    def runner(
        self,
        model: str,
        dtype: str,
        dest: str,
        *,
        verify: bool,
        workers: bool,
        limits: Limits,
    ):
        """Returns what `encode_dataset` takes as `run`.

        Args:
          model: what `ODVAE.from_pretrained` takes; all machines must see the same.
          dtype: the dtype of the computation.
          dest: the path or URL of the dataset's folder.
          verify: whether the model's files must be those that were written.
          workers: whether the settings say how many processes read for an actor.
          limits: when a shard is closed.
        """
        if is_here_only(dest):
            raise ValueError(f"{printable(dest)} is in one process, where no actor is.")

        def run(description, plan, reading, units, finished):
            if reading.source.here_only:
                raise ValueError("videos at memory:// are in one process, where no actor is.")
            self._work = self._ray.put(
                Work(
                    os.getcwd(),
                    model,
                    dtype,
                    verify,
                    dest,
                    description,
                    plan,
                    reading,
                    workers,
                    self.actors,
                    limits,
                    tuple(sorted({bucket for bucket, _ in units})),
                    bool(self.gpus),
                )
            )
            self._folder, self._reading, self._plan = open_folder(dest), reading, plan
            self._plan_name = description.plan
            self._done, self._problems = set(finished), {}
            self._waiting = collections.deque(_Unit(b, entries) for b, entries in units)
            self._most = max(bucket.batch for bucket in description.buckets)
            self._deaths = 0
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
            return self._events()

        return run

    # ------------------------------------------------------------ the actors

    def _start(self) -> None:
        """Starts the actors, and waits until one is ready."""
        if not self._waiting:
            return
        for _ in range(min(self.actors, len(self._waiting))):
            self._begin()
        start, said = time.monotonic(), False
        while not any(actor.room for actor in self._actors):
            for _ in self._answers():
                pass
            if time.monotonic() - start > _LONG and not said:
                said = True
                logger.warning(
                    "no actor is ready after %.0f s; the cluster may have nothing free", _LONG
                )

    def _begin(self) -> None:
        handle = self._remote.remote()
        self._actors.append(_Actor(handle, handle.begin.remote(self._work)))

    def _stop(self) -> None:
        """Lets all actors finish their shards and end.

        What fails here, with a Ray that is told to end at the same time, must not hide why the work
        ended.
        """
        try:
            last = [a.handle.stop.remote() for a in self._actors if a.room]
            if last:
                self._ray.wait(last, num_returns=len(last), timeout=_PATIENCE)
        except Exception as error:
            logger.warning("the actors could not be told to finish: %s", one_line(error, 200))
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor.handle)
        self._actors = []

    def _events(self) -> Iterator[Came]:
        """Hands out units until all are done, and yields what comes of them."""
        try:
            while self._waiting or any(a.given or a.encoded for a in self._actors):
                self._hand_out()
                yield from self._answers()
        finally:
            self._stop()

    def _hand_out(self) -> None:
        """Gives units to actors that are free, and lets those finish that get nothing more."""
        for actor in self._actors:
            if not actor.room or (actor.given and actor.given[0].suspect):
                continue
            units = self._lot(actor)
            if units:
                entries = np.concatenate([unit.entries for unit in units]).tolist()
                pairs = [(unit.bucket, unit.entries) for unit in units]
                actor.give(pairs, [e for e in entries if e in self._done])
                actor.given += units
            elif not self._waiting and not actor.given and not actor.paused:
                actor.give([], [])

    def _lot(self, actor) -> list[_Unit]:
        """Takes units for an actor out of those that wait; a suspect one is given alone."""
        # Towards the end actors get less at once, so that all of them end at about the same time.
        left = sum(len(unit.entries) for unit in self._waiting) if len(self._waiting) < 999 else 1e9
        room = min(actor.room, max(left / (2 * len(self._actors)), 2 * self._most))
        units: list[_Unit] = []
        clips = actor.clips
        while self._waiting and clips < room:
            if self._is_done(self._waiting[0]):  # by an actor that was taken for dead
                self._waiting.popleft()
                continue
            suspect = self._waiting[0].suspect
            if suspect and (actor.given or units):
                break
            units.append(self._waiting.popleft())
            clips += len(units[-1].entries)
            if suspect:
                break
        return units

    # ------------------------------------------------------------ what they answer

    def _answers(self) -> Iterator[Came]:
        """Waits a moment for answers of actors, and yields what they say.

        Raises:
          OSError: if an actor cannot read or write something.
          RuntimeError: if the work of an actor failed otherwise, or too many actors died.
          ValueError: if an actor sees something else than the driver.
        """
        asked = {actor.asked: actor for actor in self._actors}
        ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=_TURN)
        for answer in ready:
            actor = asked[answer]
            try:
                said = self._ray.get(answer)
            except self._ray.exceptions.RayTaskError as error:
                raise _plain(error.cause or error) from None
            except self._ray.exceptions.RayError as error:
                yield self._bury(actor, error)
                continue
            actor.asked = actor.handle.come.remote(_TURN)
            if isinstance(said, Report):
                yield self._noted(actor, said)
            else:
                actor.room = said["room"]
                logger.info("an actor is ready: %s", said["device"])

    def _noted(self, actor, report: Report) -> Came:
        if report.fault:
            raise (OSError if report.is_disk else WorkerError)(report.fault)
        came = Came(
            lost=len(report.problems),
            finished=report.finished,
            problems=report.problems,
            short=report.short,
        )
        for clips, frames in report.units:
            unit = actor.given.popleft()
            unit.clips, unit.frames = clips, frames
            came.clips, came.frames = came.clips + clips, came.frames + frames
            actor.encoded.append(unit)
            self._deaths = 0
        self._problems |= report.problems
        self._done.update(report.finished)
        if report.finished or report.problems:
            actor.encoded = [unit for unit in actor.encoded if not self._is_done(unit)]
        return came

    def _is_done(self, unit) -> bool:
        return all(e in self._done or e in self._problems for e in unit.entries.tolist())

    def _bury(self, actor, error) -> Came:
        """Replaces an actor that died; what it had not written waits again.

        Returns:
          What was encoded and is lost, as negative numbers, and entries that are given up.
        """
        reason = one_line(error, 200)
        logger.warning("an actor died, and is replaced: %s", reason)
        with contextlib.suppress(Exception):
            self._ray.kill(actor.handle)  # it may be out of reach only
        self._actors.remove(actor)
        self._deaths += 1
        if self._deaths >= _DEATHS:
            raise WorkerError(
                f"{_DEATHS} actors died one after another, and nothing was encoded in between; the "
                f"last: {reason}"
            )
        if isinstance(self._folder, LocalFolder):
            self._folder.tidy()
        # It may not have told of the last ones.
        for index in read_indices(self._folder, self._plan_name).values():
            self._done.update(index.entries.tolist())
        came = Came()
        lost = [unit for unit in actor.encoded if not self._is_done(unit)]
        for unit in lost:
            came.clips, came.frames = came.clips - unit.clips, came.frames - unit.frames
        alone = len(actor.given) == 1
        for unit in actor.given:
            unit.deaths += 1 if alone or not unit.deaths else 0
            unit.suspect = True
            if unit.deaths >= _TRIES:
                came.problems |= self._given_up(unit, reason)
        self._problems |= came.problems
        again = [unit for unit in (*lost, *actor.given) if not self._is_done(unit)]
        self._waiting.extendleft(reversed(again))
        self._begin()
        return came

    def _given_up(self, unit, reason) -> dict[int, tuple[str, str]]:
        problems = {}
        for entry in unit.entries.tolist():
            if entry not in self._done:
                name = self._reading.source.name(int(self._plan.video[entry]))
                problems[entry] = (
                    name,
                    f"{name}: {counted(unit.deaths, 'actor')} died of it; {reason}",
                )
        return problems


def _plain(error: BaseException) -> Exception:
    """An actor's error as one of this process, whose message is one line."""
    for kind in (OSError, ValueError):
        if isinstance(error, kind):
            return kind(one_line(error))
    return WorkerError(f"an actor failed: {type(error).__name__}: {one_line(error)}")
