"""Runs that are killed, that have no disk left, and whose losses are not finite."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odvae_jax.training.checkpoints import Checkpoints
from odvae_jax.training.config import flat
from odvae_jax.training.tasks import autoencoder
from tests.training.test_loop import lines, timeless, tiny, train, videos  # noqa: F401

ROOT = Path(__file__).parents[2]


def arguments(config, workdir):
    """The command that trains with a config of `tiny`."""
    fields = flat(config.to_dict()).items()
    row = "model.structure."  # it stands in the config file
    given = [f"--config.{name}={value}" for name, value in fields if not name.startswith(row)]
    denoises = config.get("task") == "denoiser"
    file = "--config=latte:sky" if denoises else f"--config={ROOT}/tests/two_levels.py"
    return [sys.executable, "train.py", file, f"--workdir={workdir}", *given]


def start(config, workdir, *more, devices=2):
    """A training in a process of its own, whose log is beside its folder's folder."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [*arguments(config, workdir), *more]
    path = workdir.parent.parent / f"{workdir.name}.log"
    with path.open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
    process.log = path
    return process


def finished(*processes):
    """Waits until all have ended well; as soon as one has not, none goes on waiting for it."""
    deadline = time.monotonic() + 300
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or any(process.poll() for process in processes):
            break
        time.sleep(0.1)
    for process in processes:
        process.kill()
    said = "\n".join(process.log.read_text()[-5000:] for process in processes)
    assert [process.wait() for process in processes] == [0] * len(processes), said


def wait_until(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None:
            return
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.full
@pytest.mark.parametrize("kills", [1, 10])
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(videos, tmp_path, kills):  # noqa: F811
    fields = {"checkpoint_every": 4, "validate_every": 0}
    config = tiny(videos, steps=12 * kills, batch_size=4, **fields)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finished(start(config, alone))
    metrics, checkpoints = killed / "metrics.jsonl", killed / "checkpoints"
    rng = random.Random(0)
    for kill in range(kills):
        process = start(config, killed)
        size = metrics.stat().st_size if metrics.exists() else 0
        wait_until(lambda s=size: metrics.exists() and metrics.stat().st_size > s, process)
        if kill % 2 == 0:  # while a checkpoint is being written
            wait_until(lambda: any("tmp" in p.name for p in checkpoints.iterdir()), process)
        else:
            time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"
    finished(start(config, killed))
    weights = [(d / "model" / "model.safetensors").read_bytes() for d in (alone, killed)]
    assert weights[0] == weights[1]
    assert timeless(alone) == timeless(killed)
    steps = [r["step"] for r in lines(killed)]
    assert steps == list(range(1, config.steps + 1))
    events = EventAccumulator(str(killed / "tensorboard"), {"scalars": 0}).Reload()
    assert [e.step for e in events.Scalars("loss")] == steps


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own with room for few checkpoints."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only who may mount a disk can fill it")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.full
def test_a_full_disk_does_not_stop_the_run_and_costs_no_good_checkpoint(videos, small_disk):  # noqa: F811
    fields = {"discriminator.weight": 0.0, "validate_every": 0}
    run = small_disk / "run"
    short = tiny(videos, steps=2, **fields)
    finished(start(short, run))
    room = small_disk / "other data"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    room.write_bytes(bytes(free - 300_000))  # less than a checkpoint
    longer = tiny(videos, steps=7, **fields)
    status = start(longer, run).wait(timeout=300)
    log = (small_disk.parent / "run.log").read_text()
    assert status == 1, "the last steps are in no checkpoint"
    assert "of step 7, could not be saved" in log and "the last good one is step 2." in log
    assert "could not be saved" in log and "the last good checkpoint: step 2." in log
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["2"]
    assert [r["step"] for r in lines(run)] == list(range(1, 8)), "the run went on"
    room.unlink()
    finished(start(longer, run))
    assert "continuing from step 2" in (small_disk.parent / "run.log").read_text()
    assert (run / "checkpoints" / "7").is_dir()


def test_a_failed_save_leaves_nothing_though_its_writers_go_on(tmp_path, monkeypatch):
    unfinished = tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp" / "state"

    def write():
        for k in range(30):
            with contextlib.suppress(OSError):  # while it is being removed
                unfinished.mkdir(parents=True, exist_ok=True)
                (unfinished / str(k)).write_bytes(b"part")
            time.sleep(0.01)

    def fail(manager):
        writer.start()
        raise OSError("No space left on device")

    writer = threading.Thread(target=write)
    config = ml_collections.ConfigDict({"keep_checkpoints": 2, "keep_every": 0})
    with Checkpoints(tmp_path, config) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
            checkpoints.wait()
        writer.join()
        assert not any(checkpoints.folder.iterdir())


@pytest.mark.full
def test_too_many_steps_without_finite_loss_end_the_run_and_name_the_checkpoint(
    videos,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    fields = {"steps": 40, "max_skipped_in_a_row": 3, "validate_every": 0, "checkpoint_every": 2}
    config = tiny(videos, **fields, **{"discriminator.weight": 0.0})
    make = autoencoder.autoencoder_step

    def exploding(*arguments):
        step = make(*arguments)

        def explode(state, *batch_and_constants):
            after, metrics = step(state, *batch_and_constants)
            bad = {n: v * np.float32("nan") for n, v in after.parameters.items()}
            pick = lambda a, b: jnp.where(state.step == 4, b, a)  # noqa: E731
            broken = jax.tree.map(pick, after.parameters, bad)
            return after._replace(parameters=broken), metrics

        return explode

    monkeypatch.setattr(autoencoder, "autoencoder_step", exploding)
    with pytest.raises(FloatingPointError, match=r"last 3 steps .* checkpoint is .*checkpoints/4;"):
        train(config, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [r["step"] for r in records] == list(range(1, 9))
    assert [r["skipped_in_a_row"] for r in records][-3:] == [1, 2, 3]
    assert all(np.isfinite(list(r.values())).all() for r in records)
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["2", "4"]
