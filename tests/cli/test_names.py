"""Configs and models by name, from any folder; short names of dtypes; the home folder."""

import sys
from pathlib import Path

import pytest

from odvae_jax import ODVAE, shipped
from odvae_jax.checkpoints import pretrained
from odvae_jax.cli import main
from odvae_jax.cli.configs import load_config, read_config
from odvae_jax.cli.parsing import full_dtype, labelled, source
from tests.cli.test_commands import parser_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def never(message):
    raise AssertionError(message)


@pytest.mark.parametrize("name", shipped.config_names())
def test_shipped_configs_are_found_from_an_empty_folder(name):
    assert load_config(name) == load_config(str(ROOT / "configs" / f"{name}.py"))


def test_all_files_of_configs_and_models_have_a_name():
    configs = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert {*shipped.config_names(), "__init__"} == configs
    assert shipped.model_names() == ["small", "small-image"]


def test_what_stands_after_the_colon_reaches_the_config():
    assert load_config("quick:image").model.structure == "image"
    assert load_config("quick:video").model.structure == "v4"
    assert load_config("v4:phase2").steps == 450_000


def test_the_small_model_is_found_from_an_empty_folder():
    assert ODVAE.from_pretrained("small").config.width == 32


def test_a_path_that_exists_goes_before_a_shipped_name(empty_folder):
    (empty_folder / "small").mkdir()
    (empty_folder / "v4").write_text("")
    assert shipped.model_path("small").resolve() == empty_folder / "small"
    assert shipped.config_path("v4").resolve() == empty_folder / "v4"
    with pytest.raises(FileNotFoundError, match=r"small/config.json does not exist"):
        ODVAE.from_pretrained("small")


@pytest.mark.parametrize(
    "name",
    [
        "nowhere",
        "./owner/name",
        "../owner",
        ".hidden/name",
        "/owner/name",
        "~/name",
        "a/b/c",
        "owner/name.safetensors",
        "owner/name.ckpt",
        "owner/name.py",
        "runs/v4",
    ],
)
def test_what_looks_like_a_local_path_is_never_asked_of_the_hub(name, empty_folder, monkeypatch):
    (empty_folder / "runs").mkdir()
    monkeypatch.setattr(pretrained, "_download", lambda *_: never("the hub was asked"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ODVAE.from_pretrained(name)


def test_owner_and_name_are_asked_of_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(
        pretrained, "_download", lambda name, *_: asked.append(name) or shipped.model_path("small")
    )
    assert ODVAE.from_pretrained("owner/name.v1-2").config.width == 32
    assert asked == ["owner/name.v1-2"]


OWN = """
from __future__ import annotations
import dataclasses
import beside
from odvae_jax.training.config import default_config

@dataclasses.dataclass
class Own:
    field: int

def get_config(steps="7"):
    config = default_config()
    config.steps = int(steps)
    config.data.path = beside.PATH
    config.model.dtype = "fp16"
    return config
"""


def test_a_config_of_the_user_s_own_works_from_anywhere(empty_folder, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    own = empty_folder / "elsewhere" / "own.py"
    own.parent.mkdir()
    own.write_text(OWN)
    (own.parent / "beside.py").write_text('PATH = "~/videos"')
    monkeypatch.setenv("HOME", "/home/me")
    config, rest = read_config([f"--config={own}:9", "--workdir=x"], never)
    assert (config.steps, config.data.path) == (9, "/home/me/videos")
    assert config.model.dtype == "float16" and config.is_locked and rest[-1] == "--workdir=x"


@pytest.mark.parametrize(
    "content, words",
    [("", "has no function get_config"), ("get_config = dict", "returned a dict; expected a")],
)
def test_a_file_that_is_no_config_is_refused(content, words, empty_folder, capsys):
    (empty_folder / "own.py").write_text(content)
    assert main(["train", "--config=own.py", "--workdir=run"]) == 2
    assert words in capsys.readouterr().err


def test_fields_are_changed_by_options_of_their_types():
    given = ["--config=ablation", "--config.steps=3", "--workdir", "run", "--noconfig.data.flip"]
    given += ["--config.continue_with_changes", "--config.data.path", "a b", "--init=x"]
    given += ["--config.ablation.variants=1", "--config.ablation.variants=4"]
    given += ["--config.ablation.initialisations=('tail',)", "--config.loss.kl_weight=1"]
    config, rest = read_config(given, never)
    assert rest == ["--config=ablation", "--workdir", "run", "--init=x"]
    assert (config.steps, config.data.flip, config.continue_with_changes) == (3, False, True)
    assert config.data.path == "a b" and config.loss.kl_weight == 1.0
    assert config.ablation.variants == (1, 4) and config.ablation.initialisations == ("tail",)


def test_short_names_of_dtypes_and_the_home_folder_are_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [full_dtype(name) for name in ("bf16", "fp32", "f32", "fp16", "BF16", "int8")] == [
        "bfloat16", "float32", "float32", "float16", "bfloat16", "int8",
    ]  # fmt: skip
    given = ["--config=v4", "--config.model.dtype=fp32", "--config.init.from_pretrained=~/sd"]
    config, _ = read_config([*given, "--config.data.path=0.5*folder:~/a; 0.5*~/b~"], never)
    assert config.model.dtype == "float32" and config.init.from_pretrained == "/home/me/sd"
    assert config.data.path == "0.5*folder:/home/me/a; 0.5*/home/me/b~"
    assert source("tfds:a~/b") == "tfds:a~/b"
    assert labelled("ours=~/runs/a") == "ours=/home/me/runs/a" and labelled("~/a") == "/home/me/a"
    words = ["~/in", "~/out", "--ckpt=~/m", "--dtype=bf16", "--store=fp16"]
    arguments = parser_of("encode").parse(words)
    assert (arguments.inputs, arguments.output) == (["/home/me/in"], "/home/me/out")
    assert (arguments.ckpt, arguments.dtype) == ("/home/me/m", "bfloat16")
    assert arguments.store == "float16"
    assert shipped.model_path("~/m") == Path("/home/me/m")
