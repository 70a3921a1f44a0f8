"""Table 2 by its command: arms and stages, what is missing or fails, and the report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from flax import nnx
from PIL import Image

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.cli import main
from odvae_jax.cli.configs import load_config
from odvae_jax.diffusion import Latte
from odvae_jax.evaluation.drawn import DrawnClips, GeneratedClips
from odvae_jax.evaluation.generated import evaluate_generated
from odvae_jax.evaluation.paper import TABLE_1, TABLE_2, TABLE_3
from odvae_jax.metrics.generated import SIZES
from odvae_jax.parameters import named_parameters
from odvae_jax.table2.plan import arm_config, check, check_continues, stages
from odvae_jax.table2.stages import training_seconds
from odvae_jax.training.curves import read_metrics
from tests.metrics.stand_ins import networks
from tests.training.denoisers import save_autoencoder, write_manifest
from tests.two_levels import TWO_LEVELS

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "tests" / "tiny_table2.py"


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr("jax.devices", lambda *_: first)
    monkeypatch.setattr("jax.local_devices", lambda *_: first)


@pytest.fixture
def stand_ins(monkeypatch):
    """Small networks instead of I3D and C3D."""
    monkeypatch.setattr("odvae_jax.metrics.clip_sets.load_networks", lambda **_: networks())


@pytest.fixture
def stages_here(monkeypatch):
    """Stages that are done in this process; their names, in the order in which they were begun."""
    begun = []

    def here(command, environment):
        assert command[:3] == [sys.executable, "-m", "odvae_jax"]
        begun.append(tuple(word.partition("=")[2] for word in command[-2:]))
        return main(command[3:])

    monkeypatch.setattr("odvae_jax.table2.run.carry_out", here)
    return begun


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Videos with labels, and two autoencoders: 2×2×2, and one of images."""
    path = tmp_path_factory.mktemp("data")
    (path / "videos").mkdir()
    write_manifest(path / "videos", frames=17)
    save_autoencoder(path / "causal")
    image = ODVAE(ODVAEConfig(structure=TWO_LEVELS, width=8, groups=4), rngs=1)
    image.save_pretrained(path / "image")
    return path


def words(data, workdir, arms, *more):
    named = ",".join(f"{name}={data / folder}" for name, folder in arms.items())
    return [
        "table2",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        f"--config.data.path={data / 'videos' / 'list.csv'}",
        f"--config.table2.arms={named}",
        *more,
    ]


ARMS = {"OD-VAE": "causal", "SD-VAE": "image", "CV-VAE": "nowhere"}
STAGES = ["encode", "train-2", "sample-2", "train-4", "sample-4", "measure"]


@pytest.mark.usefixtures("own_log", "stand_ins")
def test_one_command_makes_the_table_and_goes_on_stage_by_stage(
    data, tmp_path, stages_here, capsys
):
    run = tmp_path / "run"
    asked = words(data, run, ARMS, "--config.table2.dataset=UCF101")
    assert main(asked) == 0
    printed = capsys.readouterr().out
    # In the order of the paper's table; the weights of CV-VAE are looked for, and no more.
    expected = [("SD-VAE", s) for s in STAGES] + [("CV-VAE", "encode")]
    assert stages_here == expected + [("OD-VAE", s) for s in STAGES]
    numbers = json.loads((run / "table2.json").read_text())
    arms = {arm["label"]: arm for arm in numbers["arms"]}
    assert arms["CV-VAE"]["failure"]["missing"] and "nowhere" in arms["CV-VAE"]["failure"]["reason"]
    assert arms["OD-VAE"]["encoded"]["latent_shape"] == [9, 8, 8, 4]
    assert arms["SD-VAE"]["encoded"]["latent_shape"] == [17, 8, 8, 4]

    # What stands there is what the evaluation of the same folders says.
    for label in ("OD-VAE", "SD-VAE"):
        points = arms[label]["points"]
        assert [p["steps"] for p in points] == [2, 4]
        for point in points:
            folder = run / label / f"samples-{point['steps']}"
            sets = {"set": GeneratedClips(folder, frames=17, size=16)}
            reals = DrawnClips(data / "videos" / "list.csv", frames=17, size=16)
            found, _ = evaluate_generated(
                sets, reals, networks(), count=4, sizes=SIZES, progress=False
            )
            scores = {s.metric: s.value for s in found.comparisons["set"].scores}
            assert scores.keys() == {
                "fvd16",
                "fvd",
                "kvd",
                "is",
            }  # four clips are too few for ten splits
            assert point["scores"] == pytest.approx(scores)
            assert point["clips"] == [4, 4]
        assert points[0]["scores"] != points[1]["scores"]
        assert 0 < points[0]["seconds"] < points[1]["seconds"]
        model = Latte.from_pretrained(run / label / "denoiser-4")
        count = sum(p.size for p in named_parameters(model).values())
        assert arms[label]["denoiser_parameters"] == count
        assert model.config.trained_on.encoder

    # What encoding prints of its compilations, if they were slow, stands before the table.
    shown = printed[printed.index("autoencoder  ") :].split("\n\n")[0]
    lines = {line.split("  ")[0]: line for line in shown.splitlines()}
    names = [row.name for row in TABLE_2]
    assert list(lines)[1:] == names
    for name in ("SVD-VAE", "CV-VAE", "OPS-VAE"):  # without any number but the paper's
        row = next(r for r in TABLE_2 if r.name == name)
        cells = re.split(r"  +", lines[name])
        assert set(cells[1:-3]) <= {"missing", "–"}
        assert cells[-3:] == [f"{row.scores['UCF101'][m]:.2f}" for m in ("fvd", "kvd", "is")]
    fvd = f"{arms['OD-VAE']['points'][-1]['scores']['fvd']:.2f}"
    markdown, page = (run / "table2.md").read_text(), (run / "table2.html").read_text()
    assert fvd in lines["OD-VAE"] and f"| {fvd} |" in markdown and f"<td>{fvd}</td>" in page
    assert "SVD-VAE is missing: it is not in the list of arms." in printed
    assert re.search(r"CV-VAE is missing: .*nowhere", printed)
    assert page.count("<video") == 3
    assert Image.open(run / "table2.png").size[0] > 500

    # The same command does nothing again, but looks for what was missing.
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.mp4")}
    stages_here.clear()
    assert main(asked) == 0
    again = capsys.readouterr().out
    assert again.startswith("autoencoder  ") and printed.endswith(again)
    assert stages_here == [("CV-VAE", "encode")]
    # More steps and more samples go on from there.
    stages_here.clear()
    more = ["--config.steps=6", "--config.table2.measure_at=(2, 4)", "--arm=OD-VAE"]
    assert main([*asked, *more]) == 0
    assert stages_here == [("OD-VAE", s) for s in ("train-6", "sample-6", "measure")]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if "samples-" in str(p))
    assert capsys.readouterr().out.count("autoencoder") == 0  # one arm alone is no table
    (record,) = (r for r in read_metrics(run / "OD-VAE" / "denoiser" / "metrics.jsonl")
                 if r["step"] == 6)  # fmt: skip
    first, last = (training_seconds(run / "OD-VAE" / "denoiser", n) for n in (5, 6))
    assert last - first == pytest.approx(record["seconds_per_step"])
    # Other settings are another table.
    assert main([*asked, "--config.table2.guidance=3."]) == 1
    assert "table2.guidance: 2.0 there, 3.0 now" in capsys.readouterr().err


@pytest.mark.usefixtures("own_log", "stand_ins")
def test_an_arm_that_fails_is_said_and_the_others_are_done(data, tmp_path, stages_here, capsys):
    """The first stage of one arm fails, and another process of one is killed."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    arms = {"broken": tmp_path / "broken", "killed": "causal", "good": "causal"}
    # The videos are too short for 17 frames at a stride of 2, but those may be spread over them.
    how = ["--config.table2.measure_at=()", "--config.data.stride=2", "--config.data.spread"]
    asked = words(data, tmp_path / "run", arms, *how)
    from odvae_jax.table2 import run as module

    here = module.carry_out

    def killed(command, environment):
        if command[-2:] == ["--arm=killed", "--stage=sample-4"]:
            return -9
        return here(command, environment)

    module.carry_out = killed  # the fixture puts the true one back
    assert main(asked) == 1
    printed = capsys.readouterr().out
    assert "killed failed in sample-4: its process ended with signal 9." in printed
    assert re.search("broken failed in encode: .*config.json", printed)
    numbers = json.loads((tmp_path / "run" / "table2.json").read_text())
    states = {arm["label"]: bool(arm["points"]) for arm in numbers["arms"]}
    assert states == {"broken": False, "killed": False, "good": True}
    assert re.search(r"^killed .* failed", printed, re.MULTILINE)
    assert "evenly spread over up to 34 frames" in printed
    # The next call does what is left.
    module.carry_out = here
    stages_here.clear()
    assert main(asked) == 1
    assert stages_here == [("broken", "encode"), ("killed", "sample-4"), ("killed", "measure")]


@pytest.mark.usefixtures("own_log", "stand_ins", "stages_here")
def test_the_numbers_of_one_autoencoder_are_never_shown_as_those_of_another(data, tmp_path, capsys):
    """In a folder that was measured, the name of an arm comes to stand for another model."""
    save_autoencoder(data / "other", seed=3)
    whole = ODVAE.from_pretrained(data / "causal")
    kept = jax.tree.map(lambda p: p * 1.5, nnx.state(whole.decoder, nnx.Param))
    nnx.update(whole.decoder, kept)
    whole.save_pretrained(data / "decoder")
    shutil.copytree(data / "causal", data / "moved")
    run, last = tmp_path / "run", "--config.table2.measure_at=()"

    def points(folder):
        status = main(words(data, run, {"good": folder}, last, "--config.steps=2"))
        (arm,) = json.loads((run / "table2.json").read_text())["arms"]
        return status, arm["points"], capsys.readouterr().out

    status, first, _ = points("causal")
    assert status == 0 and len(first) == 1
    for folder, stage in (("other", "encode"), ("decoder", "sample-2")):
        status, found, printed = points(folder)
        assert (status, found) == (1, []), folder
        assert f"good failed in {stage}" in printed and re.search("^good .* failed", printed, re.M)
    assert points("moved")[:2] == (0, first)  # the same model at another place
    assert points("causal")[:2] == (0, first)


@pytest.mark.full
def test_a_signal_ends_the_stage_that_saves_what_it_did_and_the_command_goes_on(data, tmp_path):
    """In processes, as for a user."""
    run = tmp_path / "run"

    def begun(*more):
        asked = words(data, run, {"good": "causal"}, "--config.table2.measure_at=()", *more)
        return subprocess.Popen(
            [sys.executable, "-m", "odvae_jax", *asked],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    with begun("--config.steps=1000000") as process:
        while not (run / "good" / "denoiser" / "metrics.jsonl").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0]
    assert process.returncode == 1
    assert "the same command goes on" in said.splitlines()[-1] and "Traceback" not in said
    checkpoints = (run / "good" / "denoiser" / "checkpoints").iterdir()
    (saved,) = (int(path.name) for path in checkpoints if path.name.isdigit())
    with begun(f"--config.steps={saved + 2}") as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert f"continuing from step {saved}" in said and "good: encode" not in said
    assert re.search(rf"^good .*  {saved + 2}  ", said, re.MULTILINE)
    assert not list(run.rglob("run.lock"))


@pytest.mark.parametrize(
    "more, said",
    [
        (["--config.table2.arms="], "config.table2.arms is empty"),
        (["--config.table2.arms=causal"], "config.table2.arms: 'causal' is not NAME=MODEL"),
        (["--config.table2.ablation=nowhere"], "nowhere holds no training of an ablation"),
        (["--config.table2.dataset=UCF"], "config.table2.dataset='UCF' is none of"),
        (["--config.table2.measure_at=5"], "measure_at has 5; expected steps from 1 to"),
        (["--config.table2.measure_at=(True,)"], "measure_at has True; expected steps from 1 to"),
        (["--config.table2.measure_at=(2, 0)"], "measure_at has 0; expected steps from 1 to"),
        (["--config.table2.count=0"], "config.table2.count=0 must be a whole number of at least 2"),
        (["--config.table2.count=1"], "config.table2.count=1 must be a whole number of at least 2"),
        (["--config.table2.sampler=euler"], "euler"),
        (["--config.table2.guidance=nan"], "config.table2.guidance=nan"),
        (["--config.table2.dtype=float8"], "config.table2.dtype='float8'"),
        (["--config.table2.store=int3"], "config.table2.store='int3'"),
        (["--config.data.path=nowhere"], "nowhere"),
        (["--config.table2.reals=nowhere"], "nowhere"),
        (["--config.vae=small"], "config.vae is one autoencoder"),
        (["--config.batch_size=0"], "config.batch_size=0"),
        (["--arm=none"], "the arm 'none' is not known; there are ['good']"),
        (["--stage=encode"], "--stage is a part of an arm"),
        (["--arm=good", "--stage=train"], "the stage 'train' is not known; there are ['encode'"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("own_log")
def test_what_cannot_be_is_refused_before_anything_is_done(more, said, data, tmp_path, capsys):
    assert main(words(data, tmp_path / "run", {"good": "causal"}, *more)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_trained_runs_of_an_ablation_are_arms(tmp_path):
    from odvae_jax.table2 import list_arms

    for name in ("v4-tail", "v4-random-seed1", "image", "v1-tail"):
        (tmp_path / name).mkdir()
        if name != "v1-tail":
            (tmp_path / name / "trained.json").write_text('{"step": 2}\n')
    config = load_config(str(CONFIG))
    config.table2.ablation, config.table2.arms = str(tmp_path), "OD-VAE=a,mine=b"
    found = {arm.label: arm.source for arm in list_arms(config)}
    own = {name: str(tmp_path / name) for name in ("v4-random-seed1", "v4-tail")}
    assert found == {"OD-VAE": "a", "mine": "b", **own}
    config.table2.arms = "a/b=x,a_b=y"
    with pytest.raises(ValueError, match="several arms are called a_b"):
        list_arms(config)


def test_a_table_of_before_a_field_was_there_goes_on_with_its_default(tmp_path):
    config = load_config("table2:small")
    begun = json.loads(config.to_json())
    del begun["data"]["spread"], begun["table2"]["store"]
    check_continues(begun, config, "here")
    config.data.spread = True
    with pytest.raises(ValueError, match="data.spread: False there, True now"):
        check_continues(begun, config, "here")


@pytest.mark.parametrize("name", ["ucf101", "sky", "small"])
def test_the_configs_that_come_with_the_package_can_be_trained(name):
    config = load_config(f"table2:{name}")
    check(config)
    assert stages(config)[0] == "encode"
    frames = (config.data.frames - 1) // 4 + 1
    side = config.data.size // 8
    model = arm_config(config, (frames, side, side, 4), "LATENTS", 7).model
    assert (model.frames, model.rows, model.columns) == (frames, side, side)
    if name == "small":
        from odvae_jax.training.denoising import denoiser_model_config

        abstract = jax.eval_shape(lambda: Latte(denoiser_model_config(config), rngs=None))
        assert sum(p.size for p in jax.tree.leaves(abstract)) <= 10_000_000


@pytest.mark.parametrize("alone, table", [("ucf101", "ucf101"), ("sky", "sky"), ("quick", "small")])
def test_a_table_trains_the_denoiser_of_the_config_for_one_autoencoder(alone, table):
    """Apart from what reads videos or saves memory, and from how often a run is looked at."""
    one, other = (load_config(name) for name in (f"latte:{alone}", f"table2:{table}"))
    assert one.model == other.model and one.drop_labels == other.drop_labels
    for field in ("steps", "ema_decay", "ema_warmup"):
        assert one[field] == other[field]
    for field in ("path", "label", "names", "scale", "frames", "size", "stride", "flip"):
        assert one.data[field] == other.data[field]
    apart = {"moment_dtype"}
    assert all(value == other.optimizer[k] for k, value in one.optimizer.items() if k not in apart)
    for name in ("latte:none", "table2:none"):
        with pytest.raises(ValueError, match="none is not known; there are :ucf101, :sky and :"):
            load_config(name)


def test_the_paper_s_figures_fit_what_its_text_says():
    """Section 4.2's differences, and the ratio of speeds."""
    rows = {row.name: row for row in TABLE_2}
    assert rows.keys() <= {row.name for row in TABLE_1}
    fvd = {n: row.scores["UCF101"]["fvd"] for n, row in rows.items()}
    assert fvd["SD-VAE"] - fvd["OD-VAE"] == pytest.approx(370.16)
    assert fvd["SVD-VAE"] - fvd["OD-VAE"] == pytest.approx(348.85)
    sky = {n: row.scores["SkyTimelapse"]["fvd"] for n, row in rows.items()}
    assert sky["CV-VAE"] - sky["OD-VAE"] == pytest.approx(32.55)
    assert sky["OPS-VAE"] - sky["OD-VAE"] == pytest.approx(17.91)
    assert all(set(row.scores["SkyTimelapse"]) == {"fvd", "kvd"} for row in rows.values())
    speed = {n: row.steps_per_second["UCF101"] for n, row in rows.items()}
    assert speed["OD-VAE"] / speed["SD-VAE"] == pytest.approx(2.06, abs=0.01)
    assert TABLE_3[4][1] == speed["OD-VAE"]
    assert rows["OD-VAE"].megabytes == {"UCF101": 30520, "SkyTimelapse": 30834}


def shown_by_the_benchmark(results):
    """What benchmarks/table2_speed.py says of a file of results, in which it measures nothing."""
    script = ROOT / "benchmarks" / "table2_speed.py"
    words = [f"--results={results}", "--rows=", "--size=S/2", "--frames=5", "--width=8"]
    return subprocess.run(
        [sys.executable, script, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_speeds_are_shown_though_the_rate_of_products_could_not_be_measured(tmp_path):
    row = {"device": "a card", "jax": "0.10", "latent_frames": 2, "seconds": [0.5, 0.5, 0.5]}
    row |= {"needed": 3e6, "peak": 0, "flops": 2e9, "compiling": 1.0, "finite": True}
    settings = {"size": "S/2", "remat": "none", "frames": 5, "side": 256, "width": 8}
    rows = {"SD-VAE float32": row | {"seconds": [1.0] * 4}, "OD-VAE float32": row}
    rates = {"a card float32": None}
    held = {"settings": settings | {"classes": 101}, "rows": rows, "rates": rates}
    (tmp_path / "speed.json").write_text(json.dumps(held))
    done = shown_by_the_benchmark(tmp_path / "speed.json")
    assert done.returncode == 0, done.stderr
    assert "matrix products: not measured" in done.stdout
    assert "steps that are timed: 3, 4" in done.stdout
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    # TSpeed, its spread, its ratio to SD-VAE, TMem; then the paper's.
    assert lines["OD-VAE"][3:7] == ["2.00", "2.00–2.00", "2.00", "3"]
    assert lines["OD-VAE"][-3:] == ["1.80", "2.07", "30520"]


@pytest.mark.parametrize("text", ['{"settings": ', "[]", "{}"])
def test_a_file_of_speeds_that_is_damaged_is_said_in_a_line(text, tmp_path):
    (tmp_path / "cut.json").write_text(text)
    done = shown_by_the_benchmark(tmp_path / "cut.json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cut.json holds no rows of this benchmark" in done.stderr
    assert (tmp_path / "cut.json").read_text() == text
