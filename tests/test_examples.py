"""What README and the pages print runs as printed, in a folder that is empty but for videos."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import odvae_jax
from odvae_jax.data.clips import RandomClips
from odvae_jax.data.video import inspect_video, write_video
from odvae_jax.latents import LatentDataset, LatentsFile
from tests.test_readme import BLOCK, ROOT, blocks

# Blocks that say so need what the folder does not hold. Videos it holds.
NOT_HERE = re.compile(r"in the checkout|^# (?!VIDEOS: a folder of your own$).* of your own", re.M)
VIDEOS = "# VIDEOS: a folder of your own"
DOCS = ROOT / "docs"


def run_page(page, folder):
    """Runs the examples of a page one after another, and returns those that ran, joined.

    A Python example that begins with the name of a file is written into that file.
    """
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    ran = ""
    for language, code in BLOCK.findall(page.read_text()):
        if NOT_HERE.search(code) or language not in ("python", "sh"):
            continue
        if VIDEOS in code and not (folder / "VIDEOS").exists():
            make_videos(folder / "VIDEOS")
        ran += code
        if name := re.match(r"# (\w+\.py)\n", code):
            (folder / name[1]).write_text(code)
            continue
        shell = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
        done = subprocess.run(
            [*shell, code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, code + done.stdout + done.stderr
    return ran


def make_videos(folder):
    """Writes two videos of 17 frames of 136×128; cut, they have the size of the other examples."""
    folder.mkdir()
    clips = RandomClips("sample-clips", frames=17, size=136)
    for i in range(2):
        write_video(folder / f"{i}.mp4", clips[i][:, :, :128], 24)


def test_the_readme_runs_as_printed_in_an_empty_folder(tmp_path):
    ran = run_page(ROOT / "README.md", tmp_path)
    assert "from_pretrained" in ran and "decode" in ran
    made = inspect_video(tmp_path / "reconstruction.mp4")
    assert made.frames > 1 and min(made.height, made.width) >= 64


def test_the_quickstart_runs_as_printed_in_a_folder_with_videos(tmp_path):
    ran = run_page(DOCS / "quickstart.md", tmp_path)
    for words in ("odvae eval", "odvae encode", "odvae decode", "from_pretrained", "jax.jit"):
        assert words in ran
    original, decoded = (inspect_video(tmp_path / f"{name}.mp4") for name in ("clip", "decoded"))
    assert decoded.frames == original.frames > 1
    assert (decoded.height, decoded.width) == (original.height, original.width)
    assert LatentsFile(tmp_path / "clip.safetensors").info.model == "small"
    assert (tmp_path / "results" / "results.html").is_file()
    assert [inspect_video(path).frames for path in (tmp_path / "DECODED").iterdir()] == [17, 17]


@pytest.mark.full
@pytest.mark.parametrize(
    ("page", "left"),
    [
        ("choosing", ()),
        ("encode-inside", ()),
        ("fine-tuning", ("runs/try/model/config.json", "runs/try/eval/results.html")),
        (
            "extending",
            (
                "runs/smooth/model",
                "runs/squares/model",
                "runs/little/model",
                "runs/compared/results.html",
                "runs/colour/colour.npy",
            ),
        ),
    ],
)
def test_the_page_runs_as_printed(page, left, tmp_path):
    assert run_page(DOCS / f"{page}.md", tmp_path)
    missing = [name for name in left if not (tmp_path / name).exists()]
    assert not missing


@pytest.mark.full
def test_the_loop_with_captions_that_the_page_about_latents_prints_goes_on_where_it_ended(tmp_path):
    text = (DOCS / "latents.md").read_text()
    page = tmp_path / "section.md"
    page.write_text(re.search(r"^## Captions, .*?(?=^## )", text, re.M | re.S)[0])
    assert "odvae encode" in run_page(page, tmp_path)
    assert json.loads((tmp_path / "state.json").read_text()) == {"next": 10}
    (code,) = blocks(page, "python")
    (tmp_path / "state.json").write_text('{"next": 8}')
    page.write_text(f"```python\n{code}```\n")
    run_page(page, tmp_path)
    assert json.loads((tmp_path / "state.json").read_text()) == {"next": 10}
    dataset = LatentDataset(str(tmp_path / "CAPTIONED"))
    captions = {item["columns"]["caption"] for item in dataset}
    assert captions == {"a bicycle, seen from behind", "a rabbit on a meadow"}


def test_the_latents_that_the_quickstart_makes_have_deviation_1_per_channel_on_the_sample_clips():
    (code,) = (c for c in blocks(DOCS / "quickstart.md", "python") if "def latents" in c)
    tree = ast.parse(code)
    wanted = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    tree.body = [node for node in tree.body if isinstance(node, wanted)]
    exec(compile(tree, "quickstart.md", "exec"), names := {})
    vae = odvae_jax.from_pretrained("small", dtype="float32")
    clips = RandomClips("sample-clips", frames=17, size=128, seed=1)  # not those of calibration
    z = np.concatenate([names["latents"](vae, clips[i][None], jax.random.key(i)) for i in range(8)])
    np.testing.assert_allclose(z.std((0, 1, 2, 3)), 1, atol=0.1)
    np.testing.assert_allclose(z.mean((0, 1, 2, 3)), 0, atol=0.25)


def test_the_pictures_are_small_and_those_that_the_command_of_the_gallery_makes():
    made = runpy.run_path(str(DOCS / "gallery.py"))["PICTURES"]
    there = {path.stem.removeprefix("gallery-"): path for path in DOCS.glob("*.webp")}
    assert there.keys() == made.keys()
    sizes = {name: path.stat().st_size for name, path in there.items()}
    assert sizes.pop("demo") <= 400_000 and sum(sizes.values()) <= 300_000
    shown = (ROOT / "README.md").read_text() + (DOCS / "gallery.md").read_text()
    assert all(path.name in shown for path in there.values())
