"""Who sees whom in time (SPEC: the switches `norm` and `time_upsample`)."""

import numpy as np
import pytest

from tests.conftest import full, random_video, small_model

VARIANTS = ["v1", "v4", *full("v2", "v3")]


@pytest.mark.parametrize("frames", [9, *full(5, 17)])
@pytest.mark.parametrize("structure", VARIANTS)
def test_latents_that_end_before_a_changed_frame_do_not_change(structure, frames):
    vae = small_model(structure, norm="frame")
    video = random_video(frames, 16, 24)
    latents = np.asarray(vae.encode(video).mean)
    for t in (1, 4, 5, 8) if frames == 9 else range(1, frames):
        changed = video.copy()
        changed[:, t] = random_video(1, 16, 24, seed=t)[:, 0]
        after = np.asarray(vae.encode(changed).mean)
        first = (t + 3) // 4  # the latent whose frames, 4j - 3 to 4j, hold t
        np.testing.assert_array_equal(after[:, :first], latents[:, :first])
        assert (after[:, first] != latents[:, first]).any()


@pytest.mark.parametrize("structure", VARIANTS)
def test_first_latent_is_that_of_the_first_frame_alone(structure):
    vae = small_model(structure, norm="frame")
    video = random_video(9, 16, 24)
    alone = vae.encode(video[:, :1]).mean
    np.testing.assert_allclose(vae.encode(video).mean[:, :1], alone, atol=1e-5)


def test_with_the_norm_over_the_clip_the_first_latent_sees_the_rest():
    video = random_video(9, 16, 24)
    alone = small_model().encode(video[:, :1]).mean
    assert np.abs(small_model().encode(video).mean[:, :1] - alone).max() > 1e-3


def seen_latents(vae, t):
    """For each decoded frame, the last latent that changes it.

    And that none before is left out of step.
    """
    latents = np.random.default_rng(0).standard_normal((1, t, 2, 3, 4)).astype(np.float32)
    video = np.asarray(vae.decode(latents))
    last = np.full(video.shape[1], -1)
    for j in range(t):
        changed = latents.copy()
        changed[:, j] += 1.0
        differs = (np.asarray(vae.decode(changed)) != video).any(axis=(0, 2, 3, 4))
        last[differs] = j
    return list(last)


@pytest.mark.parametrize("n", [4, *full(2, 3, 7)])
@pytest.mark.parametrize("structure", VARIANTS)
def test_nearest_time_upsampling_decodes_causally(structure, n):
    vae = small_model(structure, norm="frame", time_upsample="nearest")
    assert seen_latents(vae, n) == [(t + 3) // 4 for t in range(4 * n - 3)]


@pytest.mark.parametrize("n", [4, *full(2, 3, 7)])
@pytest.mark.parametrize("structure", VARIANTS)
def test_linear_time_upsampling_looks_ahead_exactly_as_specified(structure, n):
    vae = small_model(structure, norm="frame", time_upsample="linear")
    assert seen_latents(vae, n) == [0, *(min(n - 1, (t + 6) // 4) for t in range(1, 4 * n - 3))]
