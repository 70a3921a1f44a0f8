"""What a window of latent frames decodes to, as docs/latents.md says it."""

import numpy as np
import pytest

from odvae_jax import ODVAE, ODVAEConfig, decode
from tests.conftest import full, small_model
from tests.two_levels import CAUSAL, TWO_LEVELS


def model_of(structure, **overrides):
    config = ODVAEConfig(structure=structure, width=8, groups=4, precision="highest", **overrides)
    return ODVAE(config, rngs=0)


def differences(vae, count, first, length):
    """How much each frame of a decoded window differs from that of the whole clip, at most."""
    rows = 4 if vae.config.structure in (CAUSAL, TWO_LEVELS) else 2
    shape = (1, count, rows, rows, vae.config.latent_channels)
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole = np.asarray(decode(vae, latents))
    window = np.asarray(decode(vae, latents[:, first : first + length]))
    c = vae.config.time_compression
    assert window.shape[1] == c * (length - 1) + 1, "one frame, then c for each latent frame"
    same = whole[:, c * first : c * first + window.shape[1]]
    return np.abs(window - same).max((0, 2, 3, 4)) / np.abs(whole).max()


EXACT = 1e-5


@pytest.mark.parametrize("upsample", ["linear", *full("nearest")])
def test_a_window_from_0_on_decodes_to_the_frames_of_the_clip(upsample):
    vae = model_of(CAUSAL, norm="frame", time_upsample=upsample)
    found = differences(vae, 16, 0, 6)
    # Linear upsampling sees the next latent frame, which is missing for the last c - 1 frames.
    assert found[:-1].max() < EXACT
    assert (found[-1] < EXACT) == (upsample == "nearest")


def test_a_window_of_an_image_model_decodes_to_the_frames_of_the_clip():
    assert differences(model_of(TWO_LEVELS), 8, 3, 4).max() < EXACT


@pytest.mark.parametrize("norm", ["frame", *full("clip")])
def test_a_later_window_differs_most_at_its_beginning(norm):
    vae = model_of(CAUSAL, norm=norm, time_upsample="nearest")
    found = differences(vae, 40, 3, 36)
    assert found[:6].min() > 100 * EXACT and found[:6].max() > 2 * found[-6:].max()
    # What the decoder would have seen before has a finite reach, unless norms see the whole clip.
    assert (found[-1] < EXACT) == (norm == "frame")


@pytest.mark.full
@pytest.mark.parametrize("upsample", ["nearest", "linear"])
def test_in_variant_4_the_latent_frames_before_reach_28_latent_frames(upsample):
    vae = small_model("v4", norm="frame", time_upsample=upsample)
    found = differences(vae, 36, 4, 31)
    assert found[: 4 * 20].min() > EXACT and found[4 * 27 + 1 :][:8].max() < EXACT
