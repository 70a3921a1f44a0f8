"""Trainings at the same time: processes that are started, watched, and told to stop."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from odvae_jax.ablate.side_by_side import Child, carry_out, gpus, train_side_by_side

ROOT = Path(__file__).parent.parent

# A training that notes when it began and ended, and does a step when the file "go" is there.
TRAINS = """
import json, os, pathlib, signal, sys, time

root, name = pathlib.Path(sys.argv[1]), sys.argv[-1].removeprefix("--only=")

def note(what):
    names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE")
    row = [what, name, time.time(), [os.environ.get(n) for n in names]]
    with (root / "notes").open("a") as file:
        file.write(json.dumps(row) + "\\n")

def stopped(*_):
    note("saved")
    sys.exit(1)

signal.signal(signal.SIGTERM, stopped)
signal.signal(signal.SIGINT, signal.SIG_IGN)
note("begins")
if name.startswith("bad"):
    print("\\n".join(f"line {i}" for i in range(30)))
    note("ends")
    sys.exit("odvae ablate: something broke")
while name.startswith("endless"):
    time.sleep(0.05)
time.sleep(0.3)
with (root / name / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2}\\n')
note("steps")
_, _, other = name.partition("-until-")
while other and f'"{other}"' not in (root / "notes").read_text():
    time.sleep(0.05)
note("ends")
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "trains.py"
    script.write_text(TRAINS)
    return [sys.executable, str(script), str(tmp_path)]


def notes(tmp_path):
    """Time and environment, by what was noted and by the name."""
    rows = map(json.loads, (tmp_path / "notes").read_text().splitlines())
    return {(what, name): (when, names) for what, name, when, names in rows}


def most_at_once(found):
    changes = [(when, 1) for (what, _), (when, _) in found.items() if what == "begins"]
    changes += [(when, -1) for (what, _), (when, _) in found.items() if what == "ends"]
    counts, now = [], 0
    for _, change in sorted(changes):
        now += change
        counts.append(now)
    return max(counts)


def test_so_many_run_at_once_on_all_gpus_and_one_that_fails_stops_no_other(
    command, tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    children = [Child(name, name, 2) for name in ("a", "bad", "b", "c")]
    with caplog.at_level(logging.ERROR, "odvae_jax.ablate"):
        assert train_side_by_side(children, command, tmp_path, 2) == ["bad"]
    found = notes(tmp_path)
    assert {name for what, name in found if what == "ends"} == {"a", "bad", "b", "c"}
    assert most_at_once(found) == 2
    first_two = [found["begins", name][1] for name in ("a", "bad")]
    assert first_two == [["3", "false"], ["5", "false"]]
    assert "bad failed with exit status 1" in caplog.text
    assert "odvae ablate: something broke" in caplog.text
    assert "line 29" in caplog.text and "line 3\n" not in caplog.text
    assert "line 3\n" in (tmp_path / "bad" / "train.log").read_text()
    assert "3 of 4 runs, 1 failed" in capsys.readouterr().err


def test_runs_that_share_programs_wait_until_the_first_has_compiled_them(command, tmp_path):
    children = [Child("a-until-b", "v4", 2), Child("b", "v4", 2), Child("c", "v1", 2)]
    assert train_side_by_side(children, command, tmp_path, 3) == []
    found = notes(tmp_path)
    assert found["begins", "c"][0] < found["begins", "b"][0]
    assert found["steps", "a-until-b"][0] < found["begins", "b"][0]


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_runs_save_and_begins_no_other(which, command, tmp_path):
    children = [Child(name, name, 2) for name in ("endless1", "endless2", "never")]

    def send():
        while not (tmp_path / "notes").exists() or len(notes(tmp_path)) < 2:
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), which)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(InterruptedError, match="the same command goes on"):
        train_side_by_side(children, command, tmp_path, 2)
    found = notes(tmp_path)
    assert {name for what, name in found if what == "saved"} == {"endless1", "endless2"}
    assert {name for _, name in found} == {"endless1", "endless2"}


BEGINS = """
import subprocess, sys
from odvae_jax.ablate.side_by_side import environment
import os
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment(os.environ, None))
print(child.pid, flush=True)
child.wait()
"""
WATCHES = """
import pathlib, sys, time, signal
from odvae_jax.ablate.side_by_side import end_with_parent
def stopped(*_):
    pathlib.Path("told").touch()
    sys.exit()
signal.signal(signal.SIGTERM, stopped)
end_with_parent()
pathlib.Path("begun").touch()
time.sleep(60)
"""


def test_runs_are_told_to_save_if_the_command_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", BEGINS, WATCHES]
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as parent:
        while not (tmp_path / "begun").exists():
            assert parent.poll() is None
            time.sleep(0.05)
        assert not (tmp_path / "told").exists()
        parent.kill()
    end = time.monotonic() + 20
    while not (tmp_path / "told").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_measures_in_the_end_gives_the_exit_status():
    assert carry_out([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_gpus_are_found_without_taking_hold_of_one(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H (UUID: a)'\necho 'GPU 1: H (UUID: b)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpus({}) == gpus({"JAX_PLATFORMS": "cuda,cpu"}) == ["0", "1"]
    assert gpus({"JAX_PLATFORMS": "cpu"}) == gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert gpus({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-c"}) == ["GPU-a", "GPU-c"]
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus({}) == []
