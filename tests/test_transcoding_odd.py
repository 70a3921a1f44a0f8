"""Nothing in a folder stops the work on the others, whatever it is called and whatever it holds."""

import io
import os
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.cli import main
from odvae_jax.data.video import inspect_video
from odvae_jax.files import printable
from odvae_jax.latents import LatentsFile, Statistics
from tests.odd_files import everything_below, odd_folder
from tests.two_levels import CAUSAL

NAME_BYTES = 255


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "model"
    ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4), rngs=0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder of odd files, which of them are good videos, and which are bad ones."""
    folder = tmp_path_factory.mktemp("odd") / "videos"
    return folder, *odd_folder(folder)


def run(monkeypatch, *arguments, status=1, encoding="utf-8"):
    """The command in this process, on a terminal of an encoding; the lines of stdout and stderr."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        code = main([*map(str, arguments)])
        for stream in streams:
            stream.flush()
    out, error = (s.buffer.getvalue().decode(encoding).splitlines() for s in streams)
    assert code == status, [*out, *error]
    return out, [line.rpartition("\r")[2] for line in error]  # without the progress bar


def targets(names, suffix):
    """The outputs of inputs, by the input, but for those whose name a file system does not take."""
    made = {name: str(Path(name).with_suffix(suffix)) for name in names}
    return {n: t for n, t in made.items() if len(os.fsencode(Path(t).name)) <= NAME_BYTES}


def check_lines(lines, folder, bad):
    """That each bad name has one line, which a terminal can show, and that they are counted."""
    for name in bad:
        shown = printable(folder / name)
        found = [line for line in lines if f"{shown}: " in line or f"{shown} " in line]
        assert len(found) == 1, (shown, found, lines)
    assert all(line.isprintable() for line in lines)


def check_all(work, odd, model, folder, monkeypatch, encoding="utf-8"):
    """That a command makes an output of each good video, a line of each bad one, and no more."""
    videos, good, bad = odd
    suffix = ".safetensors" if work == "encode" else ".mp4"
    made = targets(good, suffix)
    how = ("--ckpt", model, "--readers=3")
    out, error = run(monkeypatch, work, videos, folder, *how, encoding=encoding)
    assert everything_below(folder) == set(made.values())
    if encoding == "utf-8":
        check_lines(error, videos, {*bad, *(good - made.keys())})
    assert any(line.startswith(f"{len(made)} files, ") for line in out), out
    assert any("files with problems" in line for line in error)
    again, _ = run(monkeypatch, work, videos, folder, *how, encoding=encoding)
    assert any("0 files, 0 frames" in line and f"{len(made)} files were" in line for line in again)
    assert everything_below(folder) == set(made.values())


def test_each_good_video_is_encoded_and_each_bad_one_named(odd, model, tmp_path, monkeypatch):
    check_all("encode", odd, model, tmp_path / "out", monkeypatch)
    count = sum(LatentsFile(p).info.frames for p in (tmp_path / "out").rglob("*.safetensors"))
    assert count > 100


@pytest.mark.parametrize("work", ["encode", "reconstruct"])
@pytest.mark.full
def test_on_an_ascii_terminal_too(work, odd, model, tmp_path, monkeypatch):
    check_all(work, odd, model, tmp_path / "out", monkeypatch, encoding="ascii")


@pytest.mark.full
def test_each_good_video_is_reconstructed(odd, model, tmp_path, monkeypatch):
    check_all("reconstruct", odd, model, tmp_path / "out", monkeypatch)


@pytest.fixture(scope="module")
def odd_latents(odd, model, tmp_path_factory):
    """A folder of latents with odd names, beside what is none."""
    videos, good, _ = odd
    folder = tmp_path_factory.mktemp("odd") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "encode", videos, folder, "--ckpt", model)
    good = set(targets(good, ".safetensors").values())
    whole = (folder / "plain.safetensors").read_bytes()
    bad = {
        "empty": b"",
        "text": b"no latents\n" * 100,
        "zeros": bytes(2000),
        "endless header": b"\xff" * 8 + whole[8:],
        "cut": whole[:-40],
        "cut header": whole[:5000],
        "longer": whole + b"more",
        "model": (model / "model.safetensors").read_bytes(),
        os.fsdecode(b"bad \xff"): b"no latents",
        "bad\nline": b"no latents",
    }
    for name, content in bad.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    save_file({}, folder / "no arrays.safetensors", {"format": "odvae_jax latents 1"})
    (folder / "folder.safetensors").mkdir()
    (folder / "dangling.safetensors").symlink_to("nowhere")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(folder / "fifo.safetensors")
    (folder / "plain.mp4").write_bytes(b"a video beside")
    (folder / "plain.json").write_text("{}")
    return folder, good, {*(f"{name}.safetensors" for name in bad), "no arrays.safetensors"}


def test_each_good_file_of_latents_is_decoded_and_each_bad_one_named(
    odd_latents, model, tmp_path, monkeypatch
):
    latents, good, bad = odd_latents
    out, error = run(monkeypatch, "decode", latents, tmp_path / "out")  # with the named model
    made = targets(good, ".mp4")
    assert everything_below(tmp_path / "out") == set(made.values())
    check_lines(error, latents, bad)
    for name, target in made.items():
        with open(tmp_path / "out" / target, "rb") as file:
            assert file.read(12)[4:8] == b"ftyp"
        if name.isprintable():
            frames = LatentsFile(latents / name).info.frames
            assert inspect_video(tmp_path / "out" / target).frames == frames
    assert any(line.startswith(f"{len(made)} files, ") for line in out)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_summary_is_of_the_good_files_and_names_the_bad(odd_latents, monkeypatch, encoding):
    latents, good, bad = odd_latents
    out, error = run(monkeypatch, "summary", latents, encoding=encoding)
    assert out[0].startswith(f"{len(good)} files, ")
    expected = Statistics.total(LatentsFile(latents / n).info.statistics for n in good).table()
    assert "\n".join(out[1:]) == expected
    if encoding == "utf-8":
        check_lines(error, latents, bad)
