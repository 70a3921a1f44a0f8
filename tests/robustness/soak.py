"""Trains on a CPU while a killer does to the run what really happens to runs.

python -m tests.robustness.soak --minutes=120

First a run is left alone for some of the time. Then another run with the same seed does as many
steps, while its data workers and the run itself are killed, a second training is started in its
folder, its newest checkpoint is damaged, and its file system is filled and freed (where a small
one can be mounted). At the end the weights of both must be equal to the bit, the memory of the
first must have grown by less than 5% after its first tenth, and no file may be left over. The
exit status is 1 if one of these does not hold.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import load_file
from tqdm import tqdm

from odvae_jax import ODVAEConfig
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import SAMPLE_CLIPS
from tests.two_levels import CAUSAL

ROOT = Path(__file__).parents[2]
_ALONE = 0.42
"""The share of the time in which the first run is left alone."""
_STEPS = 10**7  # more than any run here does
_EXPECTED = {"checkpoints", "config.json", "curves.png", "metrics.jsonl", "model", "tensorboard"}
_EXPECTED |= {"metrics-damaged.jsonl"}


def get_config():
    """A causal model of two levels, with two data workers."""
    from odvae_jax.training.config import default_config

    config = default_config()
    config.model = ODVAEConfig(structure=CAUSAL, width=8, groups=4).to_dict()
    config.data.update({"frames": 3, "size": 32, "short_side": 36})
    config.data.update({"workers": 2, "threads": 1, "holdout": 5})
    config.loss.perceptual_weight = 0.0
    config.discriminator.update({"start": 50, "width": 4})
    config.update({"batch_size": 4, "steps": _STEPS, "ema_decay": 0.99, "log_every": 50})
    config.update({"checkpoint_every": 200, "validate_every": 0, "keep_checkpoints": 3})
    return config


class Training:
    """A training in a process of its own.

    Args:
      workdir: the run's folder.
      log: the file that its log is added to. Beside it is the folder of packed videos.
      steps: how far it trains.
    """

    def __init__(self, workdir: Path, log: Path, steps: int = _STEPS):
        self.workdir, self.log = workdir, log
        given = [f"--config={Path(__file__)}", f"--workdir={workdir}", f"--config.steps={steps}"]
        given.append(f"--config.data.path=array_record:{log.parent / 'packed'}")
        # One device, one thread each: sums in the same order in every run.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TMPDIR": str(log.parent / "tmp")}
        (log.parent / "tmp").mkdir(exist_ok=True)
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "train.py", *given],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
            )

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The processes that decode data."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [c for c in children if "tracker" not in " ".join(c.cmdline())]
        return []

    def memory(self) -> int:
        """The bytes that the process and its workers have to themselves."""
        total = 0
        with contextlib.suppress(psutil.Error):
            main = psutil.Process(self.process.pid)
            for one in (main, *main.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += one.memory_full_info().uss
        return total

    def end(self, which: int = signal.SIGTERM, seconds: float = 300) -> int:
        """Sends a signal, and waits until the process has ended; returns its status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(which)
        return self.process.wait(seconds)


def last_step(workdir: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


# ---------------------------------------------------------------- what happens to a run


class Killer:
    """Does things to a training, and keeps what should not have come of them.

    Args:
      start: starts or continues the training.
      rng: the source of randomness.
      disk: the small file system that the run's folder is on; None if there is none.
    """

    def __init__(self, start: Callable[[], Training], rng: random.Random, disk: Path | None):
        self._start, self._rng, self._disk = start, rng, disk
        self.training = start()
        self.done: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def again(self) -> None:
        """Continues the training."""
        self.training = self._start()

    def kill_the_run(self):
        """SIGKILL, as a machine that goes away."""
        self.training.end(signal.SIGKILL)
        self.again()

    def stop_the_run(self):
        """SIGTERM or SIGINT: the run saves and ends."""
        which = self._rng.choice((signal.SIGTERM, signal.SIGINT))
        status = self.training.end(which)
        if status not in (0, 130, 143, -which):
            self.wrong.append(f"status {status} after {which.name}")
        self.again()

    def kill_a_worker(self):
        """SIGKILL to a data worker, as the kernel does it without memory."""
        if workers := self.training.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._rng.choice(workers).kill()

    def start_a_second(self):
        """A second training in the same folder is refused and does no harm."""
        log = self.training.log.with_name("second.log")
        second = Training(self.training.workdir, log)
        try:
            status = second.process.wait(120)
        except subprocess.TimeoutExpired:
            second.end(signal.SIGKILL)
            self.wrong.append("a second training in the same folder was not refused")
            return
        named = str(self.training.process.pid) in log.read_text()[-2000:]
        if self.training.running and (status == 0 or not named):
            self.wrong.append(f"a second training ended so: {log.read_text()[-500:]}")

    def damage_the_checkpoint(self):
        """The newest checkpoint loses a file, half of one, or a bit, while the run is not there."""
        self.training.end(signal.SIGKILL)
        folder = self.training.workdir / "checkpoints" / str(last_step(self.training.workdir))
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
        if files and len([*folder.parent.glob("[0-9]*")]) > 1:
            path = self._rng.choice(files)
            content = bytearray(path.read_bytes())
            kind = self._rng.randrange(3)
            if kind == 0:
                path.unlink()
            elif kind == 1:
                path.write_bytes(content[: len(content) // 2])
            else:
                content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
                path.write_bytes(content)
        with (self.training.workdir / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 1, "lo\xff\n')
        self.again()

    def fill_the_disk(self):
        """The file system is full for some seconds."""
        if self._disk is None:
            return
        filler = self._disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 2**16):
                pass
        time.sleep(self._rng.uniform(5, 20))
        filler.unlink(missing_ok=True)

    EVENTS = (
        kill_the_run,
        stop_the_run,
        kill_a_worker,
        kill_a_worker,
        start_a_second,
        damage_the_checkpoint,
        fill_the_disk,
    )

    def torment(self, steps: int, seconds: float) -> None:
        """Goes on until the training has done its steps, for some time with events."""
        end, due = time.monotonic() + seconds, time.monotonic() + 20
        coming: list[Callable] = []
        with tqdm(total=steps, unit="step", dynamic_ncols=True) as bar:
            while self.training.running or last_step(self.training.workdir) < steps:
                if not self.training.running:
                    self._ended_by_itself()
                if due < time.monotonic() < end:
                    if not coming:  # each kind comes in every round
                        coming = self._rng.sample(self.EVENTS, len(self.EVENTS))
                    event = coming.pop()
                    event(self)
                    self.done[event.__name__] += 1
                    due = time.monotonic() + self._rng.uniform(5, 40)
                bar.update(last_step(self.training.workdir) - bar.n)
                bar.set_postfix_str(f"{self.done.total()} events, {len(self.wrong)} wrong")
                time.sleep(0.5)
        if status := self.training.process.wait():
            self.wrong.append(f"the run ended with status {status}")

    def _ended_by_itself(self):
        """Workers that are killed too often, and a full disk at the end, end a run; it goes on."""
        said = self.training.log.read_text(errors="replace")[-3000:]
        if "worker" not in said and "disk" not in said and "No space" not in said:
            self.wrong.append(f"the run ended by itself: {said[-1000:]}")
        self.done["ended by itself, and went on"] += 1
        self.again()


# ---------------------------------------------------------------- what must hold at the end


def differing_weights(alone: Path, disturbed: Path) -> list[str]:
    """The parameters of the exported models that differ in a bit."""
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (alone, disturbed))
    names = ours.keys() | theirs.keys()
    return [n for n in sorted(names) if not np.array_equal(ours.get(n), theirs.get(n))]


def left_over(workdir: Path, temporary: Path, shared_before: set[str]) -> list[str]:
    """The files that nobody needs: unfinished ones, locks, temporary ones, shared memory."""
    strange = [p.name for p in workdir.iterdir() if p.name not in _EXPECTED]
    strange = [name for name in strange if not name.startswith("damaged-")]
    for path in (workdir / "checkpoints").iterdir():
        if not path.name.isdigit() and not path.name.startswith(("damaged-", "digests")):
            strange.append(f"checkpoints/{path.name}")
    strange += [str(p) for p in workdir.rglob("*.part")] + [str(p) for p in temporary.iterdir()]
    strange += [f"/dev/shm/{name}" for name in shared() - shared_before]
    return strange


def shared() -> set[str]:
    """The names in shared memory."""
    with contextlib.suppress(OSError):
        return set(os.listdir("/dev/shm"))
    return set()


def growth(samples: list[int]) -> float:
    """How much the memory has grown after the first tenth, by the line that fits best.

    An allocator gives memory back in its own time, so single samples differ by some percent.
    """
    kept = np.asarray(samples[len(samples) // 10 :], float)
    if len(kept) < 20:
        return 0.0
    slope, first = np.polyfit(np.arange(len(kept)), kept, 1)
    return float(slope * len(kept) / first)


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path | None]:
    """A file system of this size in memory; None if it cannot be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(command, capture_output=True).returncode == 0:
            try:
                yield folder
            finally:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    yield None


def main() -> int:
    """Runs the soak and prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=120, help="About how long.")
    parser.add_argument("--seed", type=int, default=0, help="What happens, and when.")
    given = parser.parse_args()
    seconds, before = given.minutes * 60, shared()
    temporary = tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True)
    with temporary as name, small_disk(Path(name) / "disk", 64) as disk:
        folder = Path(name)
        pack_videos(SAMPLE_CLIPS, folder / "packed", short_side=36)
        alone = Training(folder / "alone", folder / "alone.log")
        samples = _left_alone(alone, _ALONE * seconds)
        if status := alone.end():
            print((folder / "alone.log").read_text()[-3000:])
            print(f"the run that was left alone ended with status {status}")
            return 1
        steps = last_step(alone.workdir)
        workdir = (disk or folder) / "disturbed"
        killer = Killer(
            lambda: Training(workdir, folder / "disturbed.log", steps),
            random.Random(given.seed),
            disk,
        )
        killer.torment(steps, 0.5 * seconds)
        wrong = killer.wrong
        wrong += [f"{n} differs" for n in differing_weights(alone.workdir, workdir)]
        for one in (alone.workdir, workdir):
            wrong += [f"left over: {n}" for n in left_over(one, folder / "tmp", before)]
        if (grown := growth(samples)) > 0.05:
            wrong.append(f"the memory grew by {grown:.1%}")
        print("| event | count |\n|---|---|")
        print("\n".join(f"| {n.replace('_', ' ')} | {c} |" for n, c in killer.done.items()))
        print(
            f"{steps} steps; memory after the first tenth: {grown:+.1%}; disk: {disk is not None}"
        )
        damaged = sum(1 for _ in (workdir / "checkpoints").glob("damaged-*"))
        print(f"{damaged} damaged checkpoints were set aside; {len(wrong)} things are wrong")
        print("\n".join(wrong[:50]))
        if wrong:
            print((folder / "disturbed.log").read_text(errors="replace")[-5000:])
    return 1 if wrong else 0


def _left_alone(training: Training, seconds: float) -> list[int]:
    """Waits, and returns the memory at every second."""
    samples, end = [], time.monotonic() + seconds
    with tqdm(total=round(seconds), unit="s", dynamic_ncols=True) as bar:
        while time.monotonic() < end and training.running:
            time.sleep(1)
            bar.update()
            bar.set_postfix_str(f"{last_step(training.workdir)} steps alone")
            if (training.workdir / "metrics.jsonl").exists():  # the programs are compiled
                samples.append(training.memory())
    return samples


if __name__ == "__main__":
    sys.exit(main())
