"""`odvae recognise`: whether samples show the class that they were made for."""

import contextlib
import csv
import io
import re

import numpy as np
import pytest

from odvae_jax.cli import main
from odvae_jax.data.shapes import MOTIONS
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.data.video import write_video
from odvae_jax.evaluation.recognition import Recognition

COUNT = 24
FRAMES = 9
REAL = ["--data=moving-shapes", "--test=moving-shapes:test,clips=64", "--test-clips=64"]


def fill(folder, labels, names=MOTIONS):
    """Real clips of the test part of moving-shapes as if they had been sampled for some classes."""
    folder.mkdir()
    source = open_source(f"moving-shapes:test,clips={64 + COUNT}")
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "class"])
        for number, label in enumerate(labels):
            clip = source.read(64 + number, Sampling(FRAMES, short_side=64), 4, lambda n: 0)
            write_video(folder / f"{number:06d}.mp4", np.stack(clip), 6)
            name = names[label] if label < len(names) else str(label)
            writer.writerow([f"{number:06d}.mp4", label, name])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples of which one in three claims to be of the next class."""
    labels = [(n + (n % 3 == 0)) % len(MOTIONS) for n in range(COUNT)]
    return fill(tmp_path_factory.mktemp("recognise") / "samples", labels)


@pytest.fixture(scope="module")
def said(folder):
    """What the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(["recognise", str(folder), *REAL, "--clips=1024", "--steps=150"]) == 0
    return text.getvalue()


@pytest.mark.full
def test_real_clips_are_recognised_and_those_with_a_wrong_class_are_not(said, folder):
    held_out = re.search(r"real clips of .*: (\d+) of 64 recognised", said)
    samples = re.search(r"samples of (.*): (\d+) of 24 recognised", said)
    assert int(held_out[1]) >= 58
    assert samples[1] == str(folder) and abs(int(samples[2]) - 16) <= 2
    assert "by chance 12.5%" in said


@pytest.mark.full
def test_the_table_says_as_what_each_class_is_seen(said):
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("made for"))
    rows = [line.split() for line in lines[start + 1 :]]
    assert lines[start].split()[-9:-1] == [*MOTIONS] and [row[0] for row in rows] == [*MOTIONS]
    counts = np.array([[int(n.replace(".", "0")) for n in row[1:9]] for row in rows])
    assert counts.sum() == COUNT
    assert counts.trace() == sum(int(row[-3]) for row in rows)
    # Those that claim the next class are seen as what they are, the one before.
    before = sum(counts[(k + 1) % 8, k] for k in range(8))
    assert counts.trace() + before >= COUNT - 3


def test_samples_without_a_known_class_and_broken_ones_are_named_and_left_out(tmp_path, capsys):
    folder = fill(tmp_path / "s", [0, 8, 2])
    (folder / "000002.mp4").write_bytes(b"no video")
    command = ["recognise", str(folder), *REAL, "--clips=64", "--steps=2"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert " of 1 recognised" in out
    assert "000001.mp4 has the class 8; there are 0 to 7." in err
    assert "000002.mp4" in err and "2 samples left out" in err
    assert "so the share of samples says little" in err
    assert main(command) == 1
    again = capsys.readouterr().out
    assert re.sub(r"in \d+ s", "", again) == re.sub(r"in \d+ s", "", out), "the seed is the same"


@pytest.mark.usefixtures("own_log")
def test_videos_that_it_learns_from_are_no_test(tmp_path, capsys):
    """Whatever the two sources are called; a part of the videos is enough to refuse."""
    folder = fill(tmp_path / "s", [0, 1])
    sources = ["--data=moving-shapes:clips=16", "--test=moving-shapes:train,clips=32"]
    few = ["--clips=16", "--test-clips=32", "--steps=1"]
    assert main(["recognise", str(folder), *sources, *few]) == 1
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    # What stands before it are the bars of reading.
    assert "16 of the 32 clips of moving-shapes:train,clips=32" in err.splitlines()[-1]


@pytest.mark.usefixtures("own_log")
def test_samples_of_one_frame_have_no_motion_that_could_be_recognised(tmp_path, capsys):
    folder = fill(tmp_path / "s", [0])
    write_video(folder / "000000.mp4", np.zeros((1, 64, 64, 3), np.uint8), 6)
    assert main(["recognise", str(folder), *REAL, "--clips=64", "--steps=1"]) == 1
    out, err = capsys.readouterr()
    assert not out and "has 1 frame" in err and len(err.splitlines()) == 1


FEW = ["--clips=16", "--test-clips=16", "--steps=1"]


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize(
    "names, found, wanted",
    [(MOTIONS[::-1], MOTIONS[-1], MOTIONS[0]), ([MOTIONS[0], "cats"], "cats", MOTIONS[1])],
    ids=["another order", "other classes"],
)
def test_class_numbers_that_stand_for_other_classes_than_the_real_clips_are_refused(
    names, found, wanted, tmp_path, capsys
):
    folder = fill(tmp_path / "s", [0, 1, 0, 1], names)
    words = [*REAL, "--clips=64", "--steps=1"]
    assert main(["recognise", str(folder), *words]) == 1
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    said = err.splitlines()[-1]
    assert repr(found) in said and repr(wanted) in said and "'motion'" in said
    # Names that mean nothing are not compared.
    assert main(["recognise", str(folder), *words, "--names="]) == 0
    capsys.readouterr()
    assert main(["recognise", str(folder), *words, "--names=none"]) == 1
    assert "no column 'none'" in capsys.readouterr().err


@pytest.mark.usefixtures("own_log")
def test_a_class_that_no_real_clip_is_of_is_named_and_not_counted(tmp_path, capsys):
    """Among the samples it is left out; among the real clips of the test it is refused."""
    samples = fill(tmp_path / "samples", [0, 1, 2])
    learnt = fill(tmp_path / "learnt", [0, 2] * 4) / "samples.csv"
    same = fill(tmp_path / "same", [0, 2] * 4) / "samples.csv"
    other = fill(tmp_path / "other", [0, 1, 2, 3]) / "samples.csv"
    assert main(["recognise", str(samples), f"--data={learnt}", f"--test={same}", *FEW]) == 1
    out, err = capsys.readouterr()
    assert " of 2 recognised" in out and "learnt 2 classes" in out
    assert "000001.mp4 has the class 1" in err and "1 sample left out" in err
    assert main(["recognise", str(samples), f"--data={learnt}", f"--test={other}", *FEW]) == 1
    out, err = capsys.readouterr()
    assert not out and "classes 1, 3" in err.splitlines()[-1] and str(learnt) in err


@pytest.mark.usefixtures("own_log")
def test_a_column_that_names_nothing_of_a_class_is_not_compared_with_the_samples(tmp_path, capsys):
    """Real clips with captions of their own, and samples of a denoiser without names."""
    samples = fill(tmp_path / "samples", [0, 1], names=[])
    folders = [fill(tmp_path / name, [0, 1] * 4, MOTIONS) for name in ("learnt", "test")]
    lists = [folder / "samples.csv" for folder in folders]
    words = [f"--data={lists[0]}", f"--test={lists[1]}", *FEW]
    assert main(["recognise", str(samples), *words]) == 0
    named = fill(tmp_path / "named", [0, 1], ["cats", "dogs"])
    for place in lists:
        rows = place.read_text().splitlines()
        rows = [rows[0], *(f"{row} {number}" for number, row in enumerate(rows[1:]))]
        place.write_text("\n".join(rows) + "\n")
    assert main(["recognise", str(named), *words]) == 0, capsys.readouterr().err


def test_counts_are_those_of_pairs():
    found = Recognition.of(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert found.counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert (found.right, found.total, found.share) == (2, 4, 0.5)
