"""Generated videos beside real clips, as the command compares them, and the page with samples."""

import itertools
import json
import re

import numpy as np
import pytest

from odvae_jax.cli import main
from odvae_jax.data.video import inspect_video, read_frames
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.drawn import DrawnClips, GeneratedClips
from odvae_jax.evaluation.generated import as_json, evaluate_generated, notes, table
from odvae_jax.metrics.clip_sets import Networks, load_networks
from odvae_jax.metrics.generated import measure_generated
from tests.browser import opened, played
from tests.conftest import write_clip
from tests.metrics.stand_ins import Brightness, Corner, networks

SHAPE = {"frames": 16, "size": 32}


def large():
    """Networks whose distances have digits before the point."""
    return Networks(Brightness(scale=200.0), Corner())


def write_set(folder, count, *, first=0, frames=16, side=32):
    folder.mkdir(parents=True)
    for i in range(count):
        write_clip(folder / f"{i:06d}.mp4", frames, side, side, seed=first + i, fps=8)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sets of generated videos, and three real ones of which one is too short."""
    path = tmp_path_factory.mktemp("generated")
    write_set(path / "good", 12)
    write_set(path / "other" / "samples", 10, first=50)
    (path / "reals").mkdir()
    for i, frames in enumerate((20, 24, 12)):
        write_clip(path / "reals" / f"real{i}.mp4", frames, seed=90 + i)
    return path


@pytest.fixture
def stand_ins(monkeypatch):
    """Small networks instead of I3D and C3D; what they were called with."""
    small = large()
    monkeypatch.setattr("odvae_jax.metrics.clip_sets.load_networks", lambda **_: small)
    return small


def command(data, *more, generated=("good",), count=12):
    words = [f"--generated={data / folder}" for folder in generated]
    words += [f"--data={data / 'reals'}", "--frames=16", "--size=32", f"--count={count}", *more]
    return main(["eval", *map(str, words)])


def read(file):
    info = inspect_video(file)
    return read_frames(info, 0, info.frames)


@pytest.mark.usefixtures("own_log")
def test_the_command_prints_and_writes_the_numbers_of_every_set(data, tmp_path, stand_ins, capsys):
    sets = ("good", "other/samples")
    assert command(data, f"--output={tmp_path}", generated=sets) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert [s["label"] for s in found["sets"]] == ["good", "samples"]
    markdown, page = (tmp_path / "results.md").read_text(), (tmp_path / "results.html").read_text()
    reals = itertools.islice(DrawnClips(data / "reals", **SHAPE), 12)
    reals = [(clip.name, clip.frames) for clip in reals]
    assert len(reals) == 12
    for own, folder in zip(found["sets"], sets, strict=True):
        files = sorted((data / folder).glob("*.mp4"))
        made = [(str(f), read(f)) for f in files]
        expected = measure_generated(reals, made, large(), count=12, progress=False)
        assert [s["metric"] for s in own["scores"]] == ["fvd16", "fvd", "kvd", "is", "is10"]
        for score, other in zip(own["scores"], expected.scores, strict=True):
            assert score["metric"] == other.metric
            assert score["generated"] == other.generated == len(files)
            if other.metric != "is10":  # its splits depend on the order
                assert score["value"] == pytest.approx(other.value, rel=1e-3, abs=1e-6)
            shown = f"{score['value']:.2f}"
            line = rf"^{own['label']} .*  {len(files)}  +{re.escape(shown)}"
            assert re.search(line, printed, re.MULTILINE), (shown, printed)
            assert f"| {shown}" in markdown and f"<td>{shown}" in page
    for text in (printed, markdown):
        assert "12 generated clips and 12 real ones of 2 videos, 16 frames of 32×32" in text
        assert "samples: 12 generated clips were asked for; 10 were found." in text
        assert "12 real clips are of 2 videos: " in text
        assert "1 real video is too short for a clip" in text


@pytest.mark.usefixtures("own_log", "stand_ins")
def test_real_clips_are_spread_if_the_command_says_so(data, tmp_path, capsys):
    """Over videos that are too short for their frames at the stride."""
    words = ("--stride=4", "--spread", f"--output={tmp_path}")
    assert command(data, *words, count=2) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    drawn = DrawnClips(data / "reals", stride=4, spread=True, **SHAPE)
    assert found["real"].items() >= drawn.settings().items()
    assert found["sets"][0]["real"]["clips"] == 2 == len([*itertools.islice(drawn, 2)])
    assert command(data, "--stride=4", f"--output={tmp_path / 'other'}", count=2) == 1


@pytest.mark.usefixtures("own_log")
def test_the_same_command_computes_nothing_again(data, tmp_path, stand_ins, capsys):
    """As after an interruption: what the networks made of clips is kept as it is made."""
    known, calls = stand_ins.features.features, []
    words = ("--batch=2", f"--output={tmp_path / 'out'}")

    def made(status, *words):
        """How many calls of the network a command makes that ends so."""
        before = len(stand_ins.features.calls)
        assert command(data, *words, count=6) == status
        return len(stand_ins.features.calls) - before

    def breaks(video):
        calls.append(1)
        if len(calls) == whole:
            raise KeyboardInterrupt
        return known(video)

    whole = made(0, "--batch=2", f"--output={tmp_path / 'whole'}")
    stand_ins.features.features = breaks
    begun = made(130, *words)
    stand_ins.features.features = known
    assert begun == whole - 1 > 0 and not (tmp_path / "out" / "results.json").exists()
    capsys.readouterr()
    assert made(0, *words) == 1
    printed, numbers = capsys.readouterr().out, (tmp_path / "out" / "results.json").read_text()
    assert numbers == (tmp_path / "whole" / "results.json").read_text()
    assert made(0, *words) == 0
    assert capsys.readouterr().out == printed
    assert (tmp_path / "out" / "results.json").read_text() == numbers


@pytest.mark.usefixtures("own_log")
def test_clips_that_cannot_be_read_or_are_not_finite_are_named(data, tmp_path, stand_ins, capsys):
    write_set(tmp_path / "made", 4)
    (tmp_path / "made" / "broken.mp4").write_text("not a video")
    (tmp_path / "reals").mkdir()
    (tmp_path / "reals" / "fake.mp4").write_text("nor this")
    for i in range(2):
        write_clip(tmp_path / "reals" / f"{i}.mp4", seed=i)
    first = read(tmp_path / "made" / "000002.mp4")

    def features(video, known=stand_ins.features.features):
        made = known(video)
        dark = np.abs((np.asarray(video) + 1) * 127.5 - first).max((1, 2, 3, 4)) < 1
        made[dark] = np.nan
        return made

    stand_ins.features.features = features
    assert command(tmp_path, f"--output={tmp_path / 'out'}", generated=("made",), count=5) == 1
    said = capsys.readouterr()
    assert "1 video of made cannot be used" in said.err
    assert "1 video of real clips cannot be used" in said.err
    assert "1 clip of made is not finite" in said.err
    for text in (said.out, (tmp_path / "out" / "results.md").read_text()):
        assert "broken.mp4" in text and "fake.mp4" in text
        assert re.search("1 of 4 generated clips are not finite.*000002.mp4", text)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found["sets"][0]["skipped"]) == len(found["real_skipped"]) == 1
    assert {s["generated"] for s in found["sets"][0]["scores"]} == {3}


def test_the_page_plays_samples_of_every_set_in_a_browser(data, tmp_path):
    sets = {"<b>good": "good", "other": "other/samples"}
    made = {label: GeneratedClips(data / folder, **SHAPE) for label, folder in sets.items()}
    reals = DrawnClips(data / "reals", **SHAPE)
    options = {"count": 12, "sizes": (4, 8), "output": tmp_path / "out", "progress": False}
    results, written = evaluate_generated(made, reals, networks(), **options)
    assert all(path.exists() for path in written)
    assert as_json(results)["sets"][0]["label"] == "<b>good"
    with opened(tmp_path / "out" / "results.html", tmp_path / "profile") as page:
        rows = page.execute_script(
            "return [...document.querySelectorAll('tbody tr')].map("
            "r => [...r.cells].map(c => c.innerText))"
        )
        assert rows == table(results)[1]
        counts = [(row[0], row[3]) for row in rows if row[1].startswith("FVD, all")]
        assert counts[:4] == [(label, n) for n in ("4", "8") for label in sets]
        assert counts[4:] == [("other", "10"), ("<b>good", "12")]
        headings = page.execute_script(
            "return [...document.querySelectorAll('h2')].map(h => h.innerText)"
        )
        assert headings == ["Real clips", "<b>good", "other"]
        begun = page.execute_script(
            "return [...document.querySelectorAll('video')].map(v => v.autoplay && v.muted)"
        )
        assert begun == [True] * 3
        # Eight clips in a row with four pixels between them.
        near = [pytest.approx(16 / fps, abs=0.05) for fps in (12, 8, 8)]
        assert played(page) == [[8 * 36 - 4, length] for length in near]
        captions = page.execute_script(
            "return [...document.querySelectorAll('figcaption')].map(c => c.innerText)"
        )
        assert captions[1].count(".mp4") == 12 and captions[1].startswith("The first 12")
        assert page.get_log("browser") == []
        assert page.execute_script("return document.documentElement.scrollWidth") <= 1200


@pytest.mark.parametrize("stride", [1, 2])
def test_real_clips_are_windows_at_random_places_that_come_again_alike(tmp_path, stride):
    (tmp_path / "v").mkdir()
    lengths = (5 * stride, 8 + 5 * stride, 12)
    for i, length in enumerate(lengths):
        write_clip(tmp_path / "v" / f"{i}.mp4", length, seed=i)
    shape = {"frames": 5, "size": 32, "stride": stride}
    windows = {}
    for i, length in enumerate(lengths):
        for start in range(length - 4 * stride):
            clip = FixedClips(tmp_path / "v", start=start, **shape).read(i)
            windows[clip.digest] = (i, start)
    drawn = [windows[c.digest] for c in DrawnClips(tmp_path / "v", **shape)]
    assert sorted(drawn) == sorted(windows.values()), "every place once, and then no more"
    videos = [video for video, _ in drawn]
    for turn in range(max(map(videos.count, videos))):
        left = [video for video in range(3) if videos.count(video) > turn]
        before = sum(min(turn, videos.count(video)) for video in range(3))
        assert sorted(videos[before : before + len(left)]) == left, "each once before any again"
    again = [windows[c.digest] for c in DrawnClips(tmp_path / "v", **shape)]
    assert again == drawn
    other = [windows[c.digest] for c in DrawnClips(tmp_path / "v", seed=1, **shape)]
    assert other != drawn and sorted(other) == sorted(drawn)
    assert [start for _, start in drawn] != sorted(start for _, start in drawn)


def test_of_more_videos_than_asked_for_a_random_choice_is_taken_and_said(tmp_path):
    write_set(tmp_path / "made", 9, frames=9)
    write_set(tmp_path / "reals", 3, frames=9)
    shape = {"frames": 9, "size": 32}
    results, _ = evaluate_generated(
        {"a": GeneratedClips(tmp_path / "made", **shape)},
        DrawnClips(tmp_path / "reals", **shape),
        networks(),
        count=5,
        progress=False,
    )
    names = results.comparisons["a"].generated.names
    assert len(set(names)) == 5 and list(names) != sorted(names)
    said = " ".join(notes(results))
    assert "a has 9 videos, of which 5 are measured, drawn at random." in said
    assert "5 real clips were asked for; 3 were found." in said


def test_networks_that_are_missing_leave_their_metrics_out(data):
    without = Networks(Brightness(), None, {"classifier": "no package carries it"})
    sets = {"a": GeneratedClips(data / "good", **SHAPE)}
    reals = DrawnClips(data / "reals", **SHAPE)
    results, written = evaluate_generated(sets, reals, without, count=4, progress=False)
    assert written == [] and results.complaints == ()
    assert [row[-1] for row in table(results)[1]][-2:] == ["missing"] * 2
    assert "Inception score is missing: no package carries it." in notes(results)


@pytest.mark.full
@pytest.mark.usefixtures("own_log")
def test_the_command_takes_i3d_of_its_package(data, tmp_path, capsys):
    assert load_networks().features is not None
    assert command(data, f"--output={tmp_path}", count=2) == 0
    printed = capsys.readouterr().out
    assert re.search(r"FVD, all frames ↓ +2 +2 +\d+\.\d\d\n", printed)
    assert "Inception score is missing: no package carries C3D's weights" in printed


@pytest.mark.usefixtures("own_log")
def test_an_evaluation_of_another_kind_is_not_replaced(data, tmp_path, capsys):
    for name, words, other in (
        ("features", ["--ckpt=small"], "generated videos"),
        ("measurements", [f"--generated={data / 'good'}"], "reconstructions"),
    ):
        (tmp_path / name / name).mkdir(parents=True)
        words += [f"--data={data / 'reals'}", f"--output={tmp_path / name}"]
        assert main(["eval", *words]) > 0
        said = capsys.readouterr().err
        assert f"{name} holds an evaluation of {other}" in said and said.count("\n") == 1


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize(
    "words, said",
    [
        (["--generated=GOOD", "--data=REALS", "--ckpt=small"], "--ckpt is for models"),
        (["--generated=GOOD", "--data=REALS", "--tiling", "5"], "--tiling is for models"),
        (["--generated=GOOD", "--data=REALS", "--speed"], "--speed is for models"),
        (["--ckpt=small", "--data=REALS", "--count=3"], "--count is for generated videos"),
        (["--speed", "--c3d=x.npz"], "--c3d is for generated videos"),
        (["--generated=GOOD"], "--data is needed: the real videos"),
        (["--generated=GOOD", "--generated=GOOD", "--data=REALS"], "several sets are called"),
        (["--generated=a=GOOD", "--generated=a=OTHER", "--data=REALS"], "several sets are called"),
        (["--generated=real clips=GOOD", "--data=REALS", "--size=32"], "several sets are called"),
        (["--generated=nowhere", "--data=REALS"], "nowhere does not exist"),
        (["--generated=GOOD", "--data=REALS"], "expected 16 frames of 256×256: give --frames=16 "),
        (["--generated=GOOD", "--data=REALS", "--c3d=no.npz"], "no.npz does not exist"),
        (
            ["--generated=GOOD", "--data=REALS", "--size=32", "--stride=9"],
            "no video of real clips can be used: all are too short for a clip.",
        ),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_in_one_line(words, said, data, tmp_path, monkeypatch, capsys):
    if "--c3d=no.npz" not in words:
        monkeypatch.setattr("odvae_jax.metrics.clip_sets.load_networks", lambda **_: networks())
    monkeypatch.chdir(tmp_path)
    places = {"GOOD": "good", "OTHER": "other", "REALS": "reals"}
    for name, folder in places.items():
        words = [word.replace(name, str(data / folder)) for word in words]
    assert main(["eval", *words]) > 0
    said_all = capsys.readouterr().err
    (message,) = (line for line in said_all.splitlines() if line.startswith("odvae"))
    assert message.startswith("odvae eval: ") and said in message
    assert "Traceback" not in said_all
