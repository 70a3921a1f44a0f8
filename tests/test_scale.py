"""What a diffusion model is given of latents, and the way back."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from odvae_jax import ODVAEConfig
from odvae_jax.latents import Scale, Statistics
from tests.conftest import small_model

MEAN, STD = (-2.5, 0.0, 1.0, 0.3), (1.5, 0.25, 2.0, 0.01)


def posteriors(n=4000, seed=0):
    """Means and log-variances [n, 4] of other sizes per channel."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(MEAN, STD, (n, 4)).astype(np.float32)
    return mean, np.log(rng.uniform(0.1, 0.9, (n, 4))).astype(np.float32)


def calibrated(**fields):
    vae = small_model()
    fields = {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.7} | fields
    return type(vae)(ODVAEConfig.from_dict(vae.config.to_dict() | fields), rngs=None)


def test_samples_that_are_normalised_have_mean_0_and_deviation_1_per_channel():
    statistics, (mean, logvar) = Statistics(), posteriors()
    for part in range(0, 4000, 500):
        statistics.add(mean[part : part + 500], logvar[part : part + 500])
    scale = Scale.of(statistics)
    noise = np.random.default_rng(1).standard_normal((50, *mean.shape))
    samples = mean + np.exp(0.5 * logvar) * noise  # many, drawn without any of the code above
    normalised = scale.normalise(samples)
    np.testing.assert_allclose(normalised.mean((0, 1)), 0, atol=0.01)
    np.testing.assert_allclose(normalised.std((0, 1)), 1, atol=0.01)
    assert samples.std() * scale.factor == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_model_and_its_scale_normalise_and_return(make, dtype):
    vae, z = calibrated(), make(posteriors(60)[0].reshape(3, 20, 4).astype(dtype))
    normalised = vae.normalise(z)
    assert type(normalised) is type(make(np.zeros(1)))
    assert normalised.dtype == np.float32 and normalised.shape == z.shape
    expected = (np.asarray(z, np.float64) - MEAN) / STD
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(vae.denormalise(normalised), np.asarray(z, np.float32), atol=1e-5)
    np.testing.assert_array_equal(vae.config.scale.normalise(z), normalised)


def test_a_model_that_was_not_measured_uses_its_one_factor():
    vae, z = small_model(), posteriors(10)[0]
    assert not vae.config.scale.measured
    np.testing.assert_allclose(vae.normalise(z), z * 0.18215, rtol=1e-6)
    np.testing.assert_allclose(vae.denormalise(vae.normalise(z)), z, rtol=1e-6)


def test_a_compiled_function_uses_the_scale_of_the_model_that_it_is_given():
    z = jnp.ones((2, 4))
    normalise = jax.jit(lambda vae, z: vae.normalise(z))
    for vae in (calibrated(), calibrated(latents_mean=(1.0, 1.0, 1.0, 1.0))):
        np.testing.assert_allclose(normalise(vae, z), vae.normalise(z), rtol=1e-6)


def test_a_channel_that_never_changes_is_named():
    statistics, (mean, logvar) = Statistics(), posteriors(50)
    mean[:, 2], logvar[:, 2] = 0.5, -30.0
    statistics.add(mean, logvar)
    with pytest.raises(ValueError, match=r"never change: 2 \(always 0\.5\)"):
        Scale.of(statistics)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda s: s, "no latents were measured"),
        (lambda s: s.add(np.full((3, 4), np.nan, np.float32), np.zeros((3, 4), np.float32)), "fin"),
    ],
    ids=["nothing", "not finite"],
)
def test_latents_without_a_scale_are_refused(spoil, words):
    statistics = Statistics()
    spoil(statistics)
    with pytest.raises(ValueError, match=words):
        Scale.of(statistics)


def test_a_scale_survives_json():
    for scale in (Scale(MEAN, STD, 0.7), Scale(None, None, 0.5)):
        assert Scale.from_dict(json.loads(json.dumps(scale.to_dict()))) == scale


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mean": [0.0, 1.0, 2.0]}, "mean has 3 values and std has 4"),
        ({"std": None}, "together or not at all"),
        ({"std": [1.0, 1.0, 0.0, 1.0]}, "greater than 0 in float32 .channel 2: 0.0"),
        ({"mean": [0.0, 1.0, float("nan"), 0.0]}, "mean=.* finite"),
        ({"mean": [0.0, True, 1.0, 0.0]}, "mean=.* finite"),
        ({"mean": "1234"}, "mean='1234'"),
        ({"mean": [0.0, 1.0, 10**400, 0.0]}, "mean=.* finite"),
        ({"std": [1.0, 1.0, 1e-60, 1.0]}, "greater than 0 in float32 .channel 2"),
        ({"factor": 0}, "factor=0"),
        ({"factor": None}, "factor=None"),
        ({"fctor": 1}, "fctor.* not known"),
    ],
)
def test_an_impossible_scale_is_refused_by_its_field(changes, words):
    with pytest.raises(ValueError, match=words):
        Scale.from_dict(Scale(MEAN, STD, 0.7).to_dict() | changes)
    with pytest.raises(ValueError, match="factor.* missing"):
        Scale.from_dict({"mean": None, "std": None})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "fields, words",
    [
        ({"latents_mean": MEAN}, "latents_std.* together"),
        ({"latents_mean": MEAN, "latents_std": (1.0, -1.0, 1.0, 1.0)}, "channel 1"),
        ({"latents_mean": (0.0,) * 3, "latents_std": (1.0,) * 3}, "3 values; .*channels=4"),
    ],
)
def test_a_config_refuses_an_impossible_scale(fields, words):
    with pytest.raises(ValueError, match=words):
        ODVAEConfig.from_dict(fields)


def test_latents_with_other_channels_are_refused():
    for vae in (calibrated(), small_model()):
        for way in (vae.normalise, vae.denormalise):
            with pytest.raises(ValueError, match=r"\[\.\.\., 4\]"):
                way(np.zeros((2, 3), np.float32))
