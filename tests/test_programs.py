"""train.py and eval.py as a user runs them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from odvae_jax import ODVAE
from tests.conftest import full
from tests.training.test_faults import arguments as given
from tests.training.test_loop import tiny

ROOT = Path(__file__).parent.parent


def command(program, *arguments):
    return [sys.executable, str(ROOT / program), *map(str, arguments)]


def run(program, *arguments):
    return subprocess.run(
        command(program, *arguments), capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_a_run_told_to_stop_saves_and_the_same_command_continues_it(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")  # the program is that of test_faults.py
    workdir = tmp_path / "run"
    fields = {"steps": 10_000, "batch_size": 4, "validate_every": 0, "checkpoint_every": 1000}
    arguments = given(tiny(videos, **fields), workdir)[2:]
    with subprocess.Popen(
        command("train.py", *arguments), stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        metrics = workdir / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert "run the same command to continue" in errors and "clips/s" in errors
    (stopped,) = (int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert ODVAE.from_pretrained(workdir / "model").config.width == 8
    done = run("train.py", *arguments, f"--config.steps={stopped + 1}")
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, stopped + 2))


@pytest.mark.parametrize(
    "case",
    [
        ("v4.py", [], "config.data.path is empty"),
        ("v4.py", ["--config.data.path=nowhere"], "nowhere does not exist"),
        *full(
            (
                "v4.py",
                ["--config.data.path=sample-clips", "--config.init.from_pretrained=nowhere"],
                "nowhere does not exist",
            ),
            ("v9.py", [], "configs/v9.py"),
            ("v4.py", ["--config.data.pth=x"], 'Did you mean "path"'),
            ("quick.py:film", [], "there are :image and :video"),
        ),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_at_once(case, tmp_path):
    config, arguments, words = case
    workdir = tmp_path / "run"
    done = run("train.py", f"--config=configs/{config}", *arguments, f"--workdir={workdir}")
    assert done.returncode != 0
    assert words in done.stderr + done.stdout
    assert not workdir.exists()


def test_the_table_of_variants_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "odvae_jax", "variants"], capture_output=True, text=True, check=True
    )
    totals = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:]}
    assert totals == {
        "image": "83,653,863",
        "v1": "244,800,231",
        "v2": "171,367,143",
        "v3": "228,868,071",
        "v4": "239,189,991",
    }
