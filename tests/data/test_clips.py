import itertools

import numpy as np
import pytest

from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.video import VideoError
from tests.conftest import write_clip


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


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_can_begin_anywhere(folder, threads):
    source = clips(folder)
    first = list(itertools.islice(batches(source, 2, threads=threads), 4))
    np.testing.assert_array_equal(first[3], np.stack([source[6], source[7]]))
    later = next(batches(source, 2, first=6, threads=threads))
    np.testing.assert_array_equal(later, first[3])
    mine = list(itertools.islice(batches(source, 4, rows=[1, 3], threads=threads), 2))
    np.testing.assert_array_equal(mine[1], np.stack([source[5], source[7]]))


def test_held_out_frames_are_never_drawn(tmp_path):
    from odvae_jax.data.video import write_video

    frames = np.zeros((30, 32, 32, 3), np.uint8)
    frames[-10:] = 255
    write_video(tmp_path / "clip.mp4", frames, fps=10)
    source = clips(tmp_path, short_side=32, holdout=10)
    assert max(source[i].max() for i in range(60)) < 60
    assert source.held_out(3).shape == (1, 5, 32, 32, 3)
    assert source.held_out(3).min() > 200
    drawn = {bool(clips(tmp_path, short_side=32)[i].max() > 200) for i in range(60)}
    assert drawn == {True, False}, "without holdout they are drawn"


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
    with pytest.raises(VideoError, match="no usable video.*1 of 1 files(.|\n)*fake.mp4"):
        clips(tmp_path)[0]
    with pytest.raises(VideoError, match="none of 1 videos(.|\n)*fake.mp4"):
        clips(tmp_path).held_out(1)
