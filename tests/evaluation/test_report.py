"""eval.py as a user runs it, and its page in a real browser."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from odvae_jax.cli import main
from odvae_jax.data.video import inspect_video
from tests.browser import opened, played
from tests.conftest import small_model, write_clip

ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=environment,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two models on two good videos and a broken one: what was printed, and the folder."""
    path = tmp_path_factory.mktemp("report")
    small_model().save_pretrained(path / "a b" / "model")
    small_model("image").save_pretrained(path / "image")
    (path / "videos").mkdir()
    for i in range(2):
        write_clip(path / "videos" / f"clip {i} ä.mp4", seed=i, frames=12)
    (path / "videos" / "fake.mp4").write_text("not a video")
    arguments = [f"--ckpt=video={path / 'a b'}", "--ckpt", path / "image", "--data"]
    arguments += [
        path / "videos",
        "--frames=9",
        "--size=32",
        "--tiling=5",
        "--output",
        path / "out",
    ]
    done = run(*arguments)
    assert done.returncode == 1 and "1 video was skipped" in done.stderr, done.stderr
    return done.stdout, path / "out", arguments


def test_the_tables_are_printed_and_written(report):
    printed, output, _ = report
    rows = {line.split("  ")[0]: line for line in printed.splitlines()[1:5]}
    assert list(rows) == ["video", "image", "mean of 1×8×8 blocks", "mean of 4×8×8 blocks"]
    read = json.loads((output / "results.json").read_text())
    for row in read["models"]:
        for name, digits in (("psnr", 2), ("ssim", 4), ("lpips", 4), ("rfvd", 1)):
            assert f"{row['scores'][name]['mean']:.{digits}f}" in rows[row["model"]]
        psnr = row["scores"]["psnr"]
        assert f"({psnr['low']:.2f}–{psnr['high']:.2f})" in rows[row["model"]]
    assert [row["vcpr"] for row in read["models"]] == [256, 64, 64, 256]
    markdown = (output / "results.md").read_text()
    for text in (printed, markdown):
        assert "2 clips of 9 frames, 32×32" in text and "temporal tiling 5" in text
        assert "rFVD of 2 clips; under 400" in text
        assert "1 video was skipped" in text and "fake.mp4 cannot be read" in text
    assert [c.count("|") for c in markdown.splitlines()[:6]] == [10] * 6


@pytest.mark.usefixtures("own_log")
def test_a_metric_that_nobody_asked_for_has_no_column_and_no_note(tmp_path, capsys):
    """In the terminal, in Markdown and on the page; those that are asked for are all there."""
    small_model("image").save_pretrained(tmp_path / "image")
    (tmp_path / "videos").mkdir()
    write_clip(tmp_path / "videos" / "one.mp4", 1, 32, 32)
    words = [f"--ckpt={tmp_path / 'image'}", f"--data={tmp_path / 'videos'}", "--nofloor"]
    words += ["--frames=1", "--size=32", "--nofvd", f"--output={tmp_path / 'out'}"]
    assert main(["eval", *words]) == 0
    written = [(tmp_path / "out" / f"results.{kind}").read_text() for kind in ("md", "html")]
    for text in (capsys.readouterr().out, *written):
        assert "rFVD" not in text and "missing" not in text
        assert all(title in text for title in ("PSNR", "SSIM ↑", "LPIPS ↓"))


def test_clips_and_figures_are_written(report):
    _, output, _ = report
    names = {p.name for p in output.iterdir()}
    assert names == {
        "by_frame.png",
        "clips",
        "frames.png",
        "measurements",
        "results.html",
        "results.json",
        "results.md",
    }
    for stem in ("best", "worst"):
        video = inspect_video(output / "clips" / f"{stem}.mp4")
        # Original and two models, each 32 wide, above their differences, each with its name.
        assert (video.frames, video.width, video.height) == (9, 96, 2 * (32 + 24))
        assert Image.open(output / "clips" / f"{stem}.png").size == (96, 3 * 2 * (32 + 24))
    assert Image.open(output / "frames.png").size == (4 * 32, 2 * (2 * 32 + 8))


def test_the_page_works_in_a_browser(report, tmp_path):
    with opened(report[1] / "results.html", tmp_path / "profile") as page:
        rows = page.execute_script(
            "return [...document.querySelectorAll('table')].map(t =>"
            " [...t.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText)))"
        )
        assert [len(table) for table in rows] == [4, 4, 2]
        assert all(cell for table in rows for row in table for cell in row)
        assert rows[0][0][0] == "video" and rows[2][0][0] == "clip 0 ä.mp4"
        images = page.execute_script(
            "return [...document.images].map(i => i.complete && i.naturalWidth)"
        )
        assert len(images) == 2 and all(images)
        assert played(page) == [[96, pytest.approx(9 / 12, abs=0.05)]] * 2
        assert page.get_log("browser") == []
        wide = page.execute_script("return document.documentElement.scrollWidth")
        assert wide <= 1200


def test_the_same_command_measures_nothing_again(report):
    printed, output, arguments = report
    before = {p: p.read_bytes() for p in output.rglob("*.jsonl")}
    again = run(*arguments)
    assert again.returncode == 1 and again.stdout == printed
    assert {p: p.read_bytes() for p in output.rglob("*.jsonl")} == before


@pytest.mark.full
def test_speed_is_printed_for_a_checkpoint(report):
    _, output, _ = report
    done = run(
        "--speed", "--ckpt", output.parent / "a b", "--frames=5", "--size=16", "--work=encode"
    )
    assert done.returncode == 0, done.stderr
    header, _, line = done.stdout.splitlines()
    assert "clips of 5×16×16" in header
    assert line.split()[:3] == ["a", "b", "encode"] and float(line.split()[3]) > 0


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data=sample-clips"], "--ckpt and --data are needed"),
        (["--ckpt=nowhere", "--data=sample-clips"], "nowhere does not exist"),
        (["--ckpt=models", "--data=sample-clips"], "models/config.json does not exist"),
        (["--ckpt=models/small", "--data=docs"], "docs"),
        (
            ["--ckpt=models/small", "--data=sample-clips", "--frames=24", "--strict"],
            "T must be 4k + 1",
        ),
        (["--ckpt=models/small", "--data=sample-clips", "--tiling=6"], "is not 4k + 1"),
        (["--ckpt=models/small", "--data=sample-clips", "--shard=4/4"], "--shard=4/4 is not i/n"),
        (["--ckpt=models/small", "--data=sample-clips", "--shard=0/2"], "needs --output"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_in_one_line(arguments, words, capsys):
    assert main(["eval", *arguments]) > 0
    message = capsys.readouterr().err
    assert message.startswith("odvae eval: ") and words in message and message.count("\n") == 1
