"""README and the pages of docs/: what they print runs, and what they name exists."""

import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odvae_jax
from odvae_jax.cli import COMMANDS
from odvae_jax.cli.configs import load_config
from odvae_jax.cli.parsing import Parser
from odvae_jax.config import ODVAEConfig
from odvae_jax.data.clips import RandomClips
from odvae_jax.parameters import abstract_model
from odvae_jax.training.config import check, model_config
from tests.test_imports import LAYERS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What only the site shows, such as tables of contents.
DIRECTIVE = re.compile(r"^```\{.*?^```", re.DOTALL | re.MULTILINE)
# Files and folders in the pages that are the reader's, or that a run writes.
OWN = ("runs/", "model/", "~/", "LATENTS/", "17x128x128/", "COLLECTED/")
OWN += ("FILE.py", "frames.py", "my_losses.py", "my_model.py", "results/results.html")
OWN += ("AILab-CVC/", "hpcai-tech/", "owner/")  # of the hub
CONFIG = ("config.json", "config.py")  # files, where other words that begin so are fields


def blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


def spoken(page):
    """What stands in backticks outside of blocks."""
    texts = re.findall(r"`([^`]+)`", DIRECTIVE.sub("", BLOCK.sub("", page.read_text())))
    return [" ".join(text.split()) for text in texts]


def commands(page):
    """The command lines of a page, in blocks and in backticks, as lists of words."""
    texts = blocks(page, "sh") + [text for text in spoken(page) if " " in text]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    for line in lines:
        if not re.match(r"(\w+=\S+ )*(odvae|python|make) ", line):
            continue
        words = shlex.split(line, comments=True)
        while "=" in words[0]:
            words.pop(0)
        yield words


def parser_of(command):
    module = importlib.import_module(f"odvae_jax.cli.{command.replace(' ', '_')}")
    parser = Parser(f"odvae {command}", module.__doc__, module.EXAMPLE)
    module.add_arguments(parser)
    return parser


def options_of(file):
    """The options that a benchmark defines, itself or with what all benchmarks share."""
    shared = ROOT / "benchmarks" / "common.py"
    text = file.read_text() + shared.read_text()
    return set(re.findall(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?([\w-]+)"', text))


def test_the_training_step_that_the_page_about_encoding_prints_runs_and_trains_no_encoder(tmp_path):
    page = ROOT / "docs" / "encode-inside.md"
    (code,) = (code for code in blocks(page, "python") if "def step" in code)
    code = code.replace("@jax.jit\ndef step", "@jax.jit\n@chex.assert_max_traces(n=1)\ndef step")
    assert "max_traces" in code
    (tmp_path / "page.py").write_text(code)
    names = runpy.run_path(str(tmp_path / "page.py"), {"chex": chex})
    vae, clips = names["vae"], RandomClips("sample-clips", frames=5, size=32)
    assert np.isfinite(names["losses"]).all() and np.any(names["parameters"]["kernel"])
    # The samples are those of the posterior, normalised, and no gradient reaches the encoder.
    batch, key = np.stack([clips[0], clips[1]]), jax.random.key(3)
    z = names["to_latents"](vae, batch, key)
    posterior = odvae_jax.encode_uint8(vae, batch)
    noise = jax.random.normal(key, posterior.mean.shape)
    sample = posterior.mean + np.exp(posterior.logvar / 2) * noise
    expected = (sample - np.array(vae.config.latents_mean)) / np.array(vae.config.latents_std)
    np.testing.assert_allclose(z, expected, atol=1e-4)
    gradient = jax.jit(
        jax.grad(lambda vae: jnp.sum(names["to_latents"](vae, batch, key).astype(jnp.float32)))
    )(vae)
    assert not any(np.any(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(gradient))


def test_what_the_page_about_diffusion_prints_runs():
    use, training = blocks(ROOT / "docs" / "diffusion.md", "python")
    small = re.sub(r'\.of\(\s*"S/2",', "(depth=2, width=8, heads=2,", use)
    assert small != use
    exec(compile(f"{small}\n{training}", "diffusion.md", "exec"), names := {})
    assert names["z"].shape == (2, 3, 4, 4, 4) and names["video"].shape == (2, 9, 32, 32, 3)
    given = names["z"], jnp.array([3, 5]), jax.random.key(0)
    first, second = (names["step"](names["model"], names["optimizer"], *given) for _ in range(2))
    assert 0 < second < first < np.inf


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_that_a_page_names_exists(page):
    missing = []
    for text in spoken(page):
        for word in text.split():
            path = re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word)
            if not path or not ("/" in word or word.endswith(".py")) or word.startswith(OWN):
                continue
            if not any((folder / word).exists() for folder in (ROOT, ROOT / "odvae_jax")):
                missing.append(word)
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    missing += [n for n in links if "://" not in n and not (page.parent / n).exists()]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_name_of_the_package_that_a_page_has_exists(page):
    text = page.read_text()
    names = set(re.findall(r"\bodvae_jax(?:\.[A-Za-z_]\w*)+", text)) - {"odvae_jax.git"}
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("odvae_jax"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    for name in sorted(names):
        found = odvae_jax
        parts = name.split(".")[1:]
        for i, part in enumerate(parts, 2):
            if not hasattr(found, part):
                importlib.import_module(".".join(name.split(".")[:i]))
            found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_that_a_page_prints_is_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        program, *rest = words
        if "…" in rest or "--help" in rest:
            continue
        if program == "make":
            assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text()
        elif program == "python":
            file = ROOT / rest[0]
            used = {word[2:].partition("=")[0] for word in rest[1:] if word.startswith("--")}
            assert used <= options_of(file), words
        else:
            assert program == "odvae"
            command = next(c for c in (" ".join(rest[:2]), rest[0]) if c in COMMANDS)
            rest = [re.sub(r"^--config=\w+\.py$", "--config=v4", word) for word in rest]
            if len(rest) > len(command.split()):  # else it is the command's name alone
                parser_of(command).parse(rest[len(command.split()) :])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_option_and_field_that_a_page_names_exists(page):
    known = {"help", "version"}
    for command in COMMANDS:
        names = parser_of(command)._option_string_actions
        known |= {name[2:] for name in names if name.startswith("--")}
    for file in (ROOT / "benchmarks").glob("*.py"):
        known |= options_of(file)
    # The one with the most fields of an autoencoder's, or a denoiser's.
    fields = load_config({"diffusion": "latte", "table2": "table2"}.get(page.stem, "ablation"))
    for text in spoken(page):
        if text.startswith("--"):
            name = re.match(r"--([\w.-]+)", text)[1]
            assert name in known or name.startswith("config.") or name == "file_format", text
        if (found := re.match(r"(?:--)?(config\.[\w.]+)", text)) and found[1] not in CONFIG:
            section = fields
            for part in found[1].split(".")[1:]:
                if not hasattr(section, part):
                    section = ODVAEConfig()
                section = getattr(section, part)


def test_the_row_that_the_page_about_models_prints_is_a_model(tmp_path):
    (code,) = (c for c in blocks(ROOT / "docs" / "models.md", "python") if "my_model.py" in c)
    (tmp_path / "my_model.py").write_text(code)
    config = load_config(str(tmp_path / "my_model.py"))
    config.data.path = "VIDEOS"
    check(config, jax.devices()[:1])
    model = model_config(config)
    assert (model.time_compression, model.space_compression) == (8, 8)
    video = jax.ShapeDtypeStruct((1, config.data.frames, 16, 24, 3), "float32")
    moments = jax.eval_shape(lambda vae, x: vae.to_moments(x), abstract_model(model), video)
    assert moments.shape == (1, 3, 2, 3, 8)


def test_the_layers_that_the_page_about_architecture_prints_are_those_tested():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| \d+ \| (.*) \|$", text.split("## Who may import whom")[1], re.MULTILINE)
    printed = [{name.strip("/") for name in re.findall(r"`([^`]+)`", row)} for row in rows]
    assert [*printed, {"__main__"}] == LAYERS


def test_the_tables_that_the_page_about_architecture_names_are_in_the_files_it_names():
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Which file")[1].split("## Who may")[0]
    cells = [line.split("|")[3] for line in section.splitlines() if line.startswith("|")]
    found = set()
    for cell in cells:
        names = re.findall(r"`([\w/]+\.py)`", cell)
        paths = [folder / name for name in names for folder in (ROOT, ROOT / "odvae_jax")]
        content = "".join(path.read_text() for path in paths if path.exists())
        for table in re.findall(r"`(_?[A-Z]{4,})`", cell):
            assert re.search(rf"^({table}|\w+, {table})\b.* = ", content, re.MULTILINE), table
            found.add(table)
    assert {"TABLE", "SOURCES", "STRUCTURES", "TASKS", "COMMANDS", "_FOREIGN"} <= found
