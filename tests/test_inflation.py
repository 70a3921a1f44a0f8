"""Tail initialisation (Eq. 3) makes the video model an image model for a single frame (Eq. 4)."""

import numpy as np
import pytest

from odvae_jax import ODVAEConfig
from odvae_jax.inflation import inflate
from odvae_jax.parameters import named_parameters
from tests.conftest import SMALL, full, random_video, small_model

VARIANTS = [1, 4, *full(2, 3)]


def inflated(n, method="tail", **overrides):
    return inflate(small_model("image"), ODVAEConfig.variant(n, **SMALL, **overrides), method)


@pytest.mark.parametrize("n", VARIANTS)
def test_tail_initialised_model_passes_an_image_and_a_still_clip_as_the_image_model_does(n):
    image = small_model("image")
    vae = inflated(n)
    frame = random_video(1, 16, 24)
    latent = image.encode(frame).mean
    np.testing.assert_allclose(vae.encode(frame).mean, latent, atol=1e-4)
    np.testing.assert_allclose(vae.decode(latent), image.decode(latent), atol=1e-4)
    still = frame.repeat(5, axis=1)
    latents = vae.encode(still).mean
    np.testing.assert_allclose(latents, np.asarray(latent).repeat(2, 1), atol=1e-4)
    np.testing.assert_allclose(
        vae.decode(latents), np.asarray(image.decode(latent)).repeat(5, 1), atol=1e-4
    )


@pytest.mark.parametrize("n", VARIANTS)
def test_with_per_frame_norm_each_latent_is_the_image_models_of_one_frame(n):
    image = small_model("image")
    vae = inflated(n, norm="frame", time_upsample="nearest")
    video = random_video(9, 16, 24)
    latents = vae.encode(video).mean
    np.testing.assert_allclose(latents, image.encode(video[:, ::4]).mean, atol=1e-4)
    shown = np.asarray(latents)[:, [0] + [1] * 4 + [2] * 4]  # latent ceil(t / 4) in frame t
    np.testing.assert_allclose(vae.decode(latents), image.decode(shown), atol=1e-4)


@pytest.mark.parametrize("n", [4, *full(1, 2, 3)])
def test_average_too_is_the_image_model_on_a_still_clip_and_not_on_a_moving_one(n):
    image, vae = small_model("image"), inflated(n, "average", norm="frame")
    frame = random_video(1, 16, 24)
    latent = image.encode(frame).mean
    for times in (1, 5):
        latents = vae.encode(frame.repeat(times, axis=1)).mean
        np.testing.assert_allclose(latents, np.asarray(latent).repeat(times // 4 + 1, 1), atol=1e-4)
        np.testing.assert_allclose(
            vae.decode(latents), np.asarray(image.decode(latent)).repeat(times, 1), atol=1e-4
        )
    moving = random_video(5, 16, 24)
    each = image.encode(moving[:, ::4]).mean
    np.testing.assert_allclose(inflated(n, norm="frame").encode(moving).mean, each, atol=1e-4)
    assert np.abs(vae.encode(moving).mean - each).max() > 0.01


def test_random_takes_nothing_but_has_gaussian_kernels_of_variance_one_over_fan_in():
    random, again, other = (
        named_parameters(
            inflate(small_model("image"), ODVAEConfig.variant(1, **SMALL), "random", seed=s)
        )
        for s in (0, 0, 1)
    )
    name = "decoder.mid.block_1.conv1.kernel"
    kernel = np.asarray(random[name])
    assert kernel.std() == pytest.approx(1 / np.sqrt(np.prod(kernel.shape[:-1])), rel=0.05)
    assert (kernel == again[name]).all() and (kernel != other[name]).all()


@pytest.mark.usefixtures("unchecked_types")
def test_what_does_not_fit_is_refused():
    config = ODVAEConfig.variant(4, **SMALL)
    with pytest.raises(ValueError, match="'tial' is not known.*tail.*average.*random"):
        inflate(small_model("image"), config, "tial")
    with pytest.raises(ValueError, match="'v4'; expected an image model"):
        inflate(small_model("v4"), config)
    with pytest.raises(ValueError, match="have 4 groups, the video model's 8"):
        inflate(small_model("image"), ODVAEConfig.variant(4, **SMALL | {"groups": 8}))
    with pytest.raises(ValueError, match="another width.*conv_in.kernel is .*8.*expected .*16"):
        inflate(small_model("image"), ODVAEConfig.variant(4, **SMALL | {"width": 16}))
