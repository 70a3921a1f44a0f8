"""Shapes that move over photographs: the dataset with classes that is always there."""

import hashlib
import importlib.machinery
import importlib.util
import itertools
import pickle
import time

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from odvae_jax.data.clips import RandomClips
from odvae_jax.data.inspection import contact_sheet, survey
from odvae_jax.data.shapes import PHOTOGRAPHS, draw_scene
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.data.video import VideoError
from tests.data.agreement import agrees
from tests.data.encoding import encoded_columns

SMALL = Sampling(17, 64)
DIGESTS = {
    "train": "2380c4c290df1c2625085d288f4bd19af4a0f1eafd337e52767604e3ccfb522b",
    "test": "60c5d4242b24a2fab91e0147da180323370147c8caed79f1d9ea16f00ec4483f",
}


def clip_of(source, index, start=0, sampling=SMALL, stride=1):
    return source.read(index, sampling, stride, lambda _: start)


def flow(clip):
    """The affine flow that fits a clip best, by least squares over all pairs of frames.

    Returns the shift to the right and down, the turn clockwise and the growth, all in pixels per
    frame; the last two are those at 10 pixels from the middle of what changes.
    """
    smooth = gaussian_filter(clip.astype(float), (0, 0.8, 0.8, 0))
    y, x = np.mgrid[: clip.shape[1], : clip.shape[2]]
    matrix, vector = np.zeros((4, 4)), np.zeros(4)
    for before, after in itertools.pairwise(smooth):
        change = after - before
        weight = np.abs(change).max(-1)
        u, v = ((axis - (weight * axis).sum() / weight.sum())[..., None] / 10 for axis in (x, y))
        down, right = np.gradient((before + after) / 2, axis=(0, 1))
        turn, growth = down * u - right * v, right * u + down * v
        rows = np.stack([right, down, turn, growth], -1)[weight > 0].reshape(-1, 4)
        matrix += rows.T @ rows
        vector -= rows.T @ change[weight > 0].reshape(-1)
    return np.linalg.solve(matrix, vector)


@pytest.mark.parametrize(("part", "start"), [("train", 0), ("test", 16)])
def test_17_frames_of_64_pixels_tell_the_motion_by_their_flow(part, start):
    source = open_source(f"moving-shapes:{part}")
    names = "right", "left", "down", "up", "clockwise", "counter-clockwise", "growing", "shrinking"
    right = 0
    for i in range(48):
        signed = [x for speed in flow(clip_of(source, i, start)) for x in (speed, -speed)]
        right += names[np.argmax(signed)] == source.columns(i)["motion"]
    assert right >= 46


def test_the_same_clips_are_made_on_every_machine():
    """The digests are those of x86-64, of NumPy 2.0 and 2.4, and of Pillow 10 and 13."""
    for part, digest in DIGESTS.items():
        source = open_source(f"moving-shapes:{part}")
        clips = [clip_of(source, i) for i in range(16)]
        assert hashlib.sha256(np.stack(clips).tobytes()).hexdigest() == digest


def test_a_clip_does_not_depend_on_how_many_there_are_nor_on_who_reads_it():
    source = open_source("moving-shapes")
    few = pickle.loads(pickle.dumps(open_source("moving-shapes:train,clips=10")))
    assert (len(source), len(open_source("moving-shapes:test")), len(few)) == (4096, 512, 10)
    np.testing.assert_array_equal(clip_of(few, 9), clip_of(source, 9))
    assert (clip_of(source, 9) != clip_of(source, 17)).any()
    assert (clip_of(source, 9) != clip_of(open_source("moving-shapes:test"), 9)).any()
    assert few.columns(9) == {"label": 1, "motion": "right"}
    labels = [source.columns(i)["label"] for i in range(len(source))]
    assert np.bincount(labels).tolist() == [512] * 8


def test_no_photograph_is_in_both_parts():
    read = {part: set() for part in PHOTOGRAPHS}
    for part, names in read.items():
        for i in range(64):
            scene = draw_scene(part, i)
            numbers = {scene.ground, *(shape.photograph for shape in scene.shapes)}
            assert len(numbers) == 2, "shapes are cut out of another photograph than the ground"
            names.update(PHOTOGRAPHS[part][number] for number in numbers)
        assert names == set(PHOTOGRAPHS[part])
    assert not read["train"] & read["test"]


def test_any_number_of_frames_and_any_size_show_the_same_motion():
    agrees(open_source("moving-shapes:frames=9,size=48"), 4)
    agrees(open_source("moving-shapes:test,frames=1,size=32"), 3)
    for i in range(8):
        large = clip_of(open_source("moving-shapes"), i, 0, Sampling(3, 128), 16).astype(float)
        halved = large.reshape(3, 64, 2, 64, 2, 3).mean((2, 4))
        small = clip_of(open_source("moving-shapes"), i, 0, Sampling(3, 64), 16)
        assert np.abs(small - halved).mean() < 3
        ends = clip_of(open_source("moving-shapes:frames=81"), i, 0, Sampling(3, 64), 40)
        np.testing.assert_array_equal(small, ends)  # the whole motion, whatever the length
    odd = clip_of(open_source("moving-shapes"), 0, 0, Sampling(2, cover=(33, 47)))
    assert odd.shape == (2, 33, 47, 3)


def test_20_clips_per_second_are_made_by_one_core():
    source = open_source("moving-shapes")
    clip_of(source, 0)
    begun = time.thread_time()
    for i in range(16):
        clip_of(source, i)
    assert 16 / (time.thread_time() - begun) > 20


def test_wrong_options_and_too_long_clips_get_the_right_ones_shown():
    for options in ("tset", "clips=0", "clips=", "clips=-1", "side=3", "train,test", "frames=1.5"):
        wrong = options.rpartition(",")[2]
        expected = f"moving-shapes: '{wrong}' is no option; expected any of train, test, clips=N, "
        with pytest.raises(ValueError, match=expected + r".*as in moving-shapes:test,clips=100"):
            open_source(f"moving-shapes:{options}")
    with pytest.raises(VideoError, match=r"has 33 frames.* need 81.*moving-shapes:test,frames=N"):
        clip_of(open_source("moving-shapes:test"), 0, 0, Sampling(81, 16))


def test_without_its_photographs_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="scikit-image: pip install scikit-image"):
        open_source("moving-shapes")
    spec = importlib.machinery.ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"scikit-image lacks astronaut.png, brick.png"):
        open_source("moving-shapes")


def test_training_and_inspection_read_it_like_every_other_source(tmp_path):
    clips = RandomClips("moving-shapes:clips=3", frames=17, size=24, flip=False)
    assert {clips.draw(i).video for i in range(3)} == {clips.sources[0].name(i) for i in range(3)}
    report = survey("moving-shapes:clips=9", frames=25)
    assert (report.videos, report.usable) == (9, 9) and report.sizes == {"256×256": 9}
    assert report.columns == {"label": 9, "motion": 9}
    sheet = Image.open(contact_sheet("moving-shapes:test", tmp_path / "a.png", size=32, clips=3))
    assert sheet.size == (4 * 32, 3 * 32)


def test_it_becomes_latents_with_its_labels(tmp_path):
    found = encoded_columns("moving-shapes:clips=9,frames=5", tmp_path / "d")
    names = ["left", "right", "up", "down", "clockwise", "counter-clockwise", "growing"]
    names += ["shrinking", "left"]
    assert found == {i: {"label": i % 8, "motion": name} for i, name in enumerate(names)}
