import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.order import shuffled, turn
from odvae_jax.data.video import VideoError, write_video
from tests.conftest import write_clip

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_clip(path / f"clip{i}.mp4", frames=20 + i, seed=i)
    return path


def clips(path, **options):
    return RandomClips(path, **{"frames": 5, "size": 32, "short_side": 40, **options})


def test_a_clip_depends_on_the_seed_and_its_index_alone(folder):
    a, b, other = clips(folder), clips(folder, in_memory=True), clips(folder, seed=1)
    assert a[7].shape == (5, 32, 32, 3) and a[7].dtype == np.uint8
    for i in (7, 0, 3):
        np.testing.assert_array_equal(a[i], b[i])
    assert any((a[i] != other[i]).any() for i in range(3))
    assert len({a[i].tobytes() for i in range(20)}) > 15


@pytest.mark.parametrize(
    "threads, workers", [(1, 0), (4, 0), pytest.param(2, 1, marks=pytest.mark.full), (2, 4)]
)
def test_batches_are_the_same_for_any_workers_and_can_begin_anywhere(folder, threads, workers):
    source = clips(folder, short_side_max=60)
    many = {"threads": threads, "workers": workers}

    def take(count, batch_size, **options):
        with contextlib.closing(batches(source, batch_size, **many, **options)) as endless:
            return list(itertools.islice(endless, count))

    first = take(4, 2)
    for i in range(4):
        np.testing.assert_array_equal(first[i], np.stack([source[2 * i], source[2 * i + 1]]))
    np.testing.assert_array_equal(take(1, 2, first=6)[0], first[3])
    # Two hosts, each with its own rows: disjoint, and together the whole.
    hosts = [take(2, 4, rows=rows)[1] for rows in ([1, 3], [0, 2])]
    whole = np.stack([source[i] for i in range(4, 8)])
    np.testing.assert_array_equal(np.stack([hosts[1], hosts[0]], 1).reshape(whole.shape), whole)


def test_clips_have_scales_of_their_own_which_the_seed_decides(tmp_path):
    """Stripes whose period says how much a clip was scaled."""
    stripes = np.sin(2 * np.pi * np.arange(256) / 16)[None, :, None] * 127.5 + 127.5
    frames = np.broadcast_to(stripes, (6, 128, 256, 3)).astype(np.uint8)
    write_video(tmp_path / "stripes.mp4", frames, 12)

    def scales(start=0, **options):
        source = clips(tmp_path, size=64, short_side=64, **options)
        with contextlib.closing(batches(source, 30, first=start, threads=2, workers=0)) as feed:
            rows = next(feed)[:, 0, 32].mean(-1)
        power = np.abs(np.fft.rfft((rows - rows.mean(1, keepdims=True)) * np.hanning(64), 1024))
        return 64 / (power[:, 20:].argmax(1) + 20), rows  # the period, by the video's of 16

    alike, _ = scales()
    np.testing.assert_allclose(alike, 0.5, rtol=0.1)
    varied, rows = scales(short_side_max=128)
    assert varied.min() < 0.6 and varied.max() > 0.85 and np.unique(varied).size > 10
    assert (varied > 0.45).all() and (varied < 1.1).all()
    _, same = scales(start=10, short_side_max=128)
    np.testing.assert_array_equal(same[:20], rows[10:])
    _, fixed = scales(short_side_max=64)
    np.testing.assert_array_equal(fixed, scales()[1])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"short_side_max": 39}, "short_side_max=39 is less than short_side=40"),
        ({"short_side_max": 60, "in_memory": True}, "in_memory keeps videos at one size"),
    ],
)
def test_scales_that_cannot_be_are_refused(folder, options, said):
    with pytest.raises(ValueError, match=said):
        clips(folder, **options)


SCRIPT = """
import sys
import jax  # as a training script does; and no guard of the main module
from odvae_jax.data.clips import RandomClips, batches
clips = RandomClips(sys.argv[1], frames=5, size=32)
feed = batches(clips, 2, workers=2, threads=1)
print(next(feed).sum(), next(feed).sum())
feed.close()
"""


def test_workers_do_without_jax_and_the_callers_script(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('main')\n" + SCRIPT)
    source = clips(folder, size=32, short_side=32)
    command = [sys.executable, str(script), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=ENV)
    sums = [int(source[2 * i].sum()) + int(source[2 * i + 1].sum()) for i in range(2)]
    assert run.stdout.split() == ["main", *map(str, sums)], run.stderr

    class WithoutJax(RandomClips):
        def draw(self, index):
            assert sys.modules["jax"] is None
            assert not any(name.startswith(("jaxlib", "jax.")) for name in sys.modules)
            return super().draw(index)

    lean = WithoutJax(folder, frames=5, size=32)
    with contextlib.closing(batches(lean, 2, workers=1)) as feed:
        assert next(feed).sum() == sums[0]


def test_every_video_comes_once_before_any_comes_twice(tmp_path):
    for i in range(7):
        write_clip(tmp_path / f"{i}.mp4", frames=6, height=16, width=16)
    source = clips(tmp_path, size=16, short_side=16)
    drawn = [source.draw(i).video for i in range(21)]
    epochs = [drawn[i : i + 7] for i in (0, 7, 14)]
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1000])
def test_shuffling_is_a_permutation(count):
    order = [shuffled(i, count, seed=3) for i in range(count)]
    assert sorted(order) == list(range(count))
    if count > 5:
        assert order != [shuffled(i, count, seed=4) for i in range(count)]
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.3


def test_mixed_sources_come_in_the_shares_that_are_set(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for i in range(2):
            write_clip(tmp_path / name / f"{i}.mp4", frames=6, height=16, width=16)
    mix = "; ".join(f"{w}*folder:{tmp_path / n}" for n, w in zip("abc", (5, 3, 2), strict=True))
    source = clips(mix, size=16, short_side=16)
    weights = tuple(source._weights)
    which = [turn(0, weights, i) for i in range(20_000)]
    counts = np.bincount([w for w, _ in which])
    np.testing.assert_array_equal(counts, [10_000, 6_000, 4_000])
    np.testing.assert_allclose(np.bincount([w for w, _ in which[:1000]]), [500, 300, 200], atol=60)
    for name in range(3):
        assert [turn for w, turn in which if w == name] == list(range(counts[name]))
    assert {source.draw(i).video.split("/")[-2] for i in range(30)} == set("abc")


def test_strides_rates_crops_and_flips_are_as_asked_for(tmp_path):
    # The t-th frame is as bright as its number says, darker to the right.
    frames = (
        np.full((40, 32, 48, 3), 5, np.uint8)
        + 4 * np.arange(40, dtype=np.uint8)[:, None, None, None]
    )
    frames[:, :, 24:] -= 5
    write_video(tmp_path / "clip.mp4", frames, fps=20)

    def steps(**options):
        source = clips(tmp_path, frames=4, size=32, short_side=32, **options)
        drawn = [source[i] for i in range(12)]
        times = np.stack([clip.mean((1, 2, 3)) / 4 for clip in drawn])
        return drawn, np.round(np.diff(times, axis=1)).astype(int)

    assert set(steps()[1].ravel()) == {1}
    assert set(steps(stride=(3, 3))[1].ravel()) == {3}
    ranged = steps(stride=(1, 3))[1]
    assert set(ranged.ravel()) == {1, 2, 3} and (ranged == ranged[:, :1]).all()
    assert set(steps(fps=10.0)[1].ravel()) == {2}
    plain, _ = steps(crop="centre", flip=False)
    for clip in plain:
        assert (clip[:, :, :8].mean((1, 2, 3)) > clip[:, :, -8:].mean((1, 2, 3)) + 3).all()
    flipped, _ = steps(crop="centre")
    left_brighter = {bool(c[:, :, :8].mean() > c[:, :, -8:].mean()) for c in flipped}
    assert left_brighter == {True, False}


def test_too_many_unusable_videos_stop_the_run_with_their_list(tmp_path):
    write_clip(tmp_path / "good.mp4")
    for i in range(2):
        (tmp_path / f"fake{i}.mp4").write_text("not a video")
    tolerant = clips(tmp_path, max_unusable=0.7)
    assert [tolerant[i].shape for i in range(4)] and len(tolerant.skipped) == 2
    strict = clips(tmp_path, max_unusable=0.5)
    with pytest.raises(VideoError, match=r"2 of the 3 .*max_unusable=0.5(.|\n)*fake1.mp4"):
        for i in range(4):
            strict[i]


def test_held_out_frames_are_never_drawn(tmp_path):
    frames = np.zeros((30, 32, 32, 3), np.uint8)
    frames[-10:] = 255
    write_video(tmp_path / "clip.mp4", frames, fps=10)
    source = clips(tmp_path, short_side=32, holdout=10)
    assert max(source[i].max() for i in range(60)) < 60
    assert source.held_out(3).shape == (1, 5, 32, 32, 3)
    assert source.held_out(3).min() > 200
    drawn = {bool(clips(tmp_path, short_side=32)[i].max() > 200) for i in range(60)}
    assert drawn == {True, False}, "without holdout they are drawn"


def test_all_frames_that_are_held_out_can_be_read_in_clips_of_each_video_in_turn(tmp_path):
    for name, shade in (("a", 100), ("b", 200)):
        frames = np.zeros((30, 32, 32, 3), np.uint8)
        frames[-12:-2] = shade  # two clips, and two frames that are too few for a third
        frames[-7:-2] += 30
        write_video(tmp_path / f"{name}.mp4", frames, fps=10)
    source = clips(tmp_path, short_side=32, holdout=12)
    found = [clip.mean((1, 2, 3)) for clip in source.each_held_out(5)]
    np.testing.assert_allclose(found, [[s] * 5 for s in (100, 200, 130, 230)], atol=8)
    assert len(list(source.each_held_out())) == 2


def test_held_out_clips_with_a_stride_are_not_trained_on(tmp_path):
    frames = np.full((60, 16, 16, 3), 4, np.uint8) * np.arange(60, dtype=np.uint8).reshape(
        -1, 1, 1, 1
    )
    write_video(tmp_path / "clip.mp4", frames, fps=10)
    for options in ({"stride": (4, 4)}, {"fps": 2.5}):
        source = clips(tmp_path, size=16, short_side=16, holdout=20, **options)
        shown = source.held_out(1)[0].mean((1, 2, 3)) / 4
        assert shown.min() > 39, options
        assert max(source[i].max() for i in range(40)) / 4 < 41


SIGNALLED = """
import os, signal, sys, time
from odvae_jax.data.clips import RandomClips, batches
signal.signal(signal.SIGINT, lambda *_: print("noted", flush=True))
feed = batches(RandomClips(sys.argv[1], frames=5, size=32), 2, workers=2, threads=1)
next(feed)
os.killpg(0, signal.SIGINT)
for _ in range(20):
    next(feed)
start = time.monotonic()
feed.close()
print("closed", time.monotonic() - start < 20)
"""


def test_a_signal_to_the_whole_group_leaves_the_workers_be(folder):
    command = [sys.executable, "-c", SIGNALLED, str(folder)]
    group = {"start_new_session": True, "env": ENV, "cwd": ROOT, "check": True}
    run = subprocess.run(command, capture_output=True, text=True, **group)
    assert run.stdout.split() == ["noted", "closed", "True"], run.stderr


def test_unusable_files_are_skipped_named_and_counted(tmp_path, caplog):
    write_clip(tmp_path / "good.mp4")
    write_clip(tmp_path / "short.mp4", frames=3)
    (tmp_path / "fake.mp4").write_text("not a video")
    source = clips(tmp_path)
    drawn = [source[i] for i in range(12)]
    assert {p.split("/")[-1] for p in source.skipped} == {"short.mp4", "fake.mp4"}
    assert "short.mp4 has 3 frames" in caplog.text and "fake.mp4 cannot be read" in caplog.text
    assert caplog.text.count("fake.mp4 cannot be read") == 1, "said once"
    again = clips(tmp_path)
    for i in (11, 3):
        np.testing.assert_array_equal(
            again[i], drawn[i], err_msg="the replacement is drawn by rule"
        )


def test_nothing_usable_stops_with_the_reasons(tmp_path):
    (tmp_path / "fake.mp4").write_text("not a video")
    with pytest.raises(VideoError, match="no usable video.*1 of 1 video was(.|\n)*fake.mp4"):
        clips(tmp_path)[0]
    with pytest.raises(VideoError, match="none of 1 video(.|\n)*fake.mp4"):
        clips(tmp_path).held_out(1)
