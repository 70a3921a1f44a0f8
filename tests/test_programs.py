"""train.py, and programs of this package, as a user runs them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from odvae_jax import ODVAE
from odvae_jax.cli import main
from tests.training.test_faults import arguments as given
from tests.training.test_loop import tiny

ROOT = Path(__file__).parent.parent


def command(program, *arguments):
    return [sys.executable, str(ROOT / program), *map(str, arguments)]


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
    again = command("train.py", *arguments, f"--config.steps={stopped + 1}")
    done = subprocess.run(again, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, stopped + 2))


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize(
    "case",
    [
        ("v4", [], 1, "config.data.path is empty"),
        ("v4", ["--config.data.path=nowhere"], 1, "nowhere does not exist"),
        (
            "v4",
            ["--config.data.path=sample-clips", "--config.init.from_pretrained=nowhere"],
            2,
            "nowhere does not exist",
        ),
        ("configs/v9.py", [], 2, "configs/v9.py"),
        ("v4", ["--config.data.pth=x"], 2, 'Did you mean "path"'),
        ("quick:film", [], 2, "there are :image and :video"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_at_once(case, tmp_path, capsys):
    config, arguments, status, words = case
    workdir = tmp_path / "run"
    given = ["train", f"--config={config}", *arguments, f"--workdir={workdir}"]
    assert main(given) == status
    said = capsys.readouterr().err
    assert said.startswith("odvae train: ") and words in said
    assert not workdir.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config=quick:image", "--workdir="],
        ["train", "--config=", "--workdir=run"],
        ["ablate", "--config=ablation", "--workdir= "],
        ["ablate", "--config=ablation", "--workdir=run", "--init="],
        ["encode", "", "out", "--ckpt=small"],
        ["encode", "in", "", "--ckpt=small"],
        ["encode", "in", "out", "--ckpt="],
        ["eval", "--ckpt=", "--data=in"],
        ["eval", "--ckpt=small=", "--data=in"],
        ["eval", "--ckpt=small", "--data="],
        ["eval", "--ckpt=small", "--data=in", "--output="],
        ["data", "inspect", ""],
        ["data", "pack", "in", ""],
        ["convert", "small", ""],
        ["curves", "", "out.png"],
        ["summary", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_a_mistake_of_the_command_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("odvae ")
    assert not any(tmp_path.iterdir())


def test_the_table_of_variants_is_printed(capsys):
    assert main(["variants"]) == 0
    variants, others = (t.splitlines()[1:] for t in capsys.readouterr().out.split("\n\n"))
    assert {line.split()[0]: line.split()[-3:] for line in others} == {
        "VQGAN": ["68,995,971", "68,995,971", "–"],
        "SVD-VAE": ["97,742,847", "97,742,847", "–"],
        "TATS": ["52,192,773", "23,652,227", "4,194,304"],
        "CV-VAE": ["182,446,475", "182,446,475", "–"],
        "OPS-VAE": ["393,341,007", "393,341,007", "–"],
    }
    assert {line.split()[0]: line.split()[-1] for line in variants} == {
        "image": "83,653,863",
        "v1": "244,800,231",
        "v2": "171,367,143",
        "v3": "228,868,071",
        "v4": "239,189,991",
    }


def test_the_curves_of_runs_are_drawn_and_what_is_no_run_is_said(tmp_path, capsys):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        records = [{"step": step, "reconstruction": 1 / step, "psnr": step} for step in (1, 2)]
        lines = "\n".join(json.dumps(record) for record in records)
        (tmp_path / run / "metrics.jsonl").write_text(lines)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:  # as today's runs have it, too
        file.write("\n" + json.dumps({"step": 3, "reconstruction_per_value": 0.1}))
    a, b, nowhere = (str(tmp_path / name) for name in ("a", "b", "nowhere"))
    for runs, panels in (([a], 2), ([a, b], 3)):
        assert main(["curves", *runs, f"{tmp_path}/curves.png"]) == 0
        assert Image.open(tmp_path / "curves.png").size == (panels * 5 * 120, 4 * 120)
    for words, said in (([a, b], "is a folder"), ([nowhere, "x.png"], "nowhere/metrics.jsonl")):
        assert main(["curves", *words]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("own_log")
def test_an_ablation_side_by_side_gets_a_command_that_trains_one_run(monkeypatch):
    given = {}
    take = lambda *words, **k: given.update(k, words=words) or 1  # noqa: E731
    monkeypatch.setattr("odvae_jax.ablate.ablate_side_by_side", take)
    words = ["ablate", "--config=ablation", "--config.steps=7", "--workdir=out"]
    words += ["--seeds=3", "--at-once=4"]
    assert main(words) == 1
    config, workdir, command = given.pop("words")
    assert given == {"at_once": 4, "init": None, "seeds": 3}
    assert (config.steps, workdir, command[:3]) == (7, "out", [sys.executable, "-m", "odvae_jax"])
    monkeypatch.setattr(
        "odvae_jax.ablate.train_only", lambda *w, **k: given.update(k, name=w[2], steps=w[0].steps)
    )
    assert main([*command[3:], "--only=v4-tail-seed2"]) == 0
    assert given["name"] == "v4-tail-seed2" and given["steps"] == 7 and given["seeds"] == 3


@pytest.mark.parametrize(
    "words, status, said",
    [
        (["--seeds=0"], 2, "argument --seeds: 0 is not at least 1"),
        (["--at-once=0"], 2, "argument --at-once: 0 is not at least 1"),
        (["--seeds=two"], 2, "'two' is no whole number"),
        (["--at-once=2", "--only=v4-tail"], 1, "leave out --at-once"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("own_log")
def test_what_an_ablation_cannot_do_is_said_in_a_line(words, status, said, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["ablate", "--config=ablation", f"--workdir={run}", *words]) == status
    assert said in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.usefixtures("own_log")
def test_an_ablation_gets_the_config_the_folder_and_the_start(monkeypatch):
    given = []
    monkeypatch.setattr("odvae_jax.ablate.ablate", lambda *a, **k: given.extend([*a, k["init"]]))
    words = ["--config=ablation", "--config.ablation.variants=2", "--workdir=out", "--init=sd"]
    assert main(["ablate", *words]) == 0
    assert given[0].ablation.variants == (2,) and given[1:] == ["out", "sd"]
