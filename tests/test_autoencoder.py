import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import odvae_jax
from odvae_jax import ODVAE, ODVAEConfig
from tests.conftest import SMALL, full, random_video, small_model
from tests.released import golden, released_model

released = functools.lru_cache(released_model)


@pytest.mark.parametrize("case", ["image", "clip", *full("tall")])
def test_released_outputs_are_reproduced(case):
    video, moments, reconstruction = golden(case)
    np.testing.assert_allclose(released().moments(video), moments, atol=2e-5, rtol=0)
    mean = released().encode(video).mode()
    np.testing.assert_allclose(mean, moments[..., :4], atol=2e-5, rtol=0)
    np.testing.assert_allclose(released().decode(mean), reconstruction, atol=2e-5, rtol=0)


@pytest.mark.parametrize("structure, t", [("v4", 5), ("image", 3)])
def test_shapes_and_dtypes(structure, t):
    vae = small_model(structure, dtype="bfloat16")
    posterior = vae.encode(random_video(t, 16, 24, b=2))
    assert posterior.mean.shape == (2, (t - 1) // vae.config.time_compression + 1, 2, 3, 4)
    assert posterior.mean.shape == vae.config.latent_shape((2, t, 16, 24, 3))
    assert posterior.mean.dtype == posterior.logvar.dtype == jnp.float32
    rounded = posterior.mean.astype(jnp.bfloat16).astype(jnp.float32)
    assert (rounded != posterior.mean).any(), "the posterior is computed in float32"
    video = vae.decode(posterior.mode())
    assert video.shape == (2, t, 16, 24, 3)
    assert video.dtype == jnp.float32


def test_bfloat16_is_float32_within_its_rounding():
    video = random_video(5, 16, 24, b=2)
    exact, rounded = small_model(), small_model(dtype="bfloat16")
    mean = exact.encode(video).mean
    error = rounded.encode(video).mean - mean
    assert 0 < jnp.sqrt(jnp.mean(error**2)) < 0.03 * jnp.sqrt(jnp.mean(mean**2))


def test_functions_are_the_methods_and_uint8_is_scaled_rounded_and_clipped():
    vae = small_model()
    frames = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 24, 3), np.uint8)
    video = frames.astype(np.float32) / 127.5 - 1
    mean = vae.encode(video).mean
    np.testing.assert_array_equal(odvae_jax.encode(vae, video).mean, mean)
    np.testing.assert_allclose(odvae_jax.encode_uint8(vae, frames).mean, mean, atol=1e-5)
    decoded = odvae_jax.decode(vae, 3 * mean)
    assert decoded.min() < -1 and decoded.max() > 1, "the test must reach both clips"
    expected = np.clip(np.round((np.asarray(decoded) + 1) * 127.5), 0, 255)
    frames = odvae_jax.decode_uint8(vae, 3 * mean)
    assert frames.dtype == jnp.uint8
    assert np.abs(np.asarray(frames, int) - expected).max() <= 1  # 1 where rounding meets a half
    assert np.mean(np.asarray(frames, int) != expected) < 1e-3


def test_a_new_clip_of_the_same_shape_compiles_nothing(monkeypatch):
    for name in ("to_moments", "to_video"):
        once = chex.assert_max_traces(getattr(ODVAE, name), n=1)
        monkeypatch.setattr(ODVAE, name, once)
    vae = small_model("image", seed=3)  # that no other test has compiled
    for seed in range(3):
        vae.reconstruct(random_video(2, 16, 24, b=2, seed=seed))
    with pytest.raises(AssertionError):
        vae.encode(random_video(3, 16, 24, b=2))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "video, words",
    [
        (
            np.zeros((1, 10, 16, 16, 3), np.float32),
            ["(1, 10, 16, 16, 3)", "4k + 1", "(1, 9, 16, 16, 3)"],
        ),
        (np.zeros((1, 9, 130, 16, 3), np.float32), ["H must be", "(1, 9, 128, 16, 3)"]),
        (np.zeros((1, 9, 16, 3, 3), np.float32), ["W must be", "(1, 9, 16, 8, 3)"]),
        (np.zeros((1, 9, 16, 16, 4), np.float32), ["3 channels", "(1, 9, 16, 16, 3)"]),
        (np.zeros((1, 0, 16, 16, 3), np.float32), ["4k + 1", "(1, 1, 16, 16, 3)"]),
        (np.zeros((0, 1, 16, 16, 3), np.float32), ["B must be", "(1, 1, 16, 16, 3)"]),
        (np.zeros((1, 3, 9, 16, 16), np.float32), ["3 channels", "axes swapped?"]),
        (np.zeros((1, 9, 3, 16, 16), np.float32), ["3 channels", "axes swapped?"]),
        (np.zeros((9, 16, 16, 3), np.float32), ["(9, 16, 16, 3)", "five axes"]),
        ([[0.5]], ["builtins.list", "array"]),
        (np.zeros((1, 9, 16, 16, 3), np.uint8), ["uint8", "encode_uint8"]),
    ],
)
def test_impossible_videos_are_refused_before_compiling(monkeypatch, video, words):
    monkeypatch.setattr(ODVAE, "to_moments", chex.assert_max_traces(ODVAE.to_moments, n=0))
    with pytest.raises(ValueError) as error:
        odvae_jax.encode(small_model(), video)
    assert "video" in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.usefixtures("unchecked_types")
def test_uint8_entries_refuse_what_the_float_ones_do():
    with pytest.raises(ValueError, match="float32; encode_uint8 takes uint8"):
        odvae_jax.encode_uint8(small_model(), np.zeros((1, 9, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match=r"nearest is \(1, 9, 16, 16, 3\)"):
        odvae_jax.encode_uint8(small_model(), np.zeros((1, 8, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="five axes"):
        odvae_jax.encode_uint8(small_model(), np.zeros((16, 16, 3), np.uint8))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "latents, words",
    [
        (np.zeros((1, 3, 2, 2, 8), np.float32), ["(1, 3, 2, 2, 8)", "(1, 3, 2, 2, 4)"]),
        (np.zeros((3, 2, 2, 4), np.float32), ["(3, 2, 2, 4)", "[B, t, h, w, 4]"]),
        (np.zeros((1, 0, 2, 2, 4), np.float32), ["(1, 1, 2, 2, 4)"]),
        (np.zeros((1, 3, 2, 2, 4), np.int32), ["int32", "floating"]),
    ],
)
@pytest.mark.parametrize("decode", [odvae_jax.decode, odvae_jax.decode_uint8])
def test_impossible_latents_are_refused(decode, latents, words):
    with pytest.raises(ValueError) as error:
        decode(small_model(), latents)
    assert "latents" in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.usefixtures("unchecked_types")
def test_unknown_rngs_are_refused():
    with pytest.raises(ValueError, match=r"expected nnx\.Rngs, a seed or None"):
        ODVAE(ODVAEConfig.variant(4, **SMALL), rngs="0")


def test_a_model_is_made_from_a_config_and_a_seed():
    config = ODVAEConfig.variant(4, **SMALL)
    a, b, c = (ODVAE(config, rngs=seed).quant_conv.kernel[...] for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


@pytest.mark.usefixtures("unchecked_types")
def test_a_model_needs_a_config():
    with pytest.raises(ValueError, match=r"ODVAEConfig.variant\(4\)"):
        ODVAE({"width": 8})
