import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odvae_jax.cli import main
from odvae_jax.data.clips import RandomClips
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import Sampling, open_source, unpack
from odvae_jax.data.video import VideoError, inspect_video, read_frames, write_video
from tests.conftest import write_clip

ROOT = Path(__file__).parents[2]
OPTIONS = {"short_side": 24, "seconds": 1.0, "videos_per_shard": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i in range(4):
        write_clip(path / f"clip{i}.mp4", frames=16 + 4 * i, seed=i, fps=12)
    (path / "fake.mp4").write_text("not a video")
    return path


@pytest.mark.parametrize("kind", ["raw", "h264"])
def test_what_is_packed_is_what_was_there(folder, tmp_path, kind):
    summary = pack_videos(str(folder), tmp_path / "packed", kind=kind, crf=1, **OPTIONS)
    assert "1 unusable" in str(summary) and "fake.mp4" in str(summary)
    source = open_source(f"array_record:{tmp_path / 'packed'}")
    # Parts of 12 frames, the last of 6 to 17: 16; 20 = 12 + 8; 24 = 12 + 12; 28 = 12 + 16.
    lengths, parts = [], []
    for i in range(len(source)):
        source.read(i, Sampling(1), 1, lambda n: lengths.append(n) or 0)
        parts.append(source.read(i, Sampling(lengths[-1]), 1, lambda n: 0))
    assert lengths == [16, 12, 8, 12, 12, 12, 16]
    wholes = [
        read_frames(inspect_video(folder / f"clip{i}.mp4"), 0, 16 + 4 * i, short_side=24)
        for i in range(4)
    ]
    error = np.concatenate(parts).astype(int) - np.concatenate(wholes)
    if kind == "raw":
        assert not error.any()
    else:  # these colours change from pixel to pixel, and the format keeps them for every fourth
        assert np.abs(error.mean(-1)).mean() < 6 and abs(error.mean()) < 1
    clips = RandomClips(f"array_record:{tmp_path / 'packed'}", frames=5, size=16)
    assert clips[3].shape == (5, 16, 16, 3) and not clips.skipped
    with pytest.raises(VideoError, match=r"clip0.mp4#0 has 16 frames; clips need 17"):
        source.read(0, Sampling(17), 1, lambda n: 0)


def test_an_interrupted_packing_goes_on_where_it_was(folder, tmp_path):
    whole = tmp_path / "whole"
    pack_videos(str(folder), whole, kind="raw", **OPTIONS)
    command = [sys.executable, "-m", "odvae_jax", "data", "pack", folder, tmp_path / "cut"]
    command += ["--short-side=24", "--seconds=1", "--videos-per-shard=2", "--kind=raw"]
    command += ["--workers=1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while not list((tmp_path / "cut").glob("videos-00000*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = next((tmp_path / "cut").glob("videos-00000*"))
    before = first.stat()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1, "fake.mp4"
    after = first.stat()
    if (tmp_path / "cut" / "packed.json").exists() and before.st_ino == after.st_ino:
        assert before.st_mtime_ns == after.st_mtime_ns, "a finished file is not written again"
    a, b = (open_source(f"array_record:{p}") for p in (whole, tmp_path / "cut"))
    assert [a.record(i) for i in range(len(a))] == [b.record(i) for i in range(len(b))]
    with pytest.raises(ValueError, match="holds another packing .short_side differ"):
        pack_videos(str(folder), whole, kind="raw", **{**OPTIONS, "short_side": 32})
    with pytest.raises(ValueError, match="holds other files"):
        pack_videos(str(folder), folder, **OPTIONS)


def test_what_cannot_be_packed_or_was_not_is_said(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "fake.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"none of 1 video could be packed:(.|\n)*fake.mp4"):
        pack_videos(str(tmp_path / "in"), tmp_path / "out", **OPTIONS)
    with pytest.raises(VideoError, match="a.bin was not written by `odvae data pack"):
        unpack(b"something else", "a.bin")


def test_several_processes_pack_the_same(folder, tmp_path):
    for workers in (1, 2):
        pack_videos(str(folder), tmp_path / str(workers), kind="raw", workers=workers, **OPTIONS)
    a, b = (open_source(f"array_record:{tmp_path / str(n)}") for n in (1, 2))
    assert [a.record(i) for i in range(len(a))] == [b.record(i) for i in range(len(b))]


def test_inspect_prints_what_training_would_see(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    options = ["--frames=5", "--size=24", "--clips=3", f"--output={sheet}", "--workers=1"]
    assert main(["data", "inspect", str(folder), *options]) == 0
    out = capsys.readouterr().out
    assert re.search(r"videos +5\nhours +0.00204\nresolutions +64×48 \(4\)\n", out), out
    assert re.search(r"frames/s +12 \(4\)\nunusable +1\n .*fake.mp4 cannot be read", out), out
    assert Image.open(sheet).size == (4 * 24, 3 * 24)
    main(["data", "inspect", str(folder), "--frames=20", *options[1:]])
    assert "clip0.mp4 has 16 frames; clips need 20." in capsys.readouterr().out
    assert main(["data", "inspect", "nowhere"]) == 1
    assert re.match(r"odvae data inspect: .*nowhere does not exist", capsys.readouterr().err)
    assert os.path.exists(sheet)


@pytest.mark.parametrize("holdout", [0, 4, 11, 12, 19])
def test_inspect_names_the_videos_that_training_passes_over_for_its_holdout(
    holdout, folder, tmp_path, capsys
):
    clips = RandomClips(folder, frames=5, size=24, holdout=holdout)
    for index in range(8):
        clips.note(clips.draw(index))
    words = ["--frames=5", "--size=24", "--clips=1", f"--output={tmp_path / 'a.png'}"]
    how = ["--workers=1", f"--holdout={holdout}"]
    assert main(["data", "inspect", str(folder), *words, *how]) == 0
    out, err = capsys.readouterr()
    assert f"unusable     {len(clips.skipped)}\n" in out
    assert {n for n in ("fake", "clip0", "clip1", "clip2") if f"{n}.mp4" in out} == {
        Path(name).stem for name in clips.skipped
    }
    held = f"clip0.mp4 has 16 frames, {holdout} of them held out; clips need 5."
    assert (held in out) == (holdout > 11)
    assert ("--holdout=4 is less than the 5 frames of a clip" in err) == (holdout == 4)


def test_the_picture_of_inspect_has_no_frame_that_is_held_out(tmp_path):
    frames = np.zeros((16, 48, 64, 3), np.uint8)
    frames[5:] = 255
    write_video(tmp_path / "clip.mp4", frames, 12)
    words = [str(tmp_path), "--frames=5", "--size=24", f"--output={tmp_path / 'sheet.png'}"]
    assert main(["data", "inspect", *words, "--holdout=11", "--workers=1"]) == 0
    assert np.asarray(Image.open(tmp_path / "sheet.png")).max() < 32


def test_inspect_takes_the_frames_of_a_clip_as_far_apart_as_training_does(tmp_path, capsys):
    frames = np.zeros((13, 48, 64, 3), np.uint8)
    frames[[0, 4, 8, 12]] = 255
    write_video(tmp_path / "clip.mp4", frames, 12)
    words = [str(tmp_path), "--size=24", "--workers=1", f"--output={tmp_path / 'sheet.png'}"]
    for how in ("--stride=4", "--fps=3"):
        assert main(["data", "inspect", *words, "--frames=4", how]) == 0
        assert np.asarray(Image.open(tmp_path / "sheet.png")).min() > 200
        assert main(["data", "inspect", *words, "--frames=5", how]) == 1
        said = (
            "clip.mp4 has 13 frames; clips of 5 frames span 17. Take shorter clips, or take frames "
        )
        assert said + "closer together." in capsys.readouterr().out
    for how, least in (("--stride=4", 9), ("--fps=3", 3)):
        assert main(["data", "inspect", *words, "--frames=3", how, "--holdout=2"]) == 0
        assert f"--holdout=2 is less than the {least} frames of a" in capsys.readouterr().err
    assert main(["data", "inspect", *words, "--frames=4", "--fps=5", "--holdout=6"]) == 1
    assert "span 8. Take shorter clips" in (said := capsys.readouterr().out)
    assert said.endswith("closer together, or hold out fewer frames.\n")


def test_inspect_takes_pictures(tmp_path, capsys):
    Image.new("RGB", (64, 48), "white").save(tmp_path / "a.png")
    words = [f"images:{tmp_path}", "--size=24", "--workers=1", f"--output={tmp_path / 's.png'}"]
    assert main(["data", "inspect", *words, "--frames=1"]) == 0
    assert np.asarray(Image.open(tmp_path / "s.png")).min() > 250
    assert main(["data", "inspect", *words, "--frames=2"]) == 1
    assert "a.png has 1 frame; clips need 2." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["data inspect", "encode", "eval"])
@pytest.mark.parametrize("how", ["--fps=0", "--fps=-3", "--stride=0", "--stride=2 --fps=3"])
def test_a_distance_of_frames_that_makes_no_sense_is_refused(command, how, capsys):
    given = {"encode": "a.mp4 --ckpt=small", "eval": "--ckpt=small --data=sample-clips"}
    words = given.get(command, "sample-clips").split()
    assert main([*command.split(), *words, *how.split()]) == 2
    assert how.split("=")[0] in capsys.readouterr().err


def test_inspect_prints_the_columns_of_a_manifest(folder, tmp_path, capsys):
    manifest = tmp_path / "list.csv"
    rows = [f"{folder}/clip{i}.mp4,a caption,{'cat' if i else ''}" for i in range(3)]
    manifest.write_text("\n".join(["path,caption,label", *rows]))
    options = ["--frames=5", "--size=24", "--clips=1", f"--output={tmp_path / 'sheet.png'}"]
    assert main(["data", "inspect", str(manifest), *options, "--workers=1"]) == 0
    assert re.search(r"\ncolumns +caption \(3\), label \(2\)\n", capsys.readouterr().out)
