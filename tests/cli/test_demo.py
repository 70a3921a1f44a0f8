"""The demo: two commands and a page that shows what they left."""

import base64
import re

import pytest
from PIL import Image

from odvae_jax.cli import demo, main


@pytest.fixture
def smaller(monkeypatch):
    """The demo's commands on fewer and smaller frames."""
    whole = demo._commands

    def commands(output, clip):
        sizes = {"--frames=17": "--frames=5", "--size=128": "--size=32"}
        return [(title, [sizes.get(a, a) for a in argv]) for title, argv in whole(output, clip)]

    monkeypatch.setattr(demo, "_commands", commands)


def test_the_demo_shows_its_commands_and_a_page_with_all_pictures(smaller, tmp_path, capfd):
    assert main(["demo", f"--output={tmp_path}"]) == 0
    said = capfd.readouterr().out
    assert "$ odvae eval --ckpt=small" in said and "$ odvae reconstruct " in said
    ours, blocks = map(float, re.search(r"each: ([\d.]+) dB; .*: ([\d.]+) dB\.", said).groups())
    assert ours > blocks
    page = (tmp_path / "demo.html").read_text()
    media = re.findall(r'src="data:(\w+/\w+);base64,([^"]+)"', page)
    assert [kind for kind, _ in media] == ["image/png", *["video/mp4"] * 3]
    assert base64.b64decode(media[-1][1]) == (tmp_path / "streamed.mp4").read_bytes()
    assert Image.open(tmp_path / "eval" / "frames.png").size[0] == 4 * 32


def test_the_demo_ends_with_the_status_of_a_command_that_failed(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(demo, "_commands", lambda *_: [("Nothing", ["eval", "--ckpt=none"])])
    assert main(["demo", f"--output={tmp_path}"]) != 0
    assert not (tmp_path / "demo.html").exists()
