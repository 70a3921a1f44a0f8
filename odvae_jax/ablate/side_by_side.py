"""Several trainings at the same time, each in a process of its own."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from odvae_jax.files import printable
from odvae_jax.training.curves import METRICS_FILE, read_metrics

logger = logging.getLogger("odvae_jax.ablate")
LOG_FILE = "train.log"
"""The file for what a training says, in its folder."""
_LOOK_EVERY = 0.5  # seconds
_LAST_LINES = 8  # of the log of a training that failed
_SHOWN = 4  # runs beside the progress bar
_PARENT = "ODVAE_JAX_PARENT"  # in the environment of a process that is one of several
_MEMORY = ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_MEMORY += ("XLA_CLIENT_MEM_FRACTION",)


@dataclasses.dataclass(frozen=True)
class Child:
    """One training that a process does.

    Attributes:
      name: the training's name, which is that of its folder.
      program: stands for the compiled programs; trainings in which it is the same share them.
      steps: the number of steps of the training.
    """

    name: str
    program: str
    steps: int


@dataclasses.dataclass
class _Running:
    child: Child
    process: subprocess.Popen
    device: str | None


def train_side_by_side(
    children: Sequence[Child],
    command: Sequence[str],
    workdir: Path,
    at_once: int,
    *,
    done: int = 0,
) -> list[str]:
    """Does trainings in processes, several at the same time, and shows a progress bar.

    The processes are dealt out over the GPUs. The first training of a program compiles it; others
    that need the same begin when it is running, and find it in the compilation cache. If a training
    fails, the others go on.

    Args:
      children: the trainings.
      command: the words of the command that does one, without `--only=NAME`.
      workdir: the folder of the ablation.
      at_once: the number of processes at the same time.
      done: the number of trainings that were done before.

    Returns:
      The names of the trainings that failed.

    Raises:
      InterruptedError: if SIGINT, SIGTERM or SIGHUP came. The processes were told to save and to
        end, and have ended. A second signal kills them.
    """
    with _Signals() as signals:
        several = _SideBySide(children, command, workdir, at_once, done)
        with contextlib.closing(several):
            while several.goes_on():
                if signals.count:
                    several.stop(signals)
                    raise InterruptedError(
                        f"{printable(workdir)}: stopped, and the trainings have saved what they "
                        "did; the same command goes on."
                    )
                time.sleep(_LOOK_EVERY)
            return several.failed


def carry_out(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs a command, and returns its exit status; that of a signal is negative.

    Args:
      command: the words of the command.
      environment: its environment; None takes that of this process.

    Raises:
      InterruptedError: if SIGINT, SIGTERM or SIGHUP came, after the command was ended.
    """
    with (
        _Signals() as signals,
        subprocess.Popen(command, env=environment, start_new_session=True) as process,
    ):
        while process.poll() is None:
            if signals.count:
                process.terminate()
                process.wait()
                raise InterruptedError("stopped; the same command goes on.")
            time.sleep(_LOOK_EVERY / 5)
        return process.returncode


class _SideBySide:
    """The processes, and the progress bar."""

    def __init__(self, children, command, workdir: Path, at_once: int, done: int):
        self._waiting = list(children)
        self._command, self._workdir, self._at_once = command, workdir, at_once
        self._devices = gpus(os.environ)
        self._running: list[_Running] = []
        self._done, self._count = done, done + len(children)
        self._steps = {child.name: self._steps_of(child) for child in children}
        self._all = list(children)
        self.failed: list[str] = []
        self._bar = tqdm(
            total=sum(child.steps for child in children),
            initial=sum(self._steps.values()),
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def goes_on(self) -> bool:
        """Looks after the processes, begins others, and says whether there is one."""
        for running in [r for r in self._running if r.process.poll() is not None]:
            self._running.remove(running)
            self._ended(running)
        for running in self._running:
            self._steps[running.child.name] = self._steps_of(running.child)
        while len(self._running) < self._at_once and (child := self._next()) is not None:
            self._waiting.remove(child)
            self._running.append(self._begun(child))
        self._show()
        return bool(self._running)

    def stop(self, signals: _Signals) -> None:
        """Lets all processes save, and waits for them; a second signal kills them."""
        logger.warning("stopping: %d trainings save what they did", len(self._running))
        told = 0
        while any(r.process.poll() is None for r in self._running):
            if told < min(signals.count, 2):
                told += 1
                for running in self._running:
                    running.process.send_signal(signal.SIGTERM if told == 1 else signal.SIGKILL)
            time.sleep(_LOOK_EVERY / 5)

    def close(self) -> None:
        """Ends whatever runs still, and the progress bar."""
        for running in self._running:
            if running.process.poll() is None:
                running.process.kill()
            running.process.wait()
        self._bar.close()

    def _next(self) -> Child | None:
        """The first that waits and whose programs nobody else is compiling now."""
        compiling = {r.child.program for r in self._running} - {
            child.program for child in self._all if self._steps[child.name]
        }
        return next((c for c in self._waiting if c.program not in compiling), None)

    def _begun(self, child: Child) -> _Running:
        loads = collections.Counter(r.device for r in self._running)
        device = min(self._devices, key=lambda d: loads[d]) if self._devices else None
        folder = self._workdir / child.name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [*self._command, f"--only={child.name}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(os.environ, device),
                start_new_session=True,  # Ctrl-C comes here alone, and is passed on once
            )
        return _Running(child, process, device)

    def _ended(self, running: _Running) -> None:
        if running.process.returncode == 0:
            self._done += 1
            return
        name = running.child.name
        self.failed.append(name)
        log = self._workdir / name / LOG_FILE
        last = "\n".join(f"  {line}" for line in _last_lines(log))
        with self._bar.external_write_mode():
            logger.error(
                "%s failed with exit status %d; the last lines of %s:\n%s",
                name,
                running.process.returncode,
                printable(log),
                last,
            )

    def _show(self) -> None:
        steps = [f"{r.child.name} {self._steps[r.child.name]}" for r in self._running]
        shown = ", ".join(steps[:_SHOWN]) + (", …" if len(steps) > _SHOWN else "")
        text = f"{self._done} of {self._count} runs"
        text += f", {len(self.failed)} failed" if self.failed else ""
        self._bar.set_postfix_str(f"{text}; {shown}" if shown else text, refresh=False)
        self._bar.n = sum(
            c.steps if self._finished(c) else min(self._steps[c.name], c.steps) for c in self._all
        )
        self._bar.refresh()

    def _finished(self, child: Child) -> bool:
        waits = child in self._waiting or any(r.child == child for r in self._running)
        return not waits and child.name not in self.failed

    def _steps_of(self, child: Child) -> int:
        """How many steps a training has reported."""
        with contextlib.suppress(OSError):
            if records := read_metrics(self._workdir / child.name / METRICS_FILE):
                return int(records[-1]["step"])
        return 0


class _Signals:
    """Counts the signals that ask this process to end, while it is entered."""

    def __init__(self):
        self.count = 0

    def __enter__(self) -> _Signals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(which) != signal.SIG_IGN:  # as nohup has it
                    self._before[which] = signal.signal(which, self._note)
        return self

    def _note(self, which, frame):
        self.count += 1

    def __exit__(self, *_) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)


def end_with_parent() -> None:
    """Lets this process save and end if the process that began it as one of several dies."""
    if (parent := os.environ.get(_PARENT)) is None:
        return

    def watch():
        while os.getppid() == int(parent):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def gpus(environment: Mapping[str, str]) -> list[str]:
    """Returns the GPUs as CUDA_VISIBLE_DEVICES names them, without taking hold of one.

    Args:
      environment: the environment of the process, which may leave some of them out.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not re.search("cuda|gpu", platforms):
        return []
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i in range(len(re.findall(r"^GPU \d+:", listed.stdout, re.M)))]


def with_parent(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment in which `end_with_parent` finds this process.

    Args:
      environment: the environment of this process.
    """
    return dict(environment) | {_PARENT: str(os.getpid())}


def environment(of_this: Mapping[str, str], device: str | None) -> dict[str, str]:
    """Returns the environment of a process that shares a GPU with others.

    JAX takes three quarters of a GPU's memory when it starts; here it takes what it needs, unless
    the environment says how much.

    Args:
      of_this: the environment of this process.
      device: the GPU, as CUDA_VISIBLE_DEVICES names it; None if there is none.
    """
    own = with_parent(of_this)
    if not any(name in own for name in _MEMORY):
        own["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if device is not None:
        own["CUDA_VISIBLE_DEVICES"] = device
    own.setdefault("TQDM_MININTERVAL", "30")  # a line in the log each time
    return own


def _last_lines(log: Path) -> Iterator[str]:
    lines = re.split(r"[\r\n]+", log.read_text(errors="backslashreplace"))
    yield from [line for line in lines if line.strip()][-_LAST_LINES:]
