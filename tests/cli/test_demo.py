"""The demo: its commands, and a page that shows what they left."""

import argparse
import base64
import re

import jax
import pytest
from PIL import Image

from odvae_jax import cli
from odvae_jax.cli import demo, main


@pytest.fixture
def smaller(monkeypatch):
    """The demo's commands on fewer and smaller frames."""
    whole = demo._commands

    def commands(output, clip):
        sizes = {"--frames=17": "--frames=5", "--size=128": "--size=32"}
        return [(title, [sizes.get(a, a) for a in argv]) for title, argv in whole(output, clip)]

    monkeypatch.setattr(demo, "_commands", commands)
    few = {"data.size": 32, "data.short_side": 32, "data.short_side_max": 32, "steps": 1}
    few |= {"batch_size": 1, "optimizer.warmup_steps": 0}
    monkeypatch.setattr(demo, "_TUNING", demo._TUNING | few)


def gain(said):
    """The dB before and after tuning, and their difference, as they were printed."""
    pattern = r"([\d.]+) dB before, ([\d.]+) dB after, ([+-][\d.]+) dB on the last 17 frames"
    return map(float, re.search(pattern, said).groups())


def test_the_demo_shows_its_commands_and_a_page_with_all_pictures(smaller, tmp_path, capfd):
    assert main(["demo", f"--output={tmp_path}", "--no-fine-tune"]) == 0
    said = capfd.readouterr().out
    assert "$ odvae eval --ckpt=small" in said and "$ odvae reconstruct " in said
    ours, blocks = map(float, re.search(r"each: ([\d.]+) dB; .*: ([\d.]+) dB\.", said).groups())
    assert ours > blocks
    page = (tmp_path / "demo.html").read_text()
    media = re.findall(r'src="data:(\w+/\w+);base64,([^"]+)"', page)
    assert [kind for kind, _ in media] == ["image/png", *["video/mp4"] * 3]
    assert base64.b64decode(media[-1][1]) == (tmp_path / "streamed.mp4").read_bytes()
    assert Image.open(tmp_path / "eval" / "frames.png").size[0] == 4 * 32


def test_the_demo_measures_no_model_whose_tuning_was_stopped(monkeypatch, tmp_path, capfd):
    (tmp_path / "tuned" / "checkpoints" / "7").mkdir(parents=True)
    begun = []
    monkeypatch.setattr(cli, "main", lambda argv: begun.append(argv[0]) or 0)
    assert demo.run(argparse.Namespace(output=str(tmp_path), fine_tune=True)) == 130
    assert begun == ["eval", "reconstruct", "train"]
    assert "same command" in capfd.readouterr().err
    assert not (tmp_path / "demo.html").exists()


def test_no_frame_that_the_demo_measures_the_tuned_model_on_is_tuned_on(smaller, tmp_path):
    commands = {argv[0]: argv for _, argv in demo._fine_tuning(tmp_path, "clip.mp4")}
    assert f"--config.batch_size={jax.device_count()}" in commands["train"]  # it divides
    assert "--config.data.holdout=17" in commands["train"]
    assert {"--start=-17", "--frames=17", "--data=clip.mp4"} <= {*commands["eval"]}
    assert "--config.data.path=clip.mp4" in commands["train"]


@pytest.mark.full
def test_the_demo_tunes_and_goes_on_with_what_is_there(smaller, tmp_path, capfd):
    for _ in range(2):
        assert main(["demo", f"--output={tmp_path}"]) == 0
        before, after, difference = gain(capfd.readouterr().out)
        assert difference == pytest.approx(after - before, abs=0.011)
    page = (tmp_path / "demo.html").read_text()
    media = re.findall(r'src="data:(\w+/\w+);base64,([^"]+)"', page)
    assert base64.b64decode(media[-1][1]) == (tmp_path / "gain.png").read_bytes()
    assert base64.b64decode(media[-2][1]) == (tmp_path / "gain/clips/only.mp4").read_bytes()


@pytest.mark.full
def test_the_demo_gains_a_decibel_on_frames_that_are_not_tuned_on(tmp_path, capfd):
    assert main(["demo", f"--output={tmp_path}"]) == 0
    *_, difference = gain(capfd.readouterr().out)
    assert difference >= 1


def test_the_demo_ends_with_the_status_of_a_command_that_failed(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(demo, "_commands", lambda *_: [("Nothing", ["eval", "--ckpt=none"])])
    assert main(["demo", f"--output={tmp_path}"]) != 0
    assert not (tmp_path / "demo.html").exists()
