"""The ablations of Figure 4 and Table 4 as one run."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import odvae_jax.ablate.run as module
from configs.ablation import get_config
from odvae_jax import ODVAE
from odvae_jax.ablate import ablate, ablate_side_by_side, arms, runs, train_only
from odvae_jax.ablate.plan import image_config, run_config
from odvae_jax.ablate.report import report
from odvae_jax.evaluation.models import BlockMean, Contender
from odvae_jax.evaluation.results import Results, Row, Score
from odvae_jax.files import BusyError
from tests.conftest import small_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr("jax.devices", lambda *_: first)
    monkeypatch.setattr("jax.local_devices", lambda *_: first)


def tiny_fields(videos, **fields):
    """The fields of a run of two steps, on 16×16."""
    return {
        "model.width": 8,
        "model.groups": 4,
        "model.dtype": "float32",
        "data.path": str(videos),
        "data.frames": 5,
        "data.size": 16,
        "data.short_side": 16,
        "data.holdout": 9,
        "data.threads": 1,
        "batch_size": 1,
        "steps": 2,
        "log_every": 1,
        "validate_every": 1,
        "validation_clips": 1,
        "loss.perceptual_weight": 0.0,
        "ablation.variants": (4,),
        "ablation.initialisations": ("tail",),
        "ablation.image_steps": 1,
        "ablation.image_batch_size": 1,
        "ablation.frames": 9,
        "ablation.tiling": 5,
        "ablation.fvd": False,
        **fields,
    }


def tiny(videos, **fields):
    config = get_config()
    config.update_from_flattened_dict(tiny_fields(videos, **fields))
    return config


def test_the_paper_s_comparisons_are_six_trainings():
    names = [arm.name for arm in arms(get_config())]
    assert names == ["v1-tail", "v2-tail", "v3-tail", "v4-tail", "v4-average", "v4-random"]
    assert [run.name for run in runs(get_config())] == names


def test_each_seed_trains_all_configurations_and_the_first_has_the_folders_of_a_single_one():
    config = get_config()
    config.seed = 5
    planned = runs(config, 3)
    names = [arm.name for arm in arms(config)]
    later = [f"{name}-seed{seed}" for seed in (6, 7) for name in names]
    assert [run.name for run in planned] == [*names, *later]
    configs = [run_config(config, run, "sd") for run in planned]
    assert [c.seed for c in configs] == [5] * 6 + [6] * 6 + [7] * 6
    assert {c.init.from_pretrained for c in configs} == {"sd"}
    assert image_config(config).seed == 5


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"ablation.variants": (4, 5)}, r"\['v5'\] are no variants; there are 1 to 4"),
        ({"ablation.initialisations": ("head",)}, r"\['head'\] are not known; there are \['tail'"),
        ({"data.frames": 6}, "data.frames=6 is not 4k"),
        ({"data.path": "nowhere"}, "nowhere does not exist"),
        ({"ablation.tiling": 6}, "a group of 6 frames is not 4k"),
        ({"ablation.frames": 8}, r"T must be 4k \+ 1"),
        ({"ablation.frames": 33}, "no video of .* holds a clip of config.ablation.frames=33: .*24"),
        ({"validate_every": 0}, "config.validate_every=0"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_is_trained(fields, words, videos, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        ablate(tiny(videos, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda c, w: ablate(c, w, seeds=0), "seeds=0 must be at least 1: how often"),
        (lambda c, w: ablate_side_by_side(c, w, [], at_once=0), "at_once=0 must be at least 1"),
        (lambda c, w: train_only(c, w, "v4-tail-seed2", seeds=2), "'v4-tail-seed2' is not known; "
         "there are image, v4-tail, v4-tail-seed1"),
        (lambda c, w: train_only(c, w, "v4-tail"), "image is not trained.*by --only=image"),
        (lambda c, w: train_only(c, w, "image", init="sd"), "'image' is not known; .* v4-tail"),
    ],
    ids=["seeds", "at_once", "no_run", "no_image", "image_given"],
)  # fmt: skip
def test_numbers_below_one_and_runs_that_there_are_not_are_refused(call, words, videos, tmp_path):
    with pytest.raises(ValueError, match=words):
        call(tiny(videos), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_settings_is_refused_before_anything_is_trained(
    videos, tmp_path, monkeypatch
):
    def never(*_):
        raise AssertionError("trained")

    monkeypatch.setattr(module, "train", never)
    begun = tmp_path / "run" / "v4-tail-seed1"
    begun.mkdir(parents=True)
    other = run_config(
        tiny(videos, **{"optimizer.learning_rate": 0.5}), runs(tiny(videos), 2)[1], ""
    )
    (begun / "config.json").write_text(other.to_json())
    with pytest.raises(ValueError, match="v4-tail-seed1 holds .*optimizer.learning_rate: 0.5"):
        ablate(tiny(videos), tmp_path / "run", seeds=2)


def program(fields, workdir, image, *options):
    """The command that ablates, with fields of its config."""
    changes = [f"--config.{name}={value}" for name, value in fields.items()]
    words = ["--config=ablation", *changes, f"--workdir={workdir}", f"--init={image}", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "odvae_jax", "ablate", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(rows, tiling):
    """Results of models by name, whose scores are given."""
    made = []
    for name, scores in rows.items():
        model = BlockMean(4, 8)
        scored = {metric: Score(value, value - 1, value + 1) for metric, value in scores.items()}
        made.append(Row(Contender(name, name, model, name), 3, scored, {}, {}, {}, {}, ()))
    settings = {"frames": 9, "size": 16, "stride": 1, "fps": None, "start": None, "data": "x"}
    return Results(settings | {"tiling": tiling}, tuple(made), {}, {"rfvd": "it is not here"})


def test_the_report_has_means_deviations_intervals_and_verdicts_over_seeds(
    videos, tmp_path, capsys
):
    config = tiny(videos, **{"ablation.variants": (1, 4)})
    planned = runs(config, 3)
    rng = np.random.default_rng(0)
    psnr = {run.name: 20 + rng.normal() + 30 * (run.arm.structure == "v4") for run in planned}
    loss = {run.name: 0.5 + 0.1 * run.seed for run in planned}
    psnr["blocks"], loss["blocks"] = 10.0, 0.0
    whole = results({n: {"psnr": p, "lpips": 0.1} for n, p in psnr.items()}, None)
    tiled = results({n: {"psnr": p - loss[n], "lpips": 0.1} for n, p in psnr.items()}, 5)
    for run in planned:
        records = [{"step": s, "psnr": psnr[run.name] + s, "reconstruction_per_value": 1 / s}
                   for s in (1, 2)]  # fmt: skip
        (tmp_path / run.name).mkdir()
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / run.name / "metrics.jsonl").write_text(text)
    report(config, planned, whole, tiled, tmp_path)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "ablation.json").read_text())
    for arm in ("v1-tail", "v4-tail"):
        own = [psnr[run.name] for run in planned if run.arm.name == arm]
        low, high = scipy.stats.t.interval(0.95, 2, np.mean(own), scipy.stats.sem(own))
        got = found["configurations"][arm]["whole"]["psnr"]
        expected = [3, np.mean(own), np.std(own, ddof=1), low, high]
        np.testing.assert_allclose(list(got.values()), expected)
        cell = f"{np.mean(own):.2f} ± {np.std(own, ddof=1):.2f} ({low:.2f} to {high:.2f})"
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{arm} ")]
        assert cell in line
        # The loss by tiling is exact, whatever the seeds do to both.
        assert "0.600 ± 0.100 (0.352 to 0.848)" in line
        assert cell in (tmp_path / "ablation.md").read_text()
    said = {(v["claim"], v["metric"]): v["verdict"] for v in found["verdicts"]}
    assert said == {
        ("variant 1 is better than variant 4", "psnr"): "contradicted",
        ("variant 1 is better than variant 4", "lpips"): "not decidable with 3 seeds",
        ("whole clips are better than tiled ones", "psnr"): "confirmed",
        ("whole clips are better than tiled ones", "lpips"): "not decidable with 3 seeds",
    }
    assert "contradicted" in printed and "bootstrap" not in printed
    assert "The 2D model that all start from is the same" in printed
    assert list(found["curves"]) == [run.name for run in planned]
    assert found["runs"]["v4-tail-seed2"]["whole"]["psnr"] == psnr["v4-tail-seed2"]
    for name in ("ablation.png", "seeds.png"):
        assert Image.open(tmp_path / name).size[0] > 500


@pytest.mark.full
def test_seeds_that_are_added_later_are_trained_side_by_side_with_what_is_there(
    videos, tmp_path, capsys
):
    image, run = tmp_path / "image2d", tmp_path / "run"
    small_model("image").save_pretrained(image)
    first, _ = ablate(tiny(videos), run, init=str(image))
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in (run / "v4-tail").rglob("*") if p.is_file()}
    with program(tiny_fields(videos), run, image, "--seeds=3", "--at-once=2") as ended:
        printed, said = ended.communicate()
    assert ended.returncode == 0, said
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "3 of 3 runs" in said
    assert "3 seeds: mean over seeds ±" in printed and "claim of the paper" in printed
    found = json.loads((run / "ablation.json").read_text())
    values = [
        found["runs"][n]["whole"]["psnr"] for n in ("v4-tail", "v4-tail-seed1", "v4-tail-seed2")
    ]
    assert len(set(values)) == 3
    assert values[0] == pytest.approx(first.rows[0].scores["psnr"].mean)
    assert "compiled the step" in (run / "v4-tail-seed2" / "train.log").read_text()


@pytest.mark.full
def test_after_a_signal_all_runs_have_saved_and_none_goes_on_without_the_command(videos, tmp_path):
    image, run = tmp_path / "image2d", tmp_path / "run"
    small_model("image").save_pretrained(image)
    fields = tiny_fields(videos, steps=10**6, validate_every=10**6)
    names = ["v4-tail", "v4-tail-seed1"]
    with program(fields, run, image, "--seeds=2", "--at-once=2") as process:
        while not all((run / name / "metrics.jsonl").exists() for name in names):
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 1
    assert "the same command goes on" in said.splitlines()[-1] and "Traceback" not in said
    for name in names:
        (saved,) = (p for p in (run / name / "checkpoints").iterdir() if p.name.isdigit())
        last = json.loads((run / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == int(saved.name) > 0
        assert f"stopped after step {saved.name}" in (run / name / "train.log").read_text()
        assert not (run / name / "run.lock").exists()
    assert not (run / "run.lock").exists()


@pytest.mark.full
@pytest.mark.parametrize("inits", [("tail",), ("tail", "average")], ids=str)
def test_one_command_trains_measures_and_compares_and_goes_on(
    inits, videos, tmp_path, monkeypatch, capsys
):
    names = [f"v4-{method}" for method in inits]
    image, init = tmp_path / "image2d", None
    if len(inits) == 1:  # else it trains a 2D model of its own first
        small_model("image").save_pretrained(image)
        init = str(image)
    config = tiny(videos, **{"ablation.initialisations": inits})
    whole, tiled = ablate(config, tmp_path / "run", init=init)
    printed = capsys.readouterr().out
    assert [row.contender.label for row in whole.rows][:-1] == names
    assert (whole.settings["tiling"], tiled.settings["tiling"]) == (None, 5)
    assert "2 steps each." in printed and "groups of 5 frames" in printed
    for row, other in zip(whole.rows, tiled.rows, strict=True):
        line = next(x for x in printed.splitlines() if x.startswith(row.contender.label))
        for score in (row.scores["psnr"], other.scores["psnr"]):
            assert f"{score.mean:.2f}" in line
    curves = json.loads((tmp_path / "run" / "ablation.json").read_text())["curves"]
    assert {name: [p["step"] for p in points] for name, points in curves.items()} == {
        name: [1, 2] for name in names
    }
    assert Image.open(tmp_path / "run" / "ablation.png").size[1] == 7 * 120
    assert (tmp_path / "run" / "image").exists() == (init is None)
    trained = ODVAE.from_pretrained(tmp_path / "run" / names[0])
    assert (trained.config.structure, trained.config.width) == ("v4", 8)

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", never)
    ablate(config, tmp_path / "run", init=init)
    assert capsys.readouterr().out == printed
    with pytest.raises(ValueError, match="optimizer.learning_rate"):
        ablate(tiny(videos, **{"optimizer.learning_rate": 0.5}), tmp_path / "run", init=init)
    with pytest.raises(ValueError, match="holds ablations with {'steps': 2"):
        ablate(tiny(videos, steps=3), tmp_path / "run", init=init)


def test_one_that_was_told_to_stop_begins_no_other(videos, tmp_path, monkeypatch):
    """Nor is a model that was not trained to its end the start of others."""
    config = tiny(videos, **{"ablation.initialisations": ("tail", "average")})
    trained = []

    def stopped(config, folder):
        trained.append(folder.name)
        folder.mkdir(exist_ok=True)
        return types.SimpleNamespace(step=config.steps - (len(trained) == stops_at))

    monkeypatch.setattr(module, "train", stopped)
    stops_at = 1
    with pytest.raises(InterruptedError, match="image stopped after step 0; the same command"):
        ablate(config, tmp_path / "run")
    stops_at = 3
    with pytest.raises(InterruptedError, match="v4-tail stopped after step 1"):
        ablate(config, tmp_path / "run")
    assert trained == ["image", "image", "v4-tail"]
    with pytest.raises(ValueError, match="holds ablations with .*'image_steps': 1"):
        ablate(tiny(videos, **{"ablation.image_steps": 2}), tmp_path / "run")


def test_two_ablations_cannot_share_a_folder_and_cut_settings_are_written_anew(
    videos, tmp_path, monkeypatch, caplog
):
    config = tiny(videos)

    def while_another_begins(config, folder):
        (tmp_path / "run" / "settings.json").write_text('{"ste')
        with pytest.raises(BusyError, match="run is in use by another run, process"):
            ablate(tiny(videos), tmp_path / "run")
        return types.SimpleNamespace(step=0)

    monkeypatch.setattr(module, "train", while_another_begins)
    for _ in range(2):
        with pytest.raises(InterruptedError, match="image stopped after step 0"):
            ablate(config, tmp_path / "run")
    assert "settings.json is damaged" in caplog.text
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["settings.json"]
