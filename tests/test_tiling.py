"""Temporal tiling against encoding and decoding each group by hand."""

import jax
import numpy as np
import pytest

from odvae_jax import TemporalTiling, decode, decode_uint8, encode, encode_uint8
from odvae_jax.inference import to_uint8, to_unit_range
from tests.conftest import random_video, small_model

CASES = [(1, 5), (21, 9)]
GRID = [(t, g) for t in (1, 5, 33, 65, 97, 129) for g in (5, 17, 33) if (t, g) != (1, 5)]
CASES += [pytest.param(t, g, marks=pytest.mark.full) for t, g in GRID]


def groups(length, stride):
    """First and last + 1 of each group by the paper's rule, written out."""
    first, cut = 0, []
    while first == 0 or first < length - 1:
        cut.append((first, min(first + stride + 1, length)))
        first += stride
    return cut


@pytest.mark.parametrize("length, group", CASES)
def test_tiling_is_each_group_by_hand(length, group):
    vae, tiling = small_model(), TemporalTiling(group)
    video = random_video(length, 16, 16, b=2)
    posterior = encode(vae, video, tiling=tiling)
    parts = [vae.encode(video[:, a:b]) for a, b in groups(length, group - 1)]
    for name in ("mean", "logvar"):
        kept = [getattr(p, name)[:, min(i, 1) :] for i, p in enumerate(parts)]
        np.testing.assert_allclose(
            getattr(posterior, name), np.concatenate(kept, axis=1), atol=1e-5
        )
    latents = posterior.mean
    frames = decode(vae, latents, tiling=tiling)
    parts = [vae.decode(latents[:, a:b]) for a, b in groups(latents.shape[1], (group - 1) // 4)]
    kept = [p[:, min(i, 1) :] for i, p in enumerate(parts)]
    assert frames.shape == video.shape
    np.testing.assert_allclose(frames, np.concatenate(kept, axis=1), atol=1e-5)


def test_uint8_entries_tile_alike():
    vae, tiling = small_model(), TemporalTiling(5)
    video = np.random.default_rng(0).integers(0, 256, (1, 13, 16, 16, 3), dtype=np.uint8)
    floats = to_unit_range(jax.numpy.asarray(video))
    latents = encode_uint8(vae, video, tiling=tiling).mean
    np.testing.assert_allclose(latents, encode(vae, floats, tiling=tiling).mean, atol=1e-5)
    frames = decode_uint8(vae, latents, tiling=tiling)
    np.testing.assert_array_equal(frames, to_uint8(decode(vae, latents, tiling=tiling)))


def test_an_image_model_s_frames_do_not_know_of_groups():
    vae = small_model("image")
    video = random_video(14, 16, 16)
    tiled = encode(vae, video, tiling=TemporalTiling(5)).mean
    np.testing.assert_allclose(tiled, vae.encode(video).mean, atol=1e-5)
    np.testing.assert_allclose(
        decode(vae, tiled, tiling=TemporalTiling(5)), vae.decode(tiled), atol=1e-5
    )


def test_the_program_s_size_does_not_depend_on_the_length():
    vae, tiling = small_model(), TemporalTiling(5)

    def size(length):
        both = jax.jit(
            lambda vae, x: decode(vae, encode(vae, x, tiling=tiling).mean, tiling=tiling)
        )
        return len(both.lower(vae, random_video(length, 16, 16)).as_text().splitlines())

    assert size(13) == size(101)


@pytest.mark.parametrize("group, nearest", [(1, 5), (6, 5), (32, 33), (0, 5)])
def test_a_group_that_is_not_4k_plus_1_is_refused(group, nearest):
    with pytest.raises(ValueError, match=f"a group of {group} frames.*nearest is {nearest}"):
        TemporalTiling(group)


def test_what_cannot_be_encoded_whole_cannot_be_tiled(unchecked_types):
    with pytest.raises(ValueError, match=r"T must be 4k \+ 1"):
        encode(small_model(), random_video(12, 16, 16), tiling=TemporalTiling(5))
    with pytest.raises(ValueError, match="this model decodes"):
        decode(small_model(), np.zeros((1, 3, 2, 2, 5), np.float32), tiling=TemporalTiling(5))
