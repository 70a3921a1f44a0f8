"""The training run: data in, checkpoints, metrics and pictures out.

It goes from the first step or the last saved. What is trained is a task
(`odvae_jax.training.tasks`); no model is known here.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from odvae_jax.compilation import DeviceMemoryError, bytes_needed, is_too_large, room_on
from odvae_jax.files import BusyError, counted, one_line, write_whole
from odvae_jax.sharding import replicated, state_shardings
from odvae_jax.training import fields
from odvae_jax.training.checkpoints import CONFIG_FILE, Checkpoints, begun_config, has_checkpoint
from odvae_jax.training.guard import FAILS, GOES_ON, STOPS, guarded
from odvae_jax.training.lock import RunLock
from odvae_jax.training.reporting import Reporter
from odvae_jax.training.tasks import Metrics, Task, counters

logger = logging.getLogger(__name__)

_IN_FLIGHT = 2  # steps that the host may be ahead of the devices
# XLA overlaps the exchange between GPUs with other operations, and keeps more in memory for it.
_ON_SEVERAL_GPUS = (
    " On several GPUs, XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=false in the "
    "environment also saves memory."
)
_LAST_SECONDS = 10  # that a process which failed waits for the others to end with it


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    devices: Sequence[jax.Device] | None = None,
    memory: int | None = None,
) -> Any:
    """Trains until `config.steps`, on these devices or on all, what `config.task` names.

    Continues from the last checkpoint in `workdir` if there is one, on any number of devices. With
    several processes, each calls it with the same arguments, after `jax.distributed.initialize`;
    `workdir` is on a disk that all of them see.

    One run at a time writes into `workdir`, and holds its lock meanwhile.

    Writes into `workdir`: `checkpoints/`, `tensorboard/`, `metrics.jsonl`, `config.json` and, at
    the end or when told to stop by SIGINT or SIGTERM, what the task exports. An autoencoder exports
    `curves.png` and `model/`: the EMA weights as `ODVAE.from_pretrained` reads them.

    Args:
      config: the run's config; fields that it lacks have the task's defaults.
      workdir: the folder of the run.
      devices: the devices that train; None takes all.
      memory: the bytes that a step and all that it is given may take on a device. None takes what
        the devices have, less what other arrays take there; if they do not say it, as CPUs do not,
        the first step is tried without asking.

    Returns:
      The task's state after the last step; an autoencoder's is a `TrainState`.

    Raises:
      ValueError: for a config that cannot work or is not that of the run in `workdir`, data that
        cannot be used, or a pretrained model that does not fit.
      FileNotFoundError: if the data, the pretrained model or LPIPS's weights are missing.
      DeviceMemoryError: if the memory of a device does not suffice, before the first step if the
        compiled program says so. The message says what to change.
      FloatingPointError: if too many steps in a row had no finite loss and gradient.
      BusyError: if another run is in `workdir`, or has taken it from this one.
      KeyboardInterrupt: if SIGINT or SIGTERM comes before there is something to save.
      OSError: if `workdir` cannot be written, or the last checkpoint could not be saved.
      Exception: whatever the data raises; the steps that are done are saved first.
    """
    if not os.fspath(workdir):
        raise ValueError("workdir is empty; expected the path of a folder for the run.")
    workdir = Path(workdir).absolute()
    if memory is not None and memory < 1:
        raise ValueError(f"memory={memory} must be at least 1: the bytes of a device.")
    config = fields.filled(config)
    config = fields.task_class(config).completed(config, lambda: _begun(workdir))
    mesh = fields.check(config, devices)
    with _not_kept_by_others(), _StopSignal() as stop, RunLock(workdir) as lock:
        return _train(config, workdir, mesh, stop, lock, memory)


@contextlib.contextmanager
def _not_kept_by_others() -> Iterator[None]:
    """A program that ends with an error ends though other processes still wait for this one.

    They fail then, each within JAX's time limit, so that all can be started again.
    """
    try:
        yield
    except BaseException:
        if jax.process_count() > 1:
            ending = threading.Event()

            def end():
                ending.wait()
                time.sleep(_LAST_SECONDS)
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(Exception):
                        stream.flush()
                os._exit(1)

            # It is begun now, for a program that is ending can begin no thread.
            threading.Thread(target=end, daemon=True).start()
            atexit.register(ending.set)  # before JAX waits for the others
        raise


def _begun(workdir: Path) -> dict[str, Any] | None:
    """The config of the run that is to be continued; None if no whole one is there."""
    return begun_config(workdir) if has_checkpoint(workdir) else None


def _train(config, workdir: Path, mesh: Mesh, stop: _StopSignal, lock: RunLock, memory) -> Any:
    continues = has_checkpoint(workdir)
    if (begun := _begun(workdir)) is not None:
        fields.check_continues(begun, config, str(workdir))
    task = fields.task_class(config)(config, mesh)
    try:
        return _carry_out(task, workdir, continues, stop, lock, memory)
    except jax.errors.JaxRuntimeError as error:
        if not is_too_large(error):
            raise
        # The cause would be pages of what lies where; the log of the device's own library has it.
        raise DeviceMemoryError(
            f"the memory of a device does not suffice ({one_line(error)}): "
            f"{_advice(task, 0.5, has_checkpoint(workdir))}"
        ) from None


def _carry_out(task: Task, workdir: Path, continues: bool, stop, lock: RunLock, memory) -> Any:
    config, mesh = task.config, task.mesh
    abstract, constants = _abstract(task), task.constants()
    initial = None if continues else task.initial()
    # Nothing but the lock has been written so far: what cannot work leaves no folder.
    if jax.process_count() > 1:  # nobody looks at the folder after another has begun to write
        multihost_utils.sync_global_devices("begin")
    with Checkpoints(workdir, config) as checkpoints:
        state, position = _begin(abstract, initial, checkpoints)
        del initial
        first = int(state.step)
        if first >= config.steps:
            logger.info("%s has done its %s already", workdir, counted(config.steps, "step"))
        if jax.process_index() == 0:
            write_whole(workdir / CONFIG_FILE, config.to_json(indent=2) + "\n")
        reporter = Reporter(workdir, first, task.per_step(), task.flops() / mesh.size)
        with contextlib.closing(reporter):
            steps = _Steps(task, constants, reporter, memory, continues)
            run = _Run(task, steps, position, checkpoints, reporter, stop, lock)
            stop.begin()
            state = run.to_the_end(state, first)
    lock.check()
    if int(state.step) > 0:
        task.export(state, workdir)
    checkpoints.check_saved()
    return state


def _abstract(task: Task) -> Any:
    """The state's shapes, dtypes and how each array is spread over the mesh."""
    abstract = task.abstract()
    if missing := [name for name in counters() if not hasattr(abstract, name)]:
        raise TypeError(
            f"the state of {type(task).__name__}, a {type(abstract).__name__}, has no field "
            f"{missing[0]!r}; expected a NamedTuple with the fields {list(counters())} among its "
            "own, which odvae_jax.training.tasks.counters makes and the loop counts in."
        )
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract,
        state_shardings(task.mesh, abstract),
    )


def _begin(abstract: Any, initial: Any, checkpoints: Checkpoints) -> tuple[Any, dict[str, int]]:
    """The state to go on from, spread over the mesh, and the position in the data."""
    if initial is None:
        return checkpoints.restore(abstract)

    def place(array, shape):  # each process has the whole, its devices take their parts
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, shape.sharding, whole.__getitem__)

    return jax.tree.map(place, initial, abstract), {}


class _Run:
    """The steps of a run, with all that happens between them."""

    def __init__(
        self,
        task: Task,
        steps: _Steps,
        position: dict[str, int],
        checkpoints: Checkpoints,
        reporter: Reporter,
        stop: _StopSignal,
        lock: RunLock,
    ):
        self._task, self._config = task, task.config
        self._feeds = task.feeds(position)
        self._steps = steps
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._stop, self._lock = stop, lock
        self._voices = _Voices(task.mesh)
        # Those that the host is ahead of the devices; metrics of the others since the last report.
        self._sent: collections.deque[_Sent] = collections.deque()
        self._pending: list[Metrics] = []
        self._word, self._error = GOES_ON, None
        self._stands_in = False

    def to_the_end(self, state: Any, first: int) -> Any:
        """The state after `config.steps` steps, or after the one in which a signal came.

        If the data fails, what is done is saved, and the error is raised.
        """
        config = self._config
        with (
            contextlib.closing(self._feeds),
            tqdm(
                total=config.steps,
                initial=first,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
                disable=jax.process_index() > 0,
            ) as bar,
        ):
            # Without it a process could take no part in a step for which it has no batch.
            covered = self._voices.alone or self._feeds.stand_in(first) is not None
            for step in range(first + 1, config.steps + 1):
                position = dict(self._feeds.position)
                batch = self._batch(step, covered)
                if batch is None:
                    self._look(0)
                    self._end_before(step, state, position, first, self._word)
                    break
                said = self._voices.say(self._word)
                state, metrics = self._steps(self._task.kind(step - 1), state, batch, *said)
                self._sent.append(_Sent(step, position, metrics))
                pauses = step == config.steps or self._is_time_for_something(step)
                if uncounted := self._look(0 if pauses else _IN_FLIGHT):
                    sent, word = uncounted
                    self._end_before(sent.step, state, sent.position, first, word)
                    break
                if self._lock.lost and self._voices.alone:
                    self._check_lock()  # several processes look together, before they save
                self._after(step, state, bar)
                bar.update()
        return state

    def _batch(self, step: int, covered: bool) -> Any | None:
        """The batch of a step, or what stands in for it; None if a process alone has none."""
        if not self._stands_in:
            try:
                with self._reporter.waiting_for_data(), self._stop.raised(covered):
                    batch = self._feeds(step - 1)
            except Stopped:
                self._word = STOPS
            except Exception as error:  # whatever sources, or tasks of one's own, raise
                if not covered:
                    logger.error(
                        "the last checkpoint is step %s: these feeds have no stand_in, without "
                        "which one of several processes cannot save",
                        self._checkpoints.latest,
                    )
                    raise
                self._word, self._error = FAILS, error
            else:
                if self._stop.requested:
                    self._word = STOPS
                return batch
            self._stands_in = True
        return None if self._voices.alone else self._feeds.stand_in(step - 1)

    def _look(self, ahead: int) -> tuple[_Sent, int] | None:
        """Waits until at most so many steps are under way.

        Returns the first step that did not count since a process had no batch for it, and why.
        Every process looks after the same steps, so that all find the same.
        """
        while len(self._sent) > ahead:
            sent = self._sent.popleft()
            word = self._voices.heard(sent.metrics)
            if word != GOES_ON:
                return sent, word
            self._pending.append(sent.metrics)
        return None

    def _end_before(
        self, step: int, state: Any, position: dict[str, int], first: int, word: int
    ) -> None:
        """Saves what was done before a step for which a process has no batch."""
        done = step - 1
        if done > first:
            if self._pending:
                self._reporter.train(done, jax.device_get(self._pending))
                self._pending.clear()
            self._save(done, state, position)
        logger.warning("stopped after step %d; run the same command to continue", done)
        if word == FAILS:
            raise self._error or InterruptedError(
                "the data of another process of this run failed, as that process says; run the "
                "same command to continue."
            )

    def _save(self, step: int, state: Any, position: dict[str, int]) -> None:
        self._check_lock()
        jax.block_until_ready(state)
        # While steps are skipped the last good checkpoint is not pushed out.
        if int(state.skipped_in_a_row) == 0:
            self._checkpoints.save(step, state, position | {"seed": self._config.seed})

    def _check_lock(self) -> None:
        try:
            self._lock.check()
        except BusyError:
            self._checkpoints.abandon()
            raise

    def _is_time_for_something(self, step: int) -> bool:
        config = self._config
        every = (config.log_every, config.checkpoint_every, config.validate_every)
        return any(n and step % n == 0 for n in every)

    def _after(self, step: int, state: Any, bar: tqdm) -> None:
        """Reports, saves and measures, each when it is time to."""
        config = self._config
        last = step == config.steps
        if step % config.log_every == 0 or last:
            values = self._reporter.train(step, jax.device_get(self._pending))
            self._pending.clear()
            counted = next(iter(self._task.per_step()))
            mean = values.get("loss_per_value")
            bar.set_postfix_str(
                f"loss {values.get('loss', np.nan):.4g}"
                + ("" if mean is None else f" ({mean:.4g} per value)")
                + f", {values[f'{counted}_per_second']:.3g} {counted}/s"
            )
            _check_guard(config, values, self._checkpoints)
        with self._reporter.away():
            if step % config.checkpoint_every == 0 or last:
                self._save(step, state, self._feeds.position)
            if config.validate_every and (step % config.validate_every == 0 or last):
                self._reporter.validate(step, self._task.validate(step, state))


class _Sent(NamedTuple):
    """A step that the devices have been given."""

    step: int
    position: dict[str, int]  # in the data, before it
    metrics: Metrics


class _Voices:
    """What the processes say to each other with every step, without a program of its own."""

    def __init__(self, mesh: Mesh):
        self.alone = jax.process_count() == 1
        self._mesh = mesh
        self._words: dict[int, jax.Array] = {}

    def say(self, word: int) -> tuple[jax.Array, ...]:
        """What the guarded step is given besides; nothing if there are no others."""
        if self.alone:
            return ()
        if word not in self._words:
            here = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
            self._words[word] = jax.make_array_from_callback(
                (self._mesh.size,), here, lambda _: np.array([word], np.int32)
            )
        return (self._words[word],)

    def heard(self, metrics: Metrics) -> int:
        """Waits for a step and returns the least word in it, which leaves its metrics."""
        jax.block_until_ready(metrics)
        return GOES_ON if self.alone else int(metrics.pop("said"))


class _Steps:
    """The compiled steps, each compiled when it is first needed."""

    def __init__(
        self,
        task: Task,
        constants: Any,
        reporter: Reporter,
        memory: int | None,
        continues: bool,
    ):
        self._task, self._mesh = task, task.mesh
        self._memory, self._continues = memory, continues
        self._constants = constants
        self._reporter = reporter
        self._compiled: dict[Any, Callable] = {}

    def __call__(self, kind: str, state: Any, batch: Any, *said: jax.Array):
        leaves, structure = jax.tree.flatten(batch)
        key = kind, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._compiled:
            with self._reporter.away():
                self._compiled[key] = self._compile(kind, state, batch, *said)
        return self._compiled[key](state, batch, self._constants, *said)

    def _compile(self, kind, state, batch, *said):
        step = guarded(self._task.step(kind), self._mesh)
        shardings = (state_shardings(self._mesh, state), replicated(self._mesh))
        start = time.monotonic()
        jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        compiled = jitted.lower(state, batch, self._constants, *said).compile()
        memory = compiled.memory_analysis()
        logger.info(
            "compiled the step in %.0f s; a device needs %.2f GiB for it, and %.2f GiB for what "
            "it keeps",
            time.monotonic() - start,
            memory.temp_size_in_bytes / 2**30,
            memory.argument_size_in_bytes / 2**30,
        )
        self._check_memory(compiled)
        return compiled

    def _check_memory(self, compiled: jax.stages.Compiled) -> None:
        """Raises DeviceMemoryError if a device has not what a compiled step needs."""
        needed, room = bytes_needed(compiled), self._memory
        if room is None:  # what the step is given lies there already
            own = compiled.memory_analysis().argument_size_in_bytes
            room = room_on(self._mesh.local_devices, own)
        if room is not None and needed > room:
            raise DeviceMemoryError(
                f"a step needs {needed / 2**30:.3g} GiB on a device, which has "
                f"{room / 2**30:.3g} GiB for it: "
                f"{_advice(self._task, max(room, 0) / needed, self._continues)}"
                f"{_ON_SEVERAL_GPUS if _are_several_gpus(self._mesh) else ''}"
            )


def _are_several_gpus(mesh: Mesh) -> bool:
    return mesh.size > 1 and mesh.local_devices[0].platform == "gpu"


def _advice(task: Task, share: float, continues: bool) -> str:
    """What to change where the memory does not suffice; only what a run may be continued with."""
    config = task.config
    fixed, free = (task.fixed(config), task.free(config)) if continues else ((), ())
    changes = {
        name: value
        for name, value in task.less_memory(share).items()
        if not any(name == one or name.startswith(f"{one}.") for one in fixed)
        or any(name == one for one in free)
    }
    if not changes:
        return "more devices that share it, or a smaller batch or model, need less on each."
    options = [f"--config.{name}={value}" for name, value in changes.items()]
    if continues and not changes.keys() <= set(free):
        options.append("and --config.continue_with_changes with them")
    return f"what needs less is {', '.join(options)}, or several of them (docs/training.md)."


def _check_guard(config, values: dict[str, float], checkpoints: Checkpoints) -> None:
    count = int(values["skipped_in_a_row"])
    if count == 0:
        return
    logger.warning(
        "%s had no finite loss and gradient and changed nothing (%d in a row)",
        counted(int(values["skipped_steps"]), "step"),
        count,
    )
    if count >= config.max_skipped_in_a_row:
        checkpoints.wait()
        good = (
            "none" if checkpoints.latest is None else checkpoints.folder / str(checkpoints.latest)
        )
        raise FloatingPointError(
            f"the last {counted(count, 'step')} had no finite loss and gradient, and changed "
            f"nothing (config.max_skipped_in_a_row={config.max_skipped_in_a_row}). The last good "
            f"checkpoint is {good}; look at the metrics before it, and continue with a lower "
            "learning rate or with config.optimizer.clip_norm."
        )


class Stopped(BaseException):
    """SIGINT or SIGTERM came while the run waits for data."""


class _StopSignal:
    """Notes SIGINT and SIGTERM, so that the run can save and end after the step under way.

    Before the first step, when there is nothing to save, they end the run at once.
    """

    def __init__(self):
        self._requested = False
        self._raises: type[BaseException] | None = KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._requested

    def begin(self) -> None:
        """From now on signals are noted: there are steps to be saved."""
        self._raises = None

    @contextlib.contextmanager
    def raised(self, may: bool) -> Iterator[None]:
        """A signal, or one that has come, raises Stopped inside this context, if it may.

        Python goes on waiting for a lock or a queue after a handler that returns.
        """
        if not may:
            yield
            return
        try:
            self._raises = Stopped
            if self._requested:
                raise Stopped
            yield
        finally:
            self._raises = None

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM):
                self._before[which] = signal.signal(which, self._note)
        return self

    def _note(self, which, frame):
        if self._requested and which == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        if self._raises is not None:
            raises, self._raises = self._raises, None
            raise raises

    def __exit__(self, *_):
        for which, handler in self._before.items():
            signal.signal(which, handler)
