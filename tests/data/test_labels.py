"""Sources with labels from the folders in which datasets come, and folders of frames."""

import contextlib
import itertools
import json
import logging
import math
import os
import pickle
import shutil
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from odvae_jax.data.clips import RandomClips, batches, label_of
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import Sampling, open_source, open_sources
from odvae_jax.data.video import VideoError, inspect_video, read_frames, write_video
from odvae_jax.evaluation.drawn import DrawnClips
from tests.conftest import full, write_clip
from tests.data.agreement import agrees

# Classes about the two pairs that the dataset's own list has in another order, and their labels.
LABELS = {"ApplyEyeMakeup": 0, "HammerThrow": 34, "Hammering": 35, "HandstandPushups": 36,
          "JumpRope": 46, "JumpingJack": 47, "YoYo": 100}  # fmt: skip


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory):
    """The folder above UCF-101, with two videos per class and the lists of split 1."""
    above = tmp_path_factory.mktemp("ucf101")
    rng = np.random.default_rng(0)
    listed = {"train": [], "test": []}
    for name in LABELS:
        (above / "UCF-101" / name).mkdir(parents=True)
        for group, part in ((1, "test"), (8, "train")):
            video = f"{name}/v_{name}_g{group:02d}_c01.avi"
            frames = rng.integers(0, 256, (6 + group, 24, 32, 3), np.uint8)
            write_video(above / "UCF-101" / video, frames, fps=25)
            listed[part].append(video.replace("v_HandstandP", "v_HandStandP"))
    lists = above / "ucfTrainTestlist"
    lists.mkdir()
    # As the official lists are: with Windows' ends of lines, and numbers in those for training.
    numbered = [f"{video} {number}\r\n" for number, video in enumerate(listed["train"], 1)]
    (lists / "trainlist01.txt").write_bytes("".join(numbered).encode())
    (lists / "testlist01.txt").write_bytes("\r\n".join(listed["test"]).encode())
    (lists / "testlist02.txt").write_text("YoYo/v_YoYo_g08_c01.avi\n")
    return above


def columns_of(source):
    return {source.name(i).rsplit("/")[-1]: source.columns(i) for i in range(len(source))}


@pytest.mark.parametrize("folder", ["", "/UCF-101"])
def test_ucf101_has_labels_in_the_order_of_code_points(ucf101, folder):
    expected = {
        f"v_{name}_g{group}_c01.avi": {"label": label, "class": name}
        for name, label in LABELS.items()
        for group in ("01", "08")
    }
    source = open_source(f"ucf101:{ucf101}{folder}")
    assert columns_of(source) == expected
    for part, group, split in (("train", "08", ""), ("test", "01", ""), ("test", "01", ",split=1")):
        listed = columns_of(open_source(f"ucf101:{ucf101}{folder}:{part}{split}"))
        assert listed == {name: row for name, row in expected.items() if f"g{group}" in name}
    assert list(columns_of(open_source(f"ucf101:{ucf101}:split=2,test"))) == ["v_YoYo_g08_c01.avi"]
    agrees(pickle.loads(pickle.dumps(source)), 3)


def test_the_order_is_that_of_sorted_folders_for_all_classes():
    from odvae_jax.data.sources.ucf101_classes import CLASSES

    tfds = pytest.importorskip("tensorflow_datasets")
    official = tfds.core.tfds_path("video/ucf101_labels.txt").read_text().split()
    assert list(CLASSES) == sorted(official) != official


def test_ucf101_read_from_a_url_has_the_same_labels(ucf101):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(ucf101), "/ucf", recursive=True)
    source = open_source("ucf101:memory://ucf/UCF-101:test")
    assert columns_of(source) == columns_of(open_source(f"ucf101:{ucf101}:test"))


def test_unknown_class_folders_and_missing_lists_are_named(ucf101, tmp_path, caplog):
    with pytest.raises(FileNotFoundError) as error:
        open_source(f"ucf101:{ucf101}/UCF-101:train,split=3")
    for place in ("UCF-101/ucfTrainTestlist", "ucfTrainTestlist"):
        assert f"{ucf101}/{place}/trainlist03.txt" in str(error.value)
    for options in ("split=1", "train,split=4", "validation", "split=one"):
        with pytest.raises(ValueError, match=r"as in ucf101:UCF-101:train,split=1\."):
            open_source(f"ucf101:{ucf101}:{options}")
    os.symlink(ucf101 / "ucfTrainTestlist", tmp_path / "ucfTrainTestlist")
    os.symlink(ucf101 / "UCF-101" / "YoYo", tmp_path / "YoYo")
    some = open_source(f"ucf101:{tmp_path}:train")
    assert len(some) == 1
    (problem,) = some.problems
    assert "6 of 7 videos of" in problem and "v_ApplyEyeMakeup_g08_c01.avi" in problem
    assert problem in caplog.text
    for name in ("Yodeling", "Singing"):
        shutil.copytree(ucf101 / "UCF-101" / "YoYo", tmp_path / name)
    (tmp_path / "YoYo").unlink()
    with pytest.raises(ValueError, match=r"are no classes of UCF101: Singing.*Yodeling"):
        open_source(f"ucf101:{tmp_path}")


def write_frames(folder, numbers, size=(32, 24)):
    folder.mkdir(parents=True)
    for number in numbers:
        colour = (number, 255 - number, 7)
        Image.new("RGB", size, colour).save(folder / f"{folder.name}_frames_{number}.png")


def test_skytimelapse_frames_come_in_the_order_of_their_numbers(tmp_path):
    write_frames(tmp_path / "sky_train" / "one" / "one_1", range(95, 106))
    write_frames(tmp_path / "sky_train" / "two" / "two_1", range(3))
    source = open_source(f"sky-timelapse:{tmp_path}/sky_train")
    assert [source.name(i).rsplit("/")[-1] for i in range(len(source))] == ["one_1", "two_1"]
    whole = source.read(0, Sampling(11), 1, lambda n: n - 1)
    assert whole[:, 0, 0, 0].tolist() == list(range(95, 106))
    agrees(pickle.loads(pickle.dumps(source)), 0)
    assert source.columns(0) == {}
    assert len(open_source(f"sky-timelapse:{tmp_path}/sky_train:least=4")) == 1
    with pytest.raises(VideoError, match=r"two_1 has 3 frames; clips of 5 frames span 9"):
        source.read(1, Sampling(5), 2, lambda n: 0)


def latte_s_frames(length, frames=81, interval=3):
    """Every list of frame numbers that Latte may take of a video: its rule, written out."""
    window = frames * interval
    lists = []
    for begin in range(max(0, length - window - 1) + 1):
        end = min(begin + window, length)
        step = Fraction(end - 1 - begin, frames - 1)
        lists.append([math.floor(begin + i * step) for i in range(frames)])
    return lists


@pytest.mark.parametrize("length", [81, 82, 160, 161, 242, 243, 244, 245, 256])
def test_spread_clips_take_the_frames_that_latte_takes(length, tmp_path):
    """A stride of 3 with a few 4s, and less than 3 in shorter videos."""
    write_frames(tmp_path / "sky" / "one", range(length))
    source = open_source(f"sky-timelapse:{tmp_path}/sky")
    sampling, asked = Sampling(81, short_side=8, spread=True), []

    def taken(place):
        clip = source.read(0, sampling, 3, lambda n: asked.append(n) or place)
        return clip[:, 0, 0, 0].tolist()

    expected = latte_s_frames(length)
    assert [taken(place) for place in range(len(expected))] == expected
    assert {*asked} == {source.places(0, sampling, 3)} == {len(expected)}
    steps = {b - a for a, b in itertools.pairwise(expected[0])}
    assert steps <= ({3, 4} if length > 241 else {1, 2, 3})
    # Drawn clips are of these places, and every place is drawn; training draws of the same.
    drawn = DrawnClips(f"sky-timelapse:{tmp_path}/sky", frames=81, size=8, stride=3, spread=True)
    assert sorted(clip.frames[:, 0, 0, 0].tolist() for clip in drawn) == sorted(expected)
    how = {"frames": 81, "size": 8, "stride": (3, 3), "spread": True, "flip": False}
    clips = RandomClips(f"sky-timelapse:{tmp_path}/sky", **how)
    assert all(clips[i][:, 0, 0, 0].tolist() in expected for i in range(4))


def test_videos_with_fewer_frames_than_a_spread_clip_are_left_out_and_counted(tmp_path):
    for name, length in (("short", 8), ("long", 9)):
        write_frames(tmp_path / "sky" / name, range(length))
    source = open_source(f"sky-timelapse:{tmp_path}/sky")
    short = [source.name(i) for i in range(2)].index(f"{tmp_path}/sky/short")
    with pytest.raises(VideoError, match="short has 8 frames; clips need 9"):
        source.read(short, Sampling(9, spread=True), 3, lambda n: 0)
    held = Sampling(7, holdout=2, spread=True)
    with pytest.raises(VideoError, match="8 frames, 2 of them held out; clips need 7"):
        source.places(short, held, 1)
    assert max(source.read(1 - short, held, 3, lambda n: n - 1)[:, 0, 0, 0]) == 6
    drawn = DrawnClips(f"sky-timelapse:{tmp_path}/sky", frames=9, size=8, stride=3, spread=True)
    assert len([*drawn]) == 1 and drawn.too_short == {source.name(short)} and not drawn.skipped
    with pytest.raises(ValueError, match="fps=8.0 and spread"):
        Sampling(9, fps=8.0, spread=True)


def test_a_spread_clip_of_a_file_is_that_of_its_frames(tmp_path):
    """Read from a place in the middle, and from the frames kept in memory."""
    path = write_clip(tmp_path / "clip.mp4", frames=30, height=16, width=16)
    whole = read_frames(inspect_video(path), 0, 30)
    ((_, kept),) = open_sources(str(path), in_memory=True)
    for source in (open_source(str(path)), kept):
        for place, numbers in enumerate(latte_s_frames(30, 9, 3)):
            found = source.read(0, Sampling(9, spread=True), 3, lambda n, place=place: place)
            np.testing.assert_array_equal(found, whole[numbers])


def test_folders_without_frames_and_other_files_are_counted_and_named(tmp_path, caplog):
    write_frames(tmp_path / "good" / "good_1", range(3))
    write_frames(tmp_path / "bad" / "short", range(2))
    (tmp_path / "bad" / "empty").mkdir()
    (tmp_path / "bad" / "notes").mkdir()
    (tmp_path / "bad" / "notes" / "read.txt").write_text("no frame")
    Image.new("RGB", (8, 8)).save(tmp_path / "good" / "good_1" / "cover.png")
    with caplog.at_level(logging.WARNING):
        source = open_source(f"sky-timelapse:{tmp_path}:least=3")
    assert len(source) == 1 and len(source.read(0, Sampling(3), 1, lambda n: 0)) == 3
    for words in (
        f"that hold fewer than 3 frames were left out (1): {tmp_path}/bad/short.",
        f"folders below {tmp_path} that hold no frames were left out (2): {tmp_path}/bad/empty, "
        f"{tmp_path}/bad/notes.",
        f"other files beside their frames, which were left out (1): {tmp_path}/good/good_1.",
    ):
        assert words in caplog.text
    with pytest.raises(ValueError, match=r"no folder below .* can be used(.|\n)*bad/empty"):
        open_source(f"sky-timelapse:{tmp_path}/bad:least=3")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*such as sky_train"):
        open_source(f"sky-timelapse:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match=r"'most=3' is no option; expected any of least=N, as in"):
        open_source(f"sky-timelapse:{tmp_path}:most=3")


def test_a_broken_frame_is_named(tmp_path):
    write_frames(tmp_path / "a", range(3))
    (tmp_path / "a" / "a_frames_1.png").write_bytes(b"no picture")
    source = open_source(f"sky-timelapse:{tmp_path}")
    with pytest.raises(VideoError, match=r"a_frames_1.png cannot be read as a frame"):
        source.read(0, Sampling(3), 1, lambda n: 0)


@pytest.mark.parametrize("workers", [0, *full(1)])
def test_batches_of_random_clips_have_the_labels_of_their_videos(workers, ucf101):
    text = f"0.5*ucf101:{ucf101}; 0.5*moving-shapes:clips=20,frames=7"
    clips = RandomClips(text, frames=5, size=16, flip=False, label="label")
    of_video = {s.name(i): s.columns(i)["label"] for s in clips.sources for i in range(len(s))}
    with contextlib.closing(batches(clips, 6, threads=2, workers=workers)) as endless:
        for number, (batch, labels) in enumerate(itertools.islice(endless, 4)):
            drawn = [clips.draw(6 * number + row) for row in range(6)]
            np.testing.assert_array_equal(batch, np.stack([d.clip for d in drawn]))
            assert labels.dtype == np.int32
            assert labels.tolist() == [of_video[d.video] for d in drawn]


def test_a_video_without_its_label_is_passed_over_and_told(ucf101, tmp_path):
    video = f"{ucf101}/UCF-101/YoYo/v_YoYo_g01_c01.avi"
    rows = [f"{video},{value}" for value in ("3", "", "-1", "two")]
    (tmp_path / "list.csv").write_text("\n".join(["path,kind", *rows]))
    clips = RandomClips(tmp_path / "list.csv", frames=5, size=16, label="kind")
    assert {clips.draw(i).label for i in range(8)} == {3}
    wrong = RandomClips(f"ucf101:{ucf101}", frames=5, size=16, label="kind")
    words = r"has no label in a column 'kind': its columns are .*label.*class.*; expected a whole"
    with pytest.raises(VideoError, match=words):
        wrong.draw(0)
    numbers = {"label": 3, "text": "x", "flag": True}
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": video, **numbers}))
    source = open_source(tmp_path / "list.jsonl")
    assert label_of(source, 0, "label") == 3
    for column in ("text", "flag"):
        with pytest.raises(
            VideoError, match=f"column '{column}': it holds {numbers[column]!r}; ex"
        ):
            label_of(source, 0, column)


def test_packing_keeps_labels(ucf101, tmp_path):
    pack_videos(f"ucf101:{ucf101}:test", tmp_path / "packed", short_side=16)
    packed = open_source(f"array_record:{tmp_path}/packed")
    rows = [packed.columns(i) for i in range(len(packed))]
    assert {row["class"]: row["label"] for row in rows} == LABELS
