"""The command line itself: its help, what it imports, and what it says to mistyped words."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import odvae_jax
from odvae_jax.cli import COMMANDS, main
from odvae_jax.cli.parsing import Parser
from odvae_jax.inflation import METHODS

ROOT = Path(__file__).parents[2]


def module_of(command):
    return importlib.import_module(f"odvae_jax.cli.{command.replace(' ', '_')}")


def parser_of(command):
    module = module_of(command)
    parser = Parser(f"odvae {command}", module.__doc__, module.EXAMPLE)
    module.add_arguments(parser)
    return parser


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


HELP = """
import sys, time
begun = time.perf_counter()
from odvae_jax.cli import COMMANDS, main
assert main(["--help"]) == main(["--version"]) == 0
print("seconds:", time.perf_counter() - begun)
print("heavy:", sorted({"jax", "numpy", "absl"} & set(sys.modules)))
for command in COMMANDS:
    assert main([*command.split(), "--help"]) == 0
print("after all pages:", sorted({"jax", "ml_collections", "flax"} & set(sys.modules)))
"""


def test_help_and_version_come_at_once_and_no_help_imports_jax():
    said = python("-c", HELP)
    assert float(re.search("seconds: (.*)", said)[1]) < 1
    assert "heavy: []" in said and "after all pages: []" in said
    assert f"odvae {odvae_jax.__version__}\n" in said
    for command in COMMANDS:
        assert f"  {command} " in said and f"usage: odvae {command} " in said


def test_the_module_run_by_python_is_the_command(capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["odvae"].split(":")
    assert getattr(importlib.import_module(module), name) is main
    assert main(["--help"]) == 0
    assert python("-m", "odvae_jax", "--help") == capsys.readouterr().out


def test_every_command_has_a_file_and_every_file_a_command():
    files = {path.stem for path in (ROOT / "odvae_jax" / "cli").glob("*.py")}
    shared = {"__init__", "configs", "encode_dataset", "files", "measuring", "parsing", "programs"}
    assert files - shared == {command.replace(" ", "_") for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_whole_sentences_with_options_in_groups_and_an_example(command):
    parser = parser_of(command)
    texts = [parser.description, parser.description.splitlines()[0], COMMANDS[command]]
    texts += [action.help for action in parser._actions]
    for text in texts:
        assert text.endswith(".") and text[0].isupper(), text
    grouped = [action for group in parser._action_groups[2:] for action in group._group_actions]
    assert set(grouped) == set(parser._actions), "none in the two groups that argparse begins with"
    words = shlex.split(module_of(command).EXAMPLE)
    assert words[: len(command.split()) + 1] == ["odvae", *command.split()]
    parser.parse(words[len(command.split()) + 1 :])


def test_conversion_knows_all_ways_of_inflation():
    action = next(a for a in parser_of("convert")._actions if a.dest == "init")
    assert set(action.choices) == set(METHODS)


TRAIN = ["train", "--workdir=OUT", "--config=v4"]
EVAL = ["eval", "--data=sample-clips"]


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize(
    "words, said",
    [
        (["trian"], 'Did you mean "train"?'),
        (["data", "pak"], 'Did you mean "data pack"?'),
        (["inspect"], 'Did you mean "data inspect"?'),
        (["data"], "data inspect, data collect, data pack"),
        ([], "name a command: demo, train, eval"),
        (["--versoin"], 'Did you mean "--version"?'),
        (["encode", "a", "b", "--ckpt=small", "--tilng", "9"], 'Did you mean "--tiling"?'),
        (["encode", "a", "b", "--ckpt=small", "--dtype=bf61"], 'Did you mean "bf16"?'),
        (["encode", "sample-clips", "b", "--ckpt=smal"], 'Did you mean "small"?'),
        ([*EVAL, "--ckpt=smll"], 'Did you mean "small"?'),
        ([*EVAL, "--ckpt=A=models/smal"], 'Did you mean "small"?'),
        (["train", "--workdir=OUT", "--config=quik:image"], 'Did you mean "quick"?'),
        (["train", "--workdir=OUT", "--config=configs/v5.py"], 'Did you mean "v4"?'),
        (["train", "--workdir=OUT", "--config=ablation:x"], "leave out the colon"),
        (["train", "--workdir=OUT"], "--config is missing"),
        (["train"], "--config is missing"),
        (["ablate"], "--config is missing"),
        (["train", "--config=v4"], "--workdir"),
        ([*TRAIN, "--cofnig.steps=3"], "the option --cofnig.steps is not known"),
        ([*TRAIN, "--config.setps=3"], 'Did you mean "steps"?'),
        ([*TRAIN, "--config.path", "x"], 'Did you mean "config.data.path"?'),
        ([*TRAIN, "--config.model.widht=8"], 'Did you mean "width"? config.model has the fields'),
        ([*TRAIN, "--config.steps.a=8"], "config.steps has no fields"),
        ([*TRAIN, "--config.steps=many"], "--config.steps=many"),
        ([*TRAIN, "--config.steps"], "--config.steps"),
        (["convert", "small", "OUT", "--init=tail"], "give both"),
        (["convert", "small", "OUT", "--to=natve"], "native"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistyped_words_get_the_nearest_and_status_2(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "models").mkdir()
    assert main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.startswith("odvae") and not printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "models"]


def test_an_interrupted_command_says_whether_it_goes_on(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    for command, words in (("eval", "interrupted; the same command goes on"), ("variants", "")):
        monkeypatch.setattr(module_of(command), "run", interrupted)
        assert main([command]) == 130
        said = capsys.readouterr().err
        assert words in said and ("goes on" in said) == (command == "eval")
