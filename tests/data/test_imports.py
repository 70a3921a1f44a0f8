"""Who imports whom, seen from the packages that read and write videos."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "odvae_jax"


def imported(path):
    """The modules of this package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "odvae_jax")


@pytest.mark.parametrize(
    "package", ["odvae_jax.data.sources", "odvae_jax.data.video", "odvae_jax.data.collecting"]
)
def test_reading_videos_imports_no_jax(package):
    script = f"import sys, {package}\n"
    script += "print(sorted({name.split('.')[0] for name in sys.modules}))"
    run = [sys.executable, "-c", script]
    modules = ast.literal_eval(subprocess.run(run, cwd=ROOT, check=True, capture_output=True,
                                              text=True).stdout)  # fmt: skip
    assert "av" in modules and not {"jax", "jaxlib", "flax"} & set(modules)


def test_data_imports_nothing_but_itself_and_the_writing_and_checking_of_files():
    files = list(PACKAGE.glob("data/**/*.py"))
    assert len(files) > 20
    allowed = ("odvae_jax.data.", "odvae_jax.files.", "odvae_jax.digests")
    for path in files:
        for name in imported(path):
            assert name.startswith(allowed), (path, name)


def test_one_source_knows_nothing_of_the_others():
    """But for those whose videos are files, and clips that are made of pictures."""
    others = {"sample_clips": {"files"}, "ucf101": {"files"}, "motion": {"pictures"}}
    shared = {"base", "containers", "images", "packed_format", "records", "tables"}
    shared |= {"options", "ucf101_classes"}
    for path in PACKAGE.glob("data/sources/*.py"):
        if path.stem in ("__init__", "parsing"):
            continue
        for name in imported(path):
            if name.startswith("odvae_jax.data.sources."):
                allowed = shared | others.get(path.stem, set())
                assert name.split(".")[3] in allowed, (path, name)
