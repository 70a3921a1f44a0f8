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
from odvae_jax.data.video import VideoError, find_videos
from odvae_jax.files import BusyError, counted
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
    assert f"packed \\xff\\x0a: {counted(count, 'record')} of 7 videos" in out
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


def test_folders_that_cannot_be_read_and_lost_links_end_with_status_1(
    folder, tmp_path, monkeypatch, capsys, caplog
):
    videos = shutil.copytree(folder, tmp_path / "some")
    for name in ("gone", "kept"):
        (videos / name).mkdir()
        shutil.copy(next(folder.glob("*.mp4")), videos / name / "more.mp4")
    scandir = os.scandir

    def broken(path):
        if str(path).endswith("gone"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", broken)
    problems = {}
    found = find_videos(videos, problems=problems)
    assert problems == {str(videos / "gone"): "cannot be looked into: Input/output error"}
    assert str(videos / "kept" / "more.mp4") in found and not caplog.records
    line = f"{videos}/gone cannot be looked into: Input/output error"
    assert find_videos(videos) == found
    assert [record.getMessage() for record in caplog.records] == [line]
    sheet = ["--output", str(tmp_path / "x.png"), "--clips=1", "--size=16", "--frames=2"]
    for command in (
        ["inspect", str(videos), *sheet],
        ["pack", str(videos), str(tmp_path / "packed"), "--short-side=16"],
    ):
        assert main(["data", *command, "--workers=1"]) == 1
        assert line in capsys.readouterr().out
    with pytest.raises(ValueError, match="no video below (.|\n)*gone cannot be looked into: Input"):
        find_videos(videos / "gone")


def test_links_that_lead_nowhere_are_named_where_problems_are_asked_for(folder, tmp_path, caplog):
    videos = shutil.copytree(folder, tmp_path / "some")
    (videos / "nowhere.mp4").symlink_to("gone.mp4")
    (videos / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(videos / "pipe.mp4")
    problems = {}
    found = find_videos(videos, problems=problems)
    assert problems == {
        str(videos / "nowhere.mp4"): "is a link to gone.mp4, which does not exist",
        str(videos / "loop.mp4"): "is a link that leads back to itself",
    }
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"1 of {len(found) + 3} videos below ")


def test_one_bad_shard_of_several_is_named_and_counted_and_the_others_are_used(
    folder, tmp_path, caplog
):
    pack_videos(str(folder), tmp_path / "packed", **{**OPTIONS, "videos_per_shard": 1})
    whole = open_source(f"array_record:{tmp_path / 'packed'}")
    text = f"array_record:{shutil.copytree(tmp_path / 'packed', tmp_path / 'copy')}"
    shards = sorted((tmp_path / "copy").glob("*.array_record"))
    assert len(shards) >= 3
    os.truncate(shards[1], shards[1].stat().st_size // 2)
    shards[2].unlink()
    os.mkfifo(shards[2])
    source, frame = open_source(text), Sampling(1)
    good = [0, *range(3, len(source))]
    assert [source.record(i) for i in good] == [whole.record(i) for i in good]
    for i, words in {1: f"{shards[1]} is damaged", 2: f"{shards[2]} is a named pipe"}.items():
        with pytest.raises(VideoError, match=words):
            source.read(i, frame, 1, lambda n: 0)
    report = survey(text)
    assert report.usable == len(source) - 2
    assert sorted(reason.split(" is ")[0] for reason in report.unusable.values()) == [
        str(shard) for shard in shards[1:3]
    ]
    clips = RandomClips(text, frames=2, size=16)
    assert all(clips[i].shape == (2, 16, 16, 3) for i in range(2 * len(source)))
    assert sum(str(shards[1]) in record.getMessage() for record in caplog.records) == 1
    strict = RandomClips(text, frames=2, size=16, max_unusable=0.0)
    with pytest.raises(VideoError, match=r"max_unusable=0.0(.|\n)*array_record is "):
        [strict[i] for i in range(2 * len(source))]
    (tmp_path / "bad").mkdir()
    for i in range(2):
        (tmp_path / "bad" / f"{i}.array_record").write_bytes(b"x" * 99)
    with pytest.raises(ValueError, match=r"0.array_record is (.|\n)*1.array_record is "):
        open_source(f"array_record:{tmp_path / 'bad'}")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_bad_row_of_a_manifest_is_named_and_the_others_are_used(folder, tmp_path, kind):
    video = str(next(folder.glob("*.mp4")))
    rows = [["path", "start", "end"], [video, "", ""], [video, "0.4", "0.2"], [video, "x", ""]]
    rows += [["", "", ""], [video, "0", "100"]]
    manifest = tmp_path / f"list.{kind}"
    if kind == "csv":
        text = "\n".join(map(",".join, rows))
    else:
        lines = [json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]]
        lines[2] = lines[2][:-5]
        text = "\n".join(lines)
    manifest.write_text(text + "\n")
    report = survey(str(manifest))
    assert (report.videos, report.usable) == (5, 2)
    for number, (name, reason) in zip((2, 3, 4), report.unusable.items(), strict=True):
        assert name.endswith(f"list.{kind}, row {number}")
        assert reason.startswith(f"{manifest}: row {number} is ")
        assert reason.endswith("with 0 <= start < end, or empty.")
    packing = pack_videos(str(manifest), tmp_path / "packed", short_side=16)
    assert packing.unusable == report.unusable and sum(packing.records.values()) >= 2
    clips = RandomClips(manifest, frames=2, size=16)
    assert all(clips[i].shape == (2, 16, 16, 3) for i in range(10)) and len(clips.skipped) == 3
    lines = manifest.read_text().splitlines()
    only = [lines[0], lines[2]] if kind == "csv" else lines[1:4]
    manifest.write_text("\n".join(only))
    with pytest.raises(ValueError, match=f"list.{kind}: row 1 is .*0.4"):
        open_source(manifest)
