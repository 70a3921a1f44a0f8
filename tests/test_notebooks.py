"""The notebooks of docs/notebooks/: what they import and call exists, and they run to their end."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from odvae_jax.cli import COMMANDS
from odvae_jax.cli.parsing import Parser

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
NAMES = [path.stem for path in NOTEBOOKS]
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = "%%bash\n"


def cells(notebook):
    return CELL.findall(notebook.read_text())


def commands(notebook):
    """The command lines of a notebook that call odvae, as lists of words."""
    for cell in cells(notebook):
        if not cell.startswith(SHELL):
            continue
        for line in cell.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:1] == ["odvae"]:
                end = next((i for i, w in enumerate(words) if re.match(r"\||2?>", w)), len(words))
                yield words[1:end]


def test_there_are_three_notebooks():
    assert set(NAMES) == {"encode-decode", "fine-tune", "diffusion"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_s_cells_are_python_or_shell_and_what_they_import_exists(notebook):
    assert cells(notebook)
    for cell in cells(notebook):
        if cell.startswith(SHELL):
            continue
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and not node.module.startswith("IPython"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_s_commands_are_understood_and_their_fields_exist(notebook):
    for words in commands(notebook):
        command = next(c for c in COMMANDS if words[: len(c.split())] == c.split())
        module = importlib.import_module(f"odvae_jax.cli.{command.replace(' ', '_')}")
        parser = Parser(f"odvae {command}", module.__doc__, module.EXAMPLE)
        module.add_arguments(parser)
        parser.parse(words[len(command.split()) :])
    assert notebook.stem == "encode-decode" or any(
        words[0] == "train" for words in commands(notebook)
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_s_links_lead_to_pages_and_headings(notebook):
    for target, anchor in re.findall(r"\]\(([^)#\s]+)(?:#([^)]*))?\)", notebook.read_text()):
        page = notebook.parent / target
        assert page.exists(), target
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        known = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert not anchor or anchor in known, anchor


@pytest.mark.full
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_to_its_end(notebook, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):  # those of the tests make programs slow
        monkeypatch.delenv(name, raising=False)
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in cells(notebook)]
    )
    nbclient.NotebookClient(made, timeout=3600, kernel_name="python3").execute()
    printed = [output for cell in made.cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in printed)
    assert all(output.output_type != "error" for output in printed)
