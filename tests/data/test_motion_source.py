"""Clips that a moving camera takes of pictures, as a source of training clips."""

import numpy as np
import pytest
from PIL import Image

from odvae_jax.data.clips import RandomClips
from odvae_jax.data.inspection import survey
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.data.video import VideoError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(3):
        small = rng.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    return folder


def test_a_place_decides_the_clip(pictures):
    source = open_source(f"motion:{pictures}")
    assert len(source) == 3
    clips = [source.read(1, Sampling(5, 32), 1, lambda _, at=at: at) for at in (7, 7, 8)]
    assert clips[0].shape == (5, 32, 32, 3) and clips[0].dtype == np.uint8
    np.testing.assert_array_equal(clips[0], clips[1])
    assert (clips[0] != clips[2]).any()


def test_a_stride_takes_frames_of_the_same_clip(pictures):
    source = open_source(f"motion:{pictures}")
    whole = source.read(0, Sampling(5, 32), 1, lambda _: 3)
    half = source.read(0, Sampling(3, 32), 2, lambda _: 3)
    np.testing.assert_array_equal(half, whole[::2])


def test_a_rate_takes_frames_of_the_same_clip(pictures):
    source = open_source(f"motion:{pictures}")
    whole = source.read(0, Sampling(9, 32), 1, lambda _: 3)
    rate = source.rate(0)
    for part, every in ((5, 2), (3, 4)):
        slower = source.read(0, Sampling(part, 32, fps=rate / every), 1, lambda _: 3)
        np.testing.assert_array_equal(slower, whole[::every])
    uneven = source.read(0, Sampling(4, 32, fps=rate / 2.6), 1, lambda _: 3)
    np.testing.assert_array_equal(uneven, whole[[0, 3, 5, 8]])


def test_a_spread_clip_takes_frames_of_the_whole_window(pictures):
    source = open_source(f"motion:{pictures}")
    whole = source.read(0, Sampling(15, 32), 1, lambda _: 3)
    spread = source.read(0, Sampling(5, 32, spread=True), 3, lambda _: 3)
    np.testing.assert_array_equal(spread, whole[[0, 3, 7, 10, 14]])


def test_single_frames_can_be_had(pictures):
    source = open_source(f"motion:{pictures}")
    clips = [source.read(0, Sampling(1, 32), 1, lambda _, at=at: at) for at in range(40)]
    assert {clip.shape for clip in clips} == {(1, 32, 32, 3)}  # one in eight would have a cut


def test_clips_of_another_aspect_are_cut_from_the_centre(pictures):
    source = open_source(f"motion:{pictures}")
    assert source.read(0, Sampling(2, cover=(24, 40)), 1, lambda _: 0).shape == (2, 24, 40, 3)


def test_training_draws_endless_clips_by_their_number(pictures):
    made = dict(frames=5, size=24, short_side=24, short_side_max=40, seed=3)
    first, again = (RandomClips(f"motion:{pictures}", **made) for _ in range(2))
    clips = [first[i] for i in range(9)]
    np.testing.assert_array_equal(again[4], clips[4])
    assert len({clip.tobytes() for clip in clips}) == 9


def test_it_has_no_length(pictures):
    found = survey(f"motion:{pictures}", frames=25)
    assert found.usable == 3 and found.hours == 0 and found.rates
    with pytest.raises(VideoError, match="has no length: give the number of frames"):
        open_source(f"motion:{pictures}").header(0)


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    source = open_source(f"motion:{tmp_path}")
    with pytest.raises(VideoError, match="broken.png cannot be read as an image"):
        source.read(0, Sampling(2, 32), 1, lambda _: 0)
