"""Packing and inspecting what is odd or damaged, and packings that were killed or are disturbed."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from odvae_jax.cli import main
from odvae_jax.data.clips import RandomClips
from odvae_jax.data.inspection import survey
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import SOURCES, TFDS, Sampling, Source, open_source
from odvae_jax.data.video import VideoError
from odvae_jax.files import BusyError
from tests.conftest import write_clip

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
OPTIONS = {"short_side": 16, "kind": "raw", "videos_per_shard": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=6, height=16, width=16)


@pytest.fixture
def folder(tmp_path, clip):
    path = tmp_path / "videos"
    path.mkdir()
    for i in range(5):
        shutil.copy(clip, path / f"{i}.mp4")
    return path


def raising(monkeypatch, errors):
    """A source `odd:` whose i-th video raises the i-th error, or is good if that is None."""

    class Odd(Source):
        def __len__(self):
            return len(errors)

        def name(self, index):
            return f"odd {index}"

        def rate(self, index):
            return 10.0

        def frames(self, index, sampling, stride, where):
            where(9 - (sampling.frames - 1) * stride)
            if errors[index] is not None:
                raise errors[index]
            return [np.full((16, 16, 3), index, np.uint8)] * sampling.frames

    monkeypatch.setitem(SOURCES, "odd:", lambda text, in_memory: Odd())
    return "odd:"


ERRORS = [
    None,
    RecursionError("too deep"),
    MemoryError(),
    OverflowError("too large"),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    KeyError("frames"),
    OSError(errno.EIO, "Input/output error"),
    AssertionError(),
    None,
]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_whatever_a_video_raises_is_that_videos_problem(monkeypatch, tmp_path, workers):
    text = raising(monkeypatch, ERRORS)
    bad = {f"odd {i}": type(error).__name__ for i, error in enumerate(ERRORS) if error is not None}
    packing = pack_videos(text, tmp_path / "packed", workers=workers, **OPTIONS)
    report = survey(text, workers=workers)
    clips = RandomClips(text, frames=2, size=16)
    assert {int(clips[i].max()) for i in range(20)} == {0, 8}
    assert len(clips.held_out(5)) == 2
    for unusable in (packing.unusable, report.unusable, clips.skipped):
        assert set(unusable) == set(bad)
        for name, kind in bad.items():
            assert unusable[name].startswith(f"{name} cannot be used: {kind}: "), unusable[name]
            assert "\n" not in unusable[name]
    strict = RandomClips(text, frames=2, size=16, max_unusable=0.5)
    with pytest.raises(VideoError, match=r"7 of the \d videos looked at cannot be used"):
        for i in range(40):
            strict[i]


ODD_NAMES = [
    b"no utf-8 \xff\xfe.mp4",
    b"n" * 251 + b".mp4",
    "é".encode() * 125 + b".mp4",
    b"line\nbreak \x1b[31m.mp4",
    b"-option.mp4",
    b"a:b;c*d?.mp4",
]


@pytest.mark.parametrize("broken", [False, True])
def test_odd_names_are_packed_listed_and_gone_on_with(tmp_path, clip, capfd, broken):
    (tmp_path / "in").mkdir()
    for name in ODD_NAMES:
        with open(os.fsencode(tmp_path / "in") + b"/" + name, "wb") as file:
            file.write(b"no video" if broken else clip.read_bytes())
    shutil.copy(clip, tmp_path / "in" / "zzz good.mp4")
    dest = os.fsdecode(os.fsencode(tmp_path) + b"/packed \xff\n")
    command = ["data", "pack", str(tmp_path / "in"), dest, "--kind=raw", "--short-side=16"]
    command += ["--videos-per-shard=2", "--workers=1"]
    assert main(command) == (1 if broken else 0)
    out, _ = capfd.readouterr()
    out.encode()  # no surrogates
    # The notes can be read back: the same command goes on, and finds all done.
    last = sorted(Path(dest).glob("videos-*"))[-1]
    last.unlink()
    times = {path: path.stat().st_mtime_ns for path in Path(dest).glob("videos-*")}
    assert main(command) == (1 if broken else 0)
    assert all(path.stat().st_mtime_ns == before for path, before in times.items()) and times
    assert last.exists()
    assert capfd.readouterr()[0] == out
    count = 1 if broken else len(ODD_NAMES) + 1
    assert f"packed \\xff\\x0a: {count} records of 7 videos" in out
    assert len(out.splitlines()) == (1 + len(ODD_NAMES) if broken else 1)
    packed = open_source(f"array_record:{dest}")
    assert len(packed) == count and packed.read(0, Sampling(6), 1, lambda n: 0).shape[0] == 6
    sheet = f"--output={tmp_path / 'sheet.png'}"
    inspect = ["data", "inspect", str(tmp_path / "in"), "--frames=2", "--size=16", "--clips=2"]
    assert main([*inspect, "--workers=1", sheet]) == 0
    assert f"unusable     {len(ODD_NAMES) if broken else 0}\n" in capfd.readouterr()[0]


def test_the_status_says_whether_a_video_was_unusable_and_so_does_the_help(
    folder, tmp_path, capsys
):
    command = ["data", "pack", str(folder), str(tmp_path / "a"), "--short-side=16", "--workers=1"]
    assert main(command) == 0
    (folder / "bad.mp4").write_text("no video")
    command[3] = str(tmp_path / "b")
    assert main(command) == 1 and "bad.mp4 cannot be read" in capsys.readouterr().out
    main(["data", "pack", "--help"])
    assert "exit status is then 1" in " ".join(capsys.readouterr().out.split())
    for path in folder.glob("?.mp4"):
        path.unlink()
    assert main(["data", "inspect", str(folder), "--workers=1"]) == 1, "nothing is usable"


def test_two_packings_into_one_folder_are_refused(monkeypatch, folder, tmp_path):
    dest = tmp_path / "packed"
    second = []

    class Nested(Source):
        def __len__(self):
            return 1

        def name(self, index):
            return "nested"

        def rate(self, index):
            with pytest.raises(BusyError, match="packed is being packed by another process") as at:
                pack_videos(str(folder), dest, **OPTIONS)
            second.append(at)
            return 10.0

        def frames(self, index, sampling, stride, where):
            where(9)
            return [np.zeros((16, 16, 3), np.uint8)] * sampling.frames

    monkeypatch.setitem(SOURCES, "nested:", lambda text, in_memory: Nested())
    assert sum(pack_videos("nested:", dest, **OPTIONS).records.values()) == 1
    assert second
    assert {p.name for p in dest.iterdir()} == {"packed.json", "videos-00000-of-00001.array_record"}


def pack(folder, dest, **options):
    command = [sys.executable, "-m", "odvae_jax", "data", "pack", folder, dest, "--kind=raw"]
    command += ["--short-side=16", "--videos-per-shard=2", "--workers=1"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENV, **options)


def test_a_killed_packing_leaves_nothing_behind_once_it_went_on(folder, tmp_path):
    whole, dest = tmp_path / "whole", tmp_path / "packed"
    pack_videos(str(folder), whole, **OPTIONS)
    pack_videos(str(folder), dest, **OPTIONS)
    # What a process leaves that is killed while it writes the second file.
    second = next(dest.glob("videos-00001*"))
    second.rename(dest / f".{second.name}.tmp")
    (dest / ".packed.json.123.part").write_text("{")
    (dest / ".packing.part").touch()
    os.truncate(next(dest.glob("videos-00002*")), 100)
    pack_videos(str(folder), dest, **OPTIONS)
    assert {p.name for p in dest.iterdir()} == {p.name for p in whole.iterdir()}
    a, b = (open_source(f"array_record:{p}") for p in (whole, dest))
    assert [a.record(i) for i in range(len(a))] == [b.record(i) for i in range(len(b))]


@pytest.mark.full
def test_a_packing_that_is_killed_at_any_moment_goes_on(folder, tmp_path):
    whole, dest = tmp_path / "whole", tmp_path / "packed"
    pack_videos(str(folder), whole, **OPTIONS)
    command = [sys.executable, "-m", "odvae_jax", "data", "pack", folder, dest, "--kind=raw"]
    command += ["--short-side=16", "--videos-per-shard=2", "--workers=2"]
    for seconds in np.linspace(0.3, 2, 8):
        process = subprocess.Popen(command, cwd=ROOT, env=ENV, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert pack(folder, dest).returncode == 0
    assert {p.name for p in dest.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_full_disk_ends_packing_in_a_line_and_leaves_no_half_file(folder, tmp_path):
    for path in folder.glob("*.mp4"):
        write_clip(path, frames=60, height=64, width=64)

    def little():  # no file may be longer, as if the disk were full
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    run = pack(folder, tmp_path / "packed", preexec_fn=little)
    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if line.startswith("odvae")]
    assert len(lines) == 1 and "videos-00000-of-00003.array_record cannot be written" in lines[0]
    assert "Traceback" not in run.stderr
    assert [p.name for p in (tmp_path / "packed").iterdir()] == ["packed.json"]
    assert pack(folder, tmp_path / "packed").returncode == 0, "with room it goes on"


@pytest.mark.parametrize(
    "content", [b"", b'{"source": "x", "sha', b"[]", b'{"shards": 1}', b"\xff"]
)
def test_notes_that_are_cut_short_get_a_line(folder, tmp_path, capsys, content):
    dest = tmp_path / "packed"
    dest.mkdir()
    (dest / "packed.json").write_bytes(content)
    assert main(["data", "pack", str(folder), str(dest), "--workers=1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "packed.json is damaged" in line and "remove the folder and pack again" in line
    assert (dest / "packed.json").read_bytes() == content, "nothing was changed"


def test_flipped_bits_in_a_packed_video_are_found(folder, tmp_path):
    pack_videos(str(folder), tmp_path / "packed", short_side=16, kind="raw", videos_per_shard=9)
    shard = next((tmp_path / "packed").glob("*.array_record"))
    good, whole = open_source(f"array_record:{shard}"), shard.read_bytes()
    records = [good.record(i) for i in range(len(good))]
    at = whole.index(records[2][200:300])
    rng = np.random.default_rng(0)
    for trial in range(40):
        place = at + int(rng.integers(len(records[2]) - 300))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        copy = tmp_path / f"{trial}.array_record"
        copy.write_bytes(flipped)
        source = open_source(f"array_record:{copy}")
        with pytest.raises(VideoError, match=r"record \d cannot be read"):
            for i in range(len(source)):
                assert source.record(i) in records
    clips = RandomClips(f"array_record:{copy}", frames=2, size=16)
    assert all(clips[i].shape == (2, 16, 16, 3) for i in range(12)) and len(clips.skipped) == 1


def test_packed_files_that_are_cut_short_or_no_packed_files_are_named(folder, tmp_path):
    pack_videos(str(folder), tmp_path / "packed", **OPTIONS)
    shard = next((tmp_path / "packed").glob("*.array_record"))
    content = shard.read_bytes()
    for name, part in {
        "half": content[: len(content) // 2],
        "empty": b"",
        "text": b"x" * 999,
    }.items():
        path = tmp_path / f"{name}.array_record"
        path.write_bytes(part)
        with pytest.raises(ValueError, match=f"{name}.array_record is .*damaged|no array_record"):
            open_source(f"array_record:{path}")


def test_broken_examples_of_a_tfds_dataset_are_passed_over(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    info = {"name": "x", "fileFormat": "array_record"}
    info["splits"] = [{"name": "train", "shardLengths": ["6"]}]
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    features = {"video": {"pythonClassName": "x.Video", "video": {}}}
    (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))

    def example(images):
        made = tf_example_pb2.Example()
        made.features.feature["video"].bytes_list.value.extend(images)
        return made.SerializeToString()

    from PIL import Image

    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "a.png")
    image = (tmp_path / "a.png").read_bytes()
    shard = tmp_path / "x-train.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in (
        example([image] * 4),
        b"\xff\xff not an example",
        example([image, b"no image"] * 2),
        example([]),
        example([image[: len(image) // 2]] * 4),
        example([image] * 4)[:40],
    ):
        writer.write(record)
    writer.close()
    source = TFDS(tmp_path)
    assert source.read(0, Sampling(2), 1, lambda n: 0).shape == (2, 16, 16, 3)
    for i in range(1, 6):
        with pytest.raises(VideoError, match=rf"example {i}"):
            source.read(i, Sampling(2), 1, lambda n: 0)
