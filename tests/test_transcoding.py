"""Files of videos to files of latents and back, as a user runs it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from odvae_jax import ODVAE, Streaming, TemporalTiling, decode_uint8, encode_uint8
from odvae_jax.cli import main
from odvae_jax.data.video import inspect_video, read_frames
from odvae_jax.latents import LatentsFile, LatentsWriter
from tests.conftest import full, remuxed, small_model, write_clip

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "clip"
    small_model("v4").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Lengths 24, 9 and 1; the last in a folder of its own."""
    path = tmp_path_factory.mktemp("clips")
    (path / "below").mkdir()
    for i, (name, frames) in enumerate((("a", 24), ("b", 9), ("below/c", 1))):
        write_clip(path / f"{name}.mp4", frames=frames, height=26, width=38, seed=i)
    return path


def run(capsys, *arguments, status=0):
    """The program in this process; what it printed."""
    code = main([*map(str, arguments)])
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert code == status, said
    return said


def frames_of(path, count=None):
    info = inspect_video(path)
    return read_frames(info, 0, count or info.frames)


def grey(frames):
    """Colours lose half of their sharpness in a file."""
    return frames.astype(float) @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("content", ["mean", *full("moments", "sample")])
def test_a_file_s_latents_are_those_of_the_whole_array(content, model, clips, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    said = run(capsys, "encode", clips / "a.mp4", out, "--ckpt", model, "--tiling=9",
               f"--content={content}")  # fmt: skip
    assert "1 file, 24 frames" in said and "scaling factor" in said
    vae = ODVAE.from_pretrained(model)
    video = frames_of(clips / "a.mp4")[None]
    posterior = encode_uint8(vae, video, tiling=TemporalTiling(9), pad=True)
    file = LatentsFile(out)
    stored = load_file(out)[content]
    assert stored.shape == (7, 4, 5, 8 if content == "moments" else 4) == file.shape
    if content == "sample":
        noise = (stored - posterior.mean[0]) / np.exp(0.5 * posterior.logvar[0])
        assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.2
    else:
        np.testing.assert_allclose(file.read(), posterior.mean[0], atol=1e-5)
    if content == "moments":
        np.testing.assert_allclose(file.read_logvar(2, 4), posterior.logvar[0, 2:4], atol=1e-5)
    info = file.info
    assert (info.frames, info.height, info.width, info.fps) == (24, 26, 38, 12.0)
    assert info.model == str(model) and info.scaling_factor == vae.config.scaling_factor
    assert info.tiling == {"TemporalTiling": {"group": 9}} and info.problem == ""
    means = posterior.mean.reshape(-1, 4).mean(0)
    for line, mean in zip(said.split("std, sampled")[1].splitlines()[1:5], means, strict=True):
        assert float(line.split()[1]) == pytest.approx(mean, abs=1e-3)


def test_decoded_files_have_the_size_of_the_videos(model, clips, tmp_path, capsys):
    run(capsys, "encode", clips, tmp_path / "latents", "--ckpt", model, "--tiling=9")
    run(capsys, "decode", tmp_path / "latents", tmp_path / "videos", "--crf=1")
    for name, count in (("a", 24), ("b", 9), ("below/c", 1)):
        info = inspect_video(tmp_path / f"videos/{name}.mp4")
        assert (info.frames, info.height, info.width, info.fps) == (count, 26, 38, 12.0)
    vae, file = ODVAE.from_pretrained(model), LatentsFile(tmp_path / "latents/a.safetensors")
    expected = decode_uint8(vae, file.read()[None], tiling=TemporalTiling(9))[0, :24, :26, :38]
    assert np.abs(grey(frames_of(tmp_path / "videos/a.mp4")) - grey(expected)).mean() < 3


def test_a_reconstruction_stands_beside_its_original(model, clips, tmp_path, capsys):
    out = tmp_path / "r.mp4"
    said = run(capsys, "reconstruct", clips / "a.mp4", out, "--ckpt", model, "--tiling=9")
    both = frames_of(out)
    assert both.shape == (24, 26, 76, 3)
    video = frames_of(clips / "a.mp4")
    assert np.abs(grey(both[:, :, :38]) - grey(video)).mean() < 3
    vae = ODVAE.from_pretrained(model)
    posterior = encode_uint8(vae, video[None], tiling=TemporalTiling(9), pad=True)
    ours = decode_uint8(vae, posterior.mean, tiling=TemporalTiling(9), size=posterior.size)[0]
    error = np.mean((ours.astype(float) - video) ** 2, axis=(1, 2, 3))
    expected = np.mean(10 * np.log10(255**2 / error))
    assert f"PSNR {expected:.2f} dB" in said
    run(capsys, "reconstruct", clips / "b.mp4", tmp_path / "alone.mp4", "--ckpt", model,
        "--tiling=9", "--alone", "--size=16")  # fmt: skip
    assert frames_of(tmp_path / "alone.mp4").shape == (9, 16, 16, 3)


@pytest.mark.full
def test_odd_sides_stay(model, tmp_path, capsys):
    write_clip(tmp_path / "v.mp4", frames=5, height=24, width=40)
    run(capsys, "encode", tmp_path / "v.mp4", tmp_path / "v.safetensors", "--ckpt", model,
        "--size=21")  # fmt: skip
    run(capsys, "decode", tmp_path / "v.safetensors", tmp_path / "back.mp4")
    assert frames_of(tmp_path / "back.mp4").shape == (5, 21, 21, 3)


def test_the_bar_of_one_video_ends_at_its_number_of_frames(model, tmp_path, capsys):
    write_clip(tmp_path / "v.mp4", frames=6, height=24, width=40)
    said = run(capsys, "encode", tmp_path / "v.mp4", tmp_path / "v.safetensors", "--ckpt", model)
    assert re.findall(r"(\d+)/(\d+) \[", said)[-1] == ("6", "6")


def test_models_with_norms_per_frame_are_streamed(clips, tmp_path, capsys):
    vae = small_model("v4", norm="frame")
    vae.save_pretrained(tmp_path / "model")
    run(capsys, "encode", clips / "a.mp4", tmp_path / "a.safetensors", "--ckpt",
        tmp_path / "model", "--streaming=8")  # fmt: skip
    file = LatentsFile(tmp_path / "a.safetensors")
    assert file.info.tiling == {"Streaming": {"chunk": 8}}
    video = frames_of(clips / "a.mp4")[None]
    posterior = encode_uint8(vae, video, tiling=Streaming(8), pad=True)
    np.testing.assert_allclose(file.read(), posterior.mean[0], atol=1e-5)
    run(capsys, "decode", tmp_path / "a.safetensors", tmp_path / "a.mp4")
    assert inspect_video(tmp_path / "a.mp4").frames == 24


def test_shards_together_are_one_run_and_what_is_there_is_left(model, clips, tmp_path, capsys):
    how = ("--ckpt", model, "--tiling=9")
    one = run(capsys, "encode", clips, tmp_path / "one", *how)
    for i in range(2):
        run(capsys, "encode", clips, tmp_path / "shards", *how, f"--shard={i}/2")
    for name in ("a", "b", "below/c"):
        whole, part = (tmp_path / f / f"{name}.safetensors" for f in ("one", "shards"))
        assert whole.read_bytes() == part.read_bytes()
    table = one[one.index(" channel") : one.index(" sampled latents: ") + 24]
    assert table in run(capsys, "summary", tmp_path / "shards")
    (tmp_path / "shards/b.safetensors").unlink()  # as if it had been interrupted there
    before = (tmp_path / "shards/a.safetensors").stat().st_mtime_ns
    again = run(capsys, "encode", clips, tmp_path / "shards", *how)
    assert "1 file, 9 frames" in again and "2 files were there already" in again
    assert table in again
    assert (tmp_path / "shards/a.safetensors").stat().st_mtime_ns == before
    said = run(capsys, "encode", clips, tmp_path / "shards", "--ckpt", model, "--tiling=5",
               status=1)  # fmt: skip
    assert "made otherwise (tiling differ)" in said and "--overwrite" in said


@pytest.mark.parametrize("name", ["v.mp4", *full("v.mkv", "v.flv")])
def test_a_video_that_ends_in_the_middle_is_kept_so_far(name, model, tmp_path, capsys):
    written = write_clip(tmp_path / "written.mp4", frames=96, height=48, width=64)
    options = {"movflags": "faststart"} if name == "v.mp4" else {}
    whole = remuxed(written, tmp_path / name, **options).read_bytes()
    video, out = tmp_path / name, tmp_path / "v.safetensors"
    video.write_bytes(whole[: len(whole) * 6 // 10])
    how = ("encode", video, out, "--ckpt", model, "--tiling=9")
    said = run(capsys, *how, status=1)
    info = LatentsFile(out).info
    assert 10 < info.frames < 96 and info.problem in said and str(video) in info.problem
    assert "ends after" in info.problem or "could be read before" in info.problem
    run(capsys, "decode", out, tmp_path / "back.mp4", status=1)
    assert inspect_video(tmp_path / "back.mp4").frames == info.frames
    assert info.problem in run(capsys, "decode", out, tmp_path / "back.mp4", status=1)
    video.write_bytes(whole)  # it is whole now: done again
    run(capsys, *how)
    assert LatentsFile(out).info.frames == 96


def test_what_cannot_be_read_is_named_and_the_others_are_done(model, clips, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "bad.mp4").write_text("no video")
    (folder / "good.mp4").write_bytes((clips / "b.mp4").read_bytes())
    said = run(capsys, "encode", folder, tmp_path / "out", "--ckpt", model, "--tiling=9", status=1)
    assert "bad.mp4 cannot be read as a video" in said and "1 file, 9 frames" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.safetensors"]
    latents = tmp_path / "out"
    whole = (latents / "good.safetensors").read_bytes()
    (latents / "cut.safetensors").write_bytes(whole[:-100])
    (latents / "text.safetensors").write_text("no latents")
    small_model("v3").save_pretrained(tmp_path / "other")
    said = run(capsys, "decode", latents, tmp_path / "back", "--ckpt", model, status=1)
    assert said.count("is damaged, or no file of latents") == 2 and "1 file, 9 frames" in said
    small_model("v4", seed=1).save_pretrained(tmp_path / "another")
    said = run(capsys, "decode", latents / "good.safetensors", tmp_path / "x.mp4", "--ckpt",
               tmp_path / "another", status=1)  # fmt: skip
    assert "holds latents of another model" in said and not (tmp_path / "x.mp4").exists()
    ODVAE.from_pretrained(model).save_pretrained(tmp_path / "model.safetensors.d")
    said = run(capsys, "decode", tmp_path / "model.safetensors.d/model.safetensors",
               tmp_path / "x.mp4", status=1)  # fmt: skip
    assert "holds no latents that odvae_jax wrote" in said


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["encode", "nowhere", "OUT"], "nowhere does not exist"),
        (["encode", "CLIPS", "out.safetensors"], "3 files cannot go into one"),
        (["encode", "CLIPS", "OUT", "--tiling=10"], "a group of 10 frames is not 4k"),
        (["encode", "CLIPS", "OUT", "--streaming=8"], "norm='clip'"),
        (["encode", "CLIPS", "OUT", "--tiling=9", "--streaming=8"], "give one"),
        (["encode", "CLIPS", "OUT", "--tile=64", "--overlap=64"], "not less than tile"),
        (["encode", "CLIPS", "OUT", "--overlap=64"], "give --tile too"),
        (["encode", "CLIPS", "OUT", "--shard=2/2"], "--shard=2/2 is not i/n"),
        (["encode", "CLIPS", "OUT", "--rows=99"], "this machine has 8 devices"),
        (["encode", "CLIPS", "OUT", "--process=1", "--processes=4"], "need --coordinator"),
        (["encode", "CLIPS", "out.mp4"], "out.mp4 is no .safetensors file"),
        (["encode", "CLIPS", "out.npy"], "out.npy is no .safetensors file"),
        (["decode", "CLIPS", "OUT"], "no file of latents below"),
        (["summary", "CLIPS"], "no file of latents below"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_said(arguments, words, model, clips, tmp_path, capsys):
    names = {"CLIPS": clips, "OUT": tmp_path / "out"}
    if arguments[0] == "encode":
        arguments = [*arguments, f"--ckpt={model}"]
    arguments = [names.get(argument, argument) for argument in arguments]
    assert words in run(capsys, *arguments, status=1)
    assert not (tmp_path / "out").exists()


def test_names_that_meet_keep_their_suffix(model, clips, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "a.mov"):
        (folder / name).write_bytes((clips / "below/c.mp4").read_bytes())
    run(capsys, "encode", folder, tmp_path / "out", "--ckpt", model, "--tiling=9")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["a.mov.safetensors", "a.mp4.safetensors"]
    said = run(capsys, "encode", folder / "a.mp4", folder / "a.mp4", tmp_path / "out", "--ckpt",
               model, status=1)  # fmt: skip
    assert "several inputs would go to" in said


def test_what_was_written_is_no_input_and_no_input_is_written_over(model, clips, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    video = folder / "a.mp4"
    video.write_bytes((clips / "below/c.mp4").read_bytes())
    how = ("--ckpt", model, "--tiling=9")
    for count in ("1 file, 1 frame ", "0 files, 0 frames"):
        assert count in run(capsys, "reconstruct", folder, folder / "out", *how)
    assert [p.name for p in (folder / "out").iterdir()] == ["a.mp4"]
    before = video.read_bytes()
    for output in (video, folder):
        said = run(capsys, "reconstruct", video, output, *how, "--overwrite", status=1)
        assert "would be written over" in said and video.read_bytes() == before
    video.unlink()
    said = run(capsys, "reconstruct", folder, folder / "out", *how, status=1)
    assert "no videos but those in" in said
    (tmp_path / "plain").write_text("")
    said = run(capsys, "encode", clips, tmp_path / "plain", *how, status=1)
    assert "plain is a file; expected a folder" in said


@pytest.mark.full
def test_image_models_and_short_floats_go_through_files(clips, tmp_path, capsys):
    vae = small_model("image")
    vae.save_pretrained(tmp_path / "model")
    out = tmp_path / "a.safetensors"
    run(capsys, "encode", clips / "a.mp4", out, "--ckpt", tmp_path / "model", "--store=bfloat16")
    file, video = LatentsFile(out), frames_of(clips / "a.mp4")[None]
    expected = encode_uint8(vae, video, pad=True).mean[0]
    assert file.shape == expected.shape == (24, 4, 5, 4)
    np.testing.assert_allclose(file.read(), expected, rtol=0.01, atol=1e-3)
    run(capsys, "decode", out, tmp_path / "a.mp4")
    assert inspect_video(tmp_path / "a.mp4").frames == 24


@pytest.mark.full
def test_samples_of_files_of_one_name_have_noise_of_their_own(model, clips, tmp_path, capsys):
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    for path in (folder / "a.mp4", folder / "below/a.mp4"):
        path.write_bytes((clips / "b.mp4").read_bytes())
    how = ("encode", folder, tmp_path / "out", "--ckpt", model, "--content=sample")
    run(capsys, *how)
    one, other = (LatentsFile(tmp_path / "out" / n).read() for n in
                  ("a.safetensors", "below/a.safetensors"))  # fmt: skip
    assert np.abs(one - other).mean() > 0.1
    assert "made otherwise (seed differ)" in run(capsys, *how, "--seed=1", status=1)


def test_tiles_of_frames_leave_the_latents_own_groups(model, clips, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    run(capsys, "encode", clips / "a.mp4", out, "--ckpt", model, "--tiling=9")
    run(capsys, "decode", out, tmp_path / "a.mp4", "--crf=1")
    run(capsys, "decode", out, tmp_path / "tiled.mp4", "--crf=1", "--tile=512")
    # Two programs may round differently; in other groups frames differ by some 20 levels.
    a, tiled = (frames_of(tmp_path / name).astype(int) for name in ("a.mp4", "tiled.mp4"))
    assert np.abs(a - tiled).mean() < 0.1


def test_two_processes_do_not_write_one_file(tmp_path):
    first = LatentsWriter(tmp_path / "a.safetensors")
    with pytest.raises(OSError, match=r"a.safetensors is being written by another process"):
        LatentsWriter(tmp_path / "a.safetensors")
    first.close()
    assert not list(tmp_path.iterdir())
    LatentsWriter(tmp_path / "a.safetensors").close()


@pytest.mark.parametrize("work", ["reconstruct", *full("encode")])
def test_a_full_disk_is_said_and_leaves_nothing(work, model, clips, tmp_path):
    """As far as the process can tell: its files may have 6 kB."""
    script = """
import resource, signal, sys
from odvae_jax.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.exit(main())
"""
    arguments = [work, clips / "a.mp4", tmp_path / "out", "--ckpt", model, "--tiling=9"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    assert f"odvae {work}: " in done.stderr and "File too large" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def command(*arguments, **variables):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "odvae_jax", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.full
def test_what_is_compiled_is_kept_for_the_next_process(model, clips, tmp_path):
    """In the user's cache, unless JAX is told another place."""
    variables = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path)}
    variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    arguments = ("encode", clips / "below/c.mp4", tmp_path / "c.safetensors", "--ckpt", model)
    with command(*arguments, **variables) as process:
        said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert any((tmp_path / "odvae_jax").iterdir())


@pytest.mark.full
def test_each_of_several_hosts_does_its_part(model, clips, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    how = (
        clips,
        tmp_path / "out",
        "--ckpt",
        model,
        "--tiling=9",
        f"--coordinator=localhost:{port}",
    )
    hosts = [command("encode", *how, "--processes=2", f"--process={i}") for i in range(2)]
    said = [host.communicate(timeout=200)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert "2 files, 25 frames" in said[0] and "1 file, 9 frames" in said[1]
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 3


def test_killed_in_the_middle_it_leaves_no_half_file(model, tmp_path):
    write_clip(tmp_path / "v.mp4", frames=400, height=64, width=64)
    out = tmp_path / "out" / "v.mp4"
    with command("reconstruct", tmp_path / "v.mp4", out, "--ckpt", model, "--tiling=9") as process:
        deadline = time.monotonic() + 200
        part = out.with_name(".v.mp4.part")
        while not (part.exists() and part.stat().st_size > 0):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not out.exists() and part.exists()
    with command("reconstruct", tmp_path / "v.mp4", out, "--ckpt", model, "--tiling=9") as process:
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert inspect_video(out).frames == 400 and not part.exists()


@pytest.mark.full
def test_memory_does_not_grow_with_the_length(model, tmp_path):
    """Peaks of one process after 200 frames, and after 800 more."""
    for frames in (200, 800):
        write_clip(tmp_path / f"{frames}.mp4", frames=frames, height=64, width=64)
    script = f"""
import resource, sys
from pathlib import Path
from odvae_jax import ODVAE
from odvae_jax.transcoding import Job, Settings, reconstruct_files
vae, folder = ODVAE.from_pretrained({str(model)!r}), Path({str(tmp_path)!r})
for name in ("200", "200", "800"):
    job = Job(folder / (name + ".mp4"), folder / (name + ".out.mp4"))
    reconstruct_files(vae, [job], Settings(), overwrite=True, bar=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    _, before, after = map(int, done.stdout.split())
    assert after - before < 20, done.stdout  # 800 frames are 10 MiB, decoded ones 30 in float32
