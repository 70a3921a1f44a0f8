"""Table 1 from a list of checkpoints, and how fast its models are."""

import json
import re

import jax
import pytest
from flax import nnx

from odvae_jax.cli import main
from odvae_jax.evaluation import speed
from odvae_jax.evaluation.models import count_parameters, parameter_count
from odvae_jax.evaluation.paper import TABLE_1
from odvae_jax.evaluation.table1 import random_models
from odvae_jax.parameters import abstract_model
from tests.baselines.test_common import tiny
from tests.conftest import full, write_clip
from tests.evaluation.test_kinds import model

NAMES = ["VQGAN", "SD-VAE", "SVD-VAE", "TATS", "CV-VAE", "OPS-VAE", "OD-VAE"]
KINDS = {"VQGAN": "vqgan", "SD-VAE": "image", "TATS": "tats"}
MODELS = ["vqgan", "image", "svd_vae", "tats", "cv_vae", "ops_vae", "od_vae"]
ALL = dict(zip(NAMES, MODELS, strict=True))
SIZE = ["--frames=17", "--size=16"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two folders, of one video each."""
    path = tmp_path_factory.mktemp("sources")
    for i, name in enumerate(("first", "second")):
        (path / name).mkdir()
        write_clip(path / name / "clip.mp4", seed=i, frames=17, height=16, width=16)
    return path


def listed(path, kinds, **more):
    """A list of models that are there, and of `more`."""
    for name, kind in kinds.items():
        model(kind).save_pretrained(path / "models" / name)
    sources = {name: str(path / "models" / name) for name in kinds} | more
    (path / "list.json").write_text(json.dumps(sources))
    return str(path / "list.json")


def rows(text):
    """The rows of the tables of a text for the terminal, by the model."""
    return {line.split("  ")[0]: line for line in text.splitlines() if line}


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize("kinds", [KINDS, *full(ALL)], ids=len)
def test_the_table_has_all_rows_of_the_paper_with_its_figures(kinds, sources, tmp_path, capsys):
    gone = {"OD-VAE": str(tmp_path / "nowhere")} if "OD-VAE" not in kinds else {}
    models = listed(tmp_path, kinds, **gone, Mine={"source": str(tmp_path / "models/SD-VAE")})
    data = [f"--data=webvid={sources / 'first'}", f"--data={sources / 'second'}"]
    how = ["table1", *data, f"--models={models}", *SIZE, f"--output={tmp_path / 'out'}"]
    assert main(how) == 0
    printed = capsys.readouterr().out
    first, _, second = printed.partition("\nsecond\n")
    own = [*(tmp_path / "out").rglob("*.md"), *(tmp_path / "out").rglob("*.html")]
    assert len(own) == 6 and not any("rFVD" in path.read_text() for path in own)
    for text, both in ((first, False), (second, True)):
        found = rows(text)
        assert [name for name in found if name in [*NAMES, "Mine"]] == [*NAMES, "Mine"]
        assert ("paper, WebVid-10M: PSNR" in text) and ("paper, Panda-70M: PSNR" in text) == both
        assert "31.16  " in found["OD-VAE"] and ("0.0454" in found["OD-VAE"]) == both
        assert "239.19M" in found["OD-VAE"] and "52.19M" in found["TATS"]
        for name in set(NAMES) - set(kinds):
            numbers = re.findall(r"\S+", found[name])[1:]
            assert numbers[:7] == ["missing"] * 7  # what is not measured is never a number
    if gone:
        assert "OD-VAE is missing: " in printed and "nowhere does not exist" in printed
        assert "CV-VAE is missing: it is not in the list of models." in printed
    small = "TATS: this is not the paper's TATS, but a model of another size: width 8 (there 32), "
    assert printed.count(f"{small}downsample (2, 2, 2) (there (4, 8, 8)), codes 16") == 2
    assert "SD-VAE: this is not the paper's SD-VAE, but a model of another size: width 8" in printed
    assert "Mine: this is not" not in printed
    read = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert list(read["measured"]) == ["webvid", "second"] and len(read["paper"]) == 7
    models = read["measured"]["second"]["models"]
    measured = {r["model"]: r["scores"]["psnr"]["mean"] for r in models}
    assert measured["Mine"] == measured["SD-VAE"] != measured["VQGAN"]
    for name in kinds:
        assert f"{measured[name]:.2f}" in rows(second)[name]
    for kind in ("md", "html"):
        text = (tmp_path / "out" / f"table1.{kind}").read_text()
        assert all(name in text for name in NAMES) and "tats takes" not in text
        assert "TATS takes 16×16×16 of clips of 17×16×16" in text
    assert (tmp_path / "out" / "second" / "results.html").exists()
    records = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.jsonl")}
    assert records and main(how) == 0  # goes on, and measures nothing again
    assert capsys.readouterr().out == printed
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.jsonl")} == records


@pytest.mark.usefixtures("own_log")
def test_a_model_under_anothers_name_is_refused(sources, tmp_path, capsys):
    listed(tmp_path, {"VQGAN": "vqgan"})
    how = ["table1", f"--data={sources / 'first'}", *SIZE, f"--output={tmp_path / 'out'}"]
    for name in ("TATS", "SD-VAE", "od_vae"):
        assert main([*how, f"--models={name}={tmp_path / 'models/VQGAN'}"]) == 1
        assert "holds a model of another kind than" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "list.json is no JSON"),
        ("[]", "list.json holds no object such as"),
        ('{"TATS": 3}', "'TATS' stands for no source"),
        ('{"TATS": {"sauce": "x"}}', "field 'sauce', which is not known. Did you mean \"source\""),
        ('{"TATS": {"subfolder": "x"}}', "'TATS' has no source"),
        ('{"TATS": "a", "TATS": "b"}', "['TATS'] come more than once"),
        ('{"TATS": "a", "tats": "b"}', "several models are called ['TATS']"),
        ('{"TATS": "nowhere"}', "none of the models is there"),
    ],
)
@pytest.mark.usefixtures("own_log")
def test_lists_that_are_none_are_refused_in_one_line(content, words, sources, tmp_path, capsys):
    (tmp_path / "list.json").write_text(content)
    how = ["table1", f"--data={sources / 'first'}", f"--output={tmp_path / 'out'}"]
    assert main([*how, f"--models={tmp_path / 'list.json'}"]) > 0
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1] and said[-1].startswith("odvae table1: ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data=sample-clips"], "--models and --data are needed"),
        (["--data=sample-clips", "--models=TATS"], "'TATS' is not NAME=MODEL"),
        (["--data=sample-clips", "--models=none.json"], "none.json"),
        (["--data=x=sample-clips", "--data=x=docs", "--models=a=b"], "several sources are called"),
        (["--speed", "--data=sample-clips"], "--speed times random weights"),
    ],
)
@pytest.mark.usefixtures("own_log")
def test_what_cannot_work_is_said_in_one_line(arguments, words, tmp_path, capsys):
    assert main(["table1", *arguments, f"--output={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("odvae table1: ") and words in said and said.count("\n") == 1


def test_the_papers_models_have_the_parameters_that_it_prints():
    for row in TABLE_1:
        made = abstract_model(row.config())
        assert parameter_count(count_parameters(made).reference) == row.parameters
        block = made.config.time_compression, *[made.config.space_compression] * 2
        assert block == row.block
    assert [row.name for row in TABLE_1] == NAMES


def test_a_model_of_the_papers_size_gets_no_remark_whatever_it_computes_in():
    for row in TABLE_1:
        assert row.other_sizes(row.config(dtype="bfloat16", precision="highest")) == {}


@pytest.mark.full
def test_the_timed_models_are_those_of_the_paper_at_full_width():
    made = {name: nnx.eval_shape(make) for name, make in random_models("bfloat16")}
    assert list(made) == NAMES and made["OPS-VAE"].config.micro_frames is None
    for row in TABLE_1:
        assert made[row.name].config.param_dtype == "bfloat16"
        assert count_parameters(made[row.name]) == count_parameters(abstract_model(row.config()))


@pytest.fixture
def one_timing(monkeypatch):
    monkeypatch.setattr(speed, "IN_FLIGHT", 1)
    times = speed.speeds
    monkeypatch.setattr(speed, "speeds", lambda *a, **k: times(*a, **{**k, "repeats": 1}))


@pytest.mark.usefixtures("own_log", "one_timing")
@pytest.mark.parametrize("kinds", [("TATS", "SD-VAE"), *full(tuple(NAMES))], ids=len)
def test_all_models_are_timed_one_after_another(kinds, monkeypatch, capsys):
    alive = []

    def make(name):
        assert not alive, "the model before was not freed"
        alive.append(name)
        return tiny(ALL[name]) if name not in ("SD-VAE", "OD-VAE") else model(ALL[name])

    monkeypatch.setattr(
        "odvae_jax.evaluation.table1.random_models",
        lambda dtype: [(name, lambda name=name: make(name)) for name in kinds],
    )
    monkeypatch.setattr(jax, "clear_caches", alive.clear)
    assert main(["table1", "--speed", "--largest-batch=1", *SIZE]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(kinds)
    assert lines[0].startswith("TATS (16×16×16)" if kinds[0] == "TATS" else "VQGAN ")
    for line, (name, work) in zip(lines, ((n, w) for n in kinds for w in speed.WORKS), strict=True):
        rate = re.search(rf"^{name} .*{work} +([0-9.]+) \(", line)
        assert rate and float(rate[1]) > 0


@pytest.mark.usefixtures("own_log", "one_timing")
def test_checkpoints_of_any_kind_are_timed_on_what_they_take(tmp_path, monkeypatch, capsys):
    batches, measure = [], speed._speed
    monkeypatch.setattr(speed, "_GAIN", 0.0)  # whatever a batch gains, the next one is tried

    def measured(*a):
        batches.append(a[2][0])
        return measure(*a)

    monkeypatch.setattr(speed, "_speed", measured)
    model("tats").save_pretrained(tmp_path / "mine")
    assert (
        main(
            [
                "eval",
                "--speed",
                f"--ckpt={tmp_path / 'mine'}",
                "--dtype=fp32",
                "--largest-batch=2",
                *SIZE,
            ]
        )
        == 0
    )
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert "float32, clips of 17×16×16" in header
    for line, work in zip(lines, speed.WORKS, strict=True):
        assert re.search(rf"^mine \(16×16×16\) +{work} +[0-9.]+ \(", line)
    assert batches == [1, 2, 1, 2]  # no larger one than was asked for


@pytest.mark.usefixtures("own_log")
def test_a_model_that_does_not_fit_stops_no_other(monkeypatch, capsys):
    def full_memory(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(speed, "speeds", full_memory)
    both = [(name, lambda: model("image")) for name in "ab"]
    monkeypatch.setattr("odvae_jax.evaluation.table1.random_models", lambda dtype: both)
    assert main(["table1", "--speed", "--work=encode", *SIZE]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split() for line in lines] == [
        [name, "encode", "not", "enough", "memory"] for name in "ab"
    ]
