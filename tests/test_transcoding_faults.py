"""Commands on files beside other processes, signals, what killed runs left, and broken models."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import jax
import numpy as np
import pytest
import safetensors

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.checkpoints import pretrained
from odvae_jax.cli import main
from odvae_jax.data import finding
from odvae_jax.data.video import ThreadedVideoWriter, VideoWriter, inspect_video
from odvae_jax.files import WholeFile, printable
from odvae_jax.latents import LatentsFile
from odvae_jax.latents import files as latents_module
from odvae_jax.transcoding import Job, Settings, decode_files, encode_files, reconstruct_files
from tests.conftest import full, write_clip
from tests.two_levels import CAUSAL

ROOT = Path(__file__).parent.parent
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def vae():
    return ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4), rngs=0)


@pytest.fixture(scope="module")
def model(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "model"
    vae.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    for i, name in enumerate(NAMES):
        write_clip(path / f"{name}.mp4", frames=3, height=16, width=16, seed=i)
    return path


@pytest.fixture(scope="module")
def latents(model, clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents"
    assert main(["encode", str(clips), str(path), f"--ckpt={model}"]) == 0
    return path


def run(capsys, *arguments, status=0):
    """The program in this process; what it printed."""
    capsys.readouterr()
    code = main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert code == status, printed.out + printed.err
    return printed.out + printed.err


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("work", ["encode", *full("decode", "reconstruct")])
def test_what_another_process_is_writing_is_left_to_it(
    work, model, clips, latents, tmp_path, capsys
):
    suffix = "safetensors" if work == "encode" else "mp4"
    how = (work, latents if work == "decode" else clips, tmp_path, "--ckpt", model)
    other = WholeFile(tmp_path / f"a.{suffix}")
    said = run(capsys, *how)
    assert "2 files, 6 frames" in said
    assert "0 files were there already; 1 is being written by another process" in said
    assert names_in(tmp_path) == [f".a.{suffix}.part", f"b.{suffix}", f"c.{suffix}"]
    other.close()
    assert "1 file, 3 frames" in run(capsys, *how)
    assert names_in(tmp_path) == [f"{name}.{suffix}" for name in NAMES]


@pytest.mark.full
def test_two_processes_on_one_folder_encode_each_video_once(model, tmp_path):
    count = 40
    (tmp_path / "clips").mkdir()
    for i in range(count):
        write_clip(tmp_path / f"clips/{i:02}.mp4", frames=65, height=64, width=64, seed=i)
    how = ("encode", tmp_path / "clips", tmp_path / "out", "--ckpt", model)
    both = [command(*how) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    found = [
        [int(n) for n in re.search(r"(\d+) files?, .*; (\d+) files? \w+ there", s).groups()]
        + [int(n) for n in re.findall(r"; (\d+) \w+ being written", s)]
        for s in said
    ]
    assert sum(numbers[0] for numbers in found) == count, said
    assert all(sum(numbers) == count and numbers[0] > 0 for numbers in found), said
    assert names_in(tmp_path / "out") == [f"{i:02}.safetensors" for i in range(count)]
    for i in range(count):
        file = LatentsFile(tmp_path / f"out/{i:02}.safetensors")
        assert file.info.frames == 65 and np.isfinite(file.read()).all()


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "odvae_jax", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("work", ["encode", *full("decode", "reconstruct")])
def test_a_file_that_another_process_finished_meanwhile_is_not_written_again(
    work, model, clips, latents, tmp_path, capsys, monkeypatch
):
    """The other one finishes it when this one opens the file, the latest moment there is."""
    suffix = "safetensors" if work == "encode" else "mp4"
    how = (work, latents if work == "decode" else clips, tmp_path / "out", "--ckpt", model)
    run(capsys, *how[:2], tmp_path / "other", *how[3:])
    (tmp_path / "out").mkdir()
    of_other = (tmp_path / f"other/b.{suffix}").read_bytes()
    begin = WholeFile.__init__

    def late(self, path):
        begin(self, path)
        if path.name == f"b.{suffix}":
            path.write_bytes(of_other)

    monkeypatch.setattr(WholeFile, "__init__", late)
    said = run(capsys, *how)
    assert "2 files, 6 frames" in said and "1 file was there already" in said
    assert names_in(tmp_path / "out") == [f"{name}.{suffix}" for name in NAMES]
    if work == "encode":
        summary = run(capsys, "summary", tmp_path / "out")
        assert summary[summary.index(" channel") :] in said, "its statistics count as well"


def test_sigterm_removes_the_unfinished_file_as_ctrl_c_does(model, tmp_path, capsys):
    write_clip(tmp_path / "v.mp4", frames=2000, height=16, width=16)
    out = tmp_path / "out"
    seen, over = [], threading.Event()

    def end():
        while not over.wait(0.01):
            if list(out.glob(".*.part")):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("not handled"))
    watcher = threading.Thread(target=end)
    watcher.start()
    try:
        said = run(capsys, "encode", tmp_path / "v.mp4", out, "--ckpt", model, status=143)
        handler = signal.getsignal(signal.SIGTERM)
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)
    assert "odvae encode: terminated; the same command goes on" in said
    assert not seen and not names_in(out)
    handler()
    assert seen, "afterwards the signal is handled as before"


def test_what_killed_runs_left_is_removed_and_nothing_else(model, clips, tmp_path, capsys):
    run(capsys, "encode", clips, tmp_path, "--ckpt", model)
    (tmp_path / ".a.safetensors.part").write_bytes(b"half")
    (tmp_path / ".renamed since.safetensors.part").write_bytes(b"half")
    for name in (".of another program.part", ".b.mp4.part", "c.safetensors.part", ".hidden"):
        (tmp_path / name).write_bytes(b"kept")
    before = names_in(tmp_path)
    other = WholeFile(tmp_path / "being written.safetensors")
    other.file.write(b"so far")
    run(capsys, "encode", clips, tmp_path, "--ckpt", model)
    left = {".a.safetensors.part", ".renamed since.safetensors.part"}
    kept = {*before, ".being written.safetensors.part"} - left
    assert names_in(tmp_path) == sorted(kept)
    other.finish()
    assert (tmp_path / "being written.safetensors").read_bytes() == b"so far"


@pytest.mark.parametrize("work", ["decode", *full("reconstruct", "encode")])
def test_broken_outputs_of_before_are_made_anew(work, model, clips, latents, tmp_path, capsys):
    suffix = "safetensors" if work == "encode" else "mp4"
    how = (work, latents if work == "decode" else clips, tmp_path, "--ckpt", model)
    run(capsys, *how)
    paths = [tmp_path / f"{name}.{suffix}" for name in NAMES]
    whole = paths[0].read_bytes()
    for broken in (b"", whole[:-1], whole[: len(whole) // 2], bytes(len(whole)), b"\0"):
        paths[0].write_bytes(broken)
        said = run(capsys, *how)
        assert "1 file, 3 frames" in said and "2 files were there already" in said
        assert paths[0].read_bytes() == whole
    assert "0 files, 0 frames" in run(capsys, *how)
    if work == "encode":
        return
    with av.open(str(tmp_path / "a.mp4")) as video, av.open(str(tmp_path / "a.avi"), "w") as other:
        stream = other.add_stream("mpeg4", rate=12)
        stream.width = stream.height = 16
        for frame in video.decode(video=0):
            other.mux(stream.encode(frame.reformat(format="yuv420p")))
        other.mux(stream.encode(None))
    foreign = (tmp_path / "a.avi").read_bytes()
    paths[0].write_bytes(foreign)  # a video that is none of ours stays, whatever its name
    assert "3 files were there already" in run(capsys, *how)
    assert paths[0].read_bytes() == foreign


def test_an_output_that_is_something_else_is_not_written_over(model, clips, tmp_path, capsys):
    foreign = (model / "model.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(foreign)
    said = run(capsys, "encode", clips, tmp_path, "--ckpt", model, status=1)
    assert "b.safetensors, its output, is there and holds no latents" in said
    assert (tmp_path / "b.safetensors").read_bytes() == foreign
    assert names_in(tmp_path) == [f"{name}.safetensors" for name in NAMES]


def test_some_latents_that_were_made_otherwise_do_not_stop_the_others(
    model, clips, tmp_path, capsys
):
    run(capsys, "encode", clips / "b.mp4", tmp_path, "--ckpt", model, "--store=float16")
    run(capsys, "encode", clips / "a.mp4", tmp_path, "--ckpt", model)
    said = run(capsys, "encode", clips, tmp_path, "--ckpt", model, status=1)
    assert said.count("made otherwise (store differ)") == 1 and "b.safetensors" in said
    assert "1 file, 3 frames" in said and "1 file was there already" in said


def scaled(vae, part):
    """A model of finite weights that computes what is not finite: its last layer overflows."""

    def changed(path, leaf):
        if not jax.tree_util.keystr(path).startswith(part):
            return leaf
        return np.where(leaf < 0, -3e38, 3e38).astype(leaf.dtype) if leaf.ndim > 1 else leaf

    return jax.tree_util.tree_map_with_path(changed, vae)


@pytest.mark.parametrize("work", ["encode", "decode", "reconstruct"])
def test_what_is_not_finite_is_named_and_not_kept(work, vae, clips, latents, tmp_path):
    broken = scaled(vae, ".encoder.conv_out" if work == "encode" else ".decoder.conv_out")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(broken))
    suffix = ".safetensors" if work == "encode" else ".mp4"
    sources = sorted((latents if work == "decode" else clips).iterdir())
    jobs = [Job(path, tmp_path / path.with_suffix(suffix).name, path.name) for path in sources]
    files = {"decode": decode_files, "reconstruct": reconstruct_files}
    files["encode"] = lambda vae, *given, **options: encode_files(vae, "m", *given, **options)
    outcome = files[work](broken, jobs, Settings(), bar=False)
    assert outcome.done == 0 and not names_in(tmp_path) and outcome.statistics.count == 0
    assert list(outcome.problems) == [str(path) for path in sources]
    for path, problem in zip(sources, outcome.problems.values(), strict=True):
        assert re.match(rf".*{path.name}: \d+ of \d+ values of the .* are not finite", problem)
    again = files[work](vae, jobs, Settings(), bar=False)
    assert again.done == len(jobs) and not again.problems


def test_a_video_that_lost_frames_does_not_get_its_name(tmp_path, monkeypatch):
    write, frames = VideoWriter.write, np.zeros((4, 16, 16, 3), np.uint8)
    monkeypatch.setattr(VideoWriter, "write", lambda self, some: write(self, some[1:]))
    writer = ThreadedVideoWriter(tmp_path / "v.mp4", 12.0, 16)
    writer.write(frames)
    with pytest.raises(OSError, match=r"v.mp4 was written, but holds 3 frames in 0.250 s; 4 "):
        writer.finish()
    writer.close()
    assert not names_in(tmp_path)
    monkeypatch.undo()
    writer = ThreadedVideoWriter(tmp_path / "v.mp4", 12.0, 16)
    with pytest.raises(OSError):  # no frame at all
        writer.finish()
    writer.close()
    assert not names_in(tmp_path)


def test_two_inputs_of_one_output_are_both_named_and_the_rest_is_done(
    model, clips, tmp_path, capsys
):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.mp4").write_bytes((clips / "a.mp4").read_bytes())
    said = run(capsys, "encode", tmp_path / "one", tmp_path / "two", clips, tmp_path / "out",
               "--ckpt", model, status=1)  # fmt: skip
    for folder in ("one", "two"):
        assert f"{tmp_path / folder / 'same.mp4'}: several inputs would go to" in said
    assert "3 files, 9 frames" in said and "2 files with problems" in said


def of_model(latents, folder, name):
    """Files of latents that name another model, without digests as an older version wrote them."""
    from safetensors.numpy import save_file

    from tests.test_latents import parts_of

    folder.mkdir(exist_ok=True)
    for path in latents.iterdir():
        metadata, arrays = parts_of(path)
        save_file(arrays, folder / path.name, {**metadata, "model": f'"{name}"'})
    return folder


def test_a_model_is_downloaded_only_if_that_is_asked_for(
    vae, model, latents, tmp_path, capsys, monkeypatch
):
    asked = []

    def download(source, *_):
        asked.append(source)
        return model

    monkeypatch.setattr(pretrained, "_download", download)
    monkeypatch.chdir(tmp_path)
    named = of_model(latents, tmp_path / "latents", "owner/name")
    said = run(capsys, "decode", named, tmp_path / "out", status=1)
    assert "owner/name, which is not on this machine" in said and not asked
    assert "--ckpt" in said and "--allow-download" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert "3 files" in run(capsys, "decode", named, tmp_path / "out", "--allow-download")
    assert asked == ["owner/name"]
    assert "3 files" in run(capsys, "decode", named, tmp_path / "out2", "--ckpt=owner/name")
    assert asked == ["owner/name"] * 2
    vae.save_pretrained(tmp_path / "owner" / "name")  # a local path goes first
    assert "3 files" in run(capsys, "decode", named, tmp_path / "out3", "--allow-download")
    assert "3 files" in run(capsys, "decode", named, tmp_path / "out4")
    assert len(asked) == 2


def test_the_digests_of_latents_need_not_be_compared(model, latents, tmp_path, capsys):
    whole = (latents / "a.safetensors").read_bytes()
    place = 8 + int.from_bytes(whole[:8], "little") + 2
    flipped = tmp_path / "a.safetensors"
    flipped.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    how = ("decode", flipped, tmp_path / "a.mp4", "--ckpt", model)
    said = run(capsys, *how, status=1)
    assert "a.safetensors is damaged: its latent frames 0 to" in said
    assert names_in(tmp_path) == ["a.safetensors"]
    run(capsys, *how, "--no-verify")
    assert inspect_video(tmp_path / "a.mp4").frames == 3


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "none"])
def test_a_limit_for_reads_is_a_number_of_seconds(value, capsys):
    assert main(["encode", "v", "out", "--ckpt=small", f"--read-timeout={value}"]) == 2
    assert "is no number of seconds of at least 0" in capsys.readouterr().err


def test_one_bad_argument_does_not_stop_the_others(model, clips, tmp_path, capsys):
    bad = [tmp_path / name for name in ("dangling.mp4", "fifo.mp4", "missing.mp4", "empty")]
    bad[0].symlink_to("nowhere.mp4")
    os.mkfifo(bad[1])
    bad[3].mkdir()
    out = tmp_path / "out"
    how = (*bad[:2], clips / "a.mp4", *bad[2:], out, "--ckpt", model)
    said = run(capsys, "encode", *how, status=1)
    assert names_in(out) == ["a.safetensors"]
    assert "1 file, 3 frames" in said and "4 files with problems" in said
    assert [sum(str(path) in line for line in said.splitlines()) for path in bad] == [1] * 4
    out = tmp_path / "none"
    said = run(capsys, "encode", *bad, out, "--ckpt", model, status=1)
    assert all(str(path) in said for path in bad) and not out.exists()
    said = run(capsys, "encode", *how[:-3], tmp_path / "one.safetensors", *how[-2:], status=1)
    assert "5 files cannot go into one" in said


def test_an_output_that_is_another_input_does_not_stop_the_others(model, clips, tmp_path, capsys):
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    out.mkdir()
    for name in ("a", "b"):
        (inputs / f"{name}.mp4").write_bytes((clips / f"{name}.mp4").read_bytes())
    (out / "a.mp4").symlink_to("../in/a.mp4")
    before = (inputs / "a.mp4").read_bytes()
    said = run(capsys, "reconstruct", inputs, out, "--ckpt", model, "--overwrite", status=1)
    assert f"{inputs / 'a.mp4'}: its output" in said and "1 file with problems" in said
    assert (out / "a.mp4").is_symlink() and (inputs / "a.mp4").read_bytes() == before
    assert inspect_video(out / "b.mp4").frames == 3


def blocked(monkeypatch, owner, name, file):
    """Lets a function block when it is called for a file, until the test is over."""
    over, call = threading.Event(), getattr(owner, name)

    def slow(*arguments, **options):
        if file in str(getattr(arguments[0], "path", arguments[0])):
            over.wait(60)
        return call(*arguments, **options)

    monkeypatch.setattr(owner, name, slow)
    return over


SLOW = {
    "open": (safetensors, "safe_open"),
    "look": (finding, "check_regular"),
    "read": (LatentsFile, "read"),
}


@pytest.mark.parametrize("what", ["open", *full("look", "read")])
def test_latents_that_cannot_be_read_in_time_do_not_stop_the_others(
    what, model, latents, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(latents_module, "check_regular", lambda path: finding.check_regular(path))
    over = blocked(monkeypatch, *SLOW[what], "a.safetensors")
    how = (latents, tmp_path, "--read-timeout=1")
    try:
        said = run(capsys, "decode", *how, status=1)
        summary = "" if what == "read" else run(capsys, "summary", latents, how[2], status=1)
    finally:
        over.set()
    assert names_in(tmp_path) == ["b.mp4", "c.mp4"]
    assert "2 files, 6 frames" in said and "1 file with problems" in said
    for text in filter(None, (said, summary)):
        line = "a.safetensors was not read within 1 s; is its disk reachable?"
        assert text.count(line) == 1
    assert not summary or "2 files, 6 frames" in summary


@pytest.mark.full
def test_outputs_that_cannot_be_read_in_time_do_not_stop_the_others(
    model, clips, tmp_path, capsys, monkeypatch
):
    run(capsys, "encode", clips / "a.mp4", clips / "b.mp4", tmp_path, "--ckpt", model)
    over = blocked(monkeypatch, safetensors, "safe_open", "a.safetensors")
    try:
        how = (clips, tmp_path, "--ckpt", model, "--read-timeout=1")
        said = run(capsys, "encode", *how, status=1)
    finally:
        over.set()
    assert "a.safetensors was not read within 1 s" in said
    assert "1 file, 3 frames" in said and "1 file was there already" in said


@pytest.mark.full
def test_eval_leaves_out_a_video_that_cannot_be_read_in_time(
    model, clips, tmp_path, capsys, monkeypatch
):
    over = blocked(monkeypatch, av, "open", "a.mp4")
    how = ("--ckpt", model, "--data", clips, "--frames=1", "--size=16", "--nofvd")
    try:
        said = run(capsys, "eval", *how, "--output", tmp_path, "--read-timeout=3", status=1)
    finally:
        over.set()
    assert "1 video was skipped" in said and "was not read within 3 s" in said


@pytest.mark.parametrize("work", ["encode", *full("decode", "reconstruct", "eval")])
def test_a_model_with_an_edited_config_is_taken_if_that_is_asked_for(
    work, vae, clips, latents, tmp_path, capsys
):
    edited = tmp_path / "model"
    vae.save_pretrained(edited)
    config = json.loads((edited / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    how = (work, latents if work == "decode" else clips, tmp_path / "out", f"--ckpt={edited}")
    if work == "eval":
        how = (work, "--data", clips, "--frames=1", "--size=16", "--nofvd", how[-1])
    said = run(capsys, *how, status=1)
    assert "config.json is not the config" in said and "verify=False" in said
    assert "--no-verify" in said
    run(capsys, *how, "--no-verify")


def test_a_leftover_that_is_being_removed_is_waited_for(tmp_path):
    """A killed run's leftover is locked for a moment by whoever removes it."""
    other = WholeFile(tmp_path / "a")
    timer = threading.Timer(0.03, other.close)
    timer.start()
    file = WholeFile(tmp_path / "a")
    file.file.write(b"whole")
    file.finish()
    timer.join()
    assert names_in(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize("word", ["two\nlines", "tab\tand \x1b[31m", os.fsdecode(b"no utf-8 \xff")])
@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "{}", "out", "--ckpt=small"],
        ["encode", "{}", "out", "--ckpt={}"],
        ["summary", "{}"],
        ["{}"],
        ["encode", "--{}", "out"],
        ["encode", "v", "out", "--ckpt=small", "--content={}"],
        *full(["eval", "--data={}", "--ckpt=small"]),
        ["convert", "{}", "out"],
    ],
)
def test_names_of_the_command_line_stay_on_one_line_of_an_error(
    word, arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(word) for a in arguments]) in (1, 2)
    lines = capsys.readouterr().err.split("\n")
    assert lines.pop() == "" and len([line for line in lines if "--help` says" not in line]) == 1
    assert all(line.isprintable() for line in lines), lines
    assert any(part in lines[0] for part in (printable(word), repr(word)[1:-1])), lines
