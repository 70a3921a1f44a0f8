"""The loss against the released one's numbers, and what its gradient must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import DiagonalGaussian, ODVAEConfig
from odvae_jax.layers.causal_conv import CausalConv
from odvae_jax.parameters import named_parameters, with_parameters
from odvae_jax.training import losses
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.step import last_layer_gradients
from tests.fixtures.weights_recipe import weight
from tests.released import FIXTURES

CASES = np.load(FIXTURES / "official_losses.npz")
KL_WEIGHT, WEIGHT = 1e-6, 0.5


def channels_last(array):
    return jnp.asarray(np.moveaxis(array, 1, -1))


def to_kernel(array):
    return jnp.asarray(np.transpose(array, (2, 3, 4, 1, 0)))


def released_discriminator():
    """Parameters by recipe: the released module's list has convolutions, norms and activations."""
    parameters = named_parameters(Discriminator(seed=None))
    convolutions, norms = (0, 2, 5, 8, 11), (None, 3, 6, 9, None)
    for i, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        *_, c, d = parameters[f"layers.{i}.kernel"].shape
        name = f"discriminator.main.{convolution}"
        parameters[f"layers.{i}.kernel"] = to_kernel(weight(f"{name}.weight", (d, c, 3, 3, 3)))
        if norm is not None:
            name = f"discriminator.main.{norm}"
            parameters[f"layers.{i}.scale"] = jnp.asarray(weight(f"{name}.weight", (d,)))
        parameters[f"layers.{i}.bias"] = jnp.asarray(weight(f"{name}.bias", (d,)))
    return parameters


DISCRIMINATOR = Discriminator(seed=None, precision="highest")


def last_layer():
    config = ODVAEConfig.variant(4, width=8, groups=4, precision="highest")
    layer = CausalConv(8, 3, (3, 3), config=config, rng=None)
    name = "decoder.conv_out.conv"
    parameters = {
        "kernel": to_kernel(weight(f"{name}.weight", (3, 8, 3, 3, 3))),
        "bias": jnp.asarray(weight(f"{name}.bias", (3,))),
    }

    def apply(parameters, hidden):
        return with_parameters(layer, parameters)(hidden)

    return apply, parameters


@jax.jit
def gradients(hidden, video, weight=WEIGHT):
    apply, parameters = last_layer()
    return last_layer_gradients(
        apply,
        parameters,
        lambda p: p["kernel"],
        hidden,
        video,
        reconstruction_loss=losses.reconstruction_loss,
        logvar=jnp.zeros(()),
        discriminator=DISCRIMINATOR,
        discriminator_parameters=released_discriminator(),
        weight=weight,
    )


@pytest.mark.parametrize("case", ["a", "b"])
def test_every_term_is_the_released_one(case):
    got = {name.split("/")[1]: CASES[name] for name in CASES.files if name.startswith(case)}
    video, hidden = channels_last(got["video"]), channels_last(got["hidden"])
    result, metrics = gradients(hidden, video)
    posterior = DiagonalGaussian.from_moments(channels_last(got["moments"]))
    kl = losses.kl_loss(posterior)
    apply, parameters = last_layer()
    close = dict(rtol=1e-4, atol=0)
    np.testing.assert_allclose(
        apply(parameters, hidden), channels_last(got["reconstruction"]), atol=1e-5
    )
    np.testing.assert_allclose(kl, got["kl"], **close)
    for ours, theirs in (
        ("nll", "nll"),
        ("adaptive_weight", "adaptive_weight"),
        ("generator", "generator"),
        ("discriminator", "discriminator"),
        ("logits_real", "logits_real_mean"),
        ("logits_fake", "logits_fake_mean"),
    ):
        np.testing.assert_allclose(metrics[ours], got[theirs], **close, err_msg=ours)
    total = metrics["nll"] + KL_WEIGHT * kl + metrics["adaptive_weight"] * metrics["generator"]
    np.testing.assert_allclose(total, got["total"], **close)
    gradient = to_kernel(got["grad_of_total_wrt_last_kernel"])
    error = np.linalg.norm(result.last["kernel"] - gradient) / np.linalg.norm(gradient)
    assert error < 1e-4


def test_discriminator_s_logits_are_the_released_ones():
    discriminator = with_parameters(DISCRIMINATOR, released_discriminator())
    logits = discriminator(channels_last(CASES["a/video"]))
    expected = channels_last(CASES["a/discriminator_logits_of_video"])
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_means_per_value_are_the_same_for_larger_clips_of_the_same_content():
    rng = np.random.default_rng(0)
    video, reconstruction = rng.uniform(-1, 1, (2, 2, 3, 16, 8, 3)).astype(np.float32)
    mean, logvar = rng.normal(size=(2, 2, 3, 2, 1, 4)).astype(np.float32)

    def measured(*times):
        x, y, m, v = (jnp.tile(a, (*times, 1)) for a in (video, reconstruction, mean, logvar))
        nll, parts = losses.reconstruction_loss(y, x, 0.25)
        kl = losses.kl_loss(DiagonalGaussian(m, v))
        metrics = {"loss": nll + 1e-6 * kl, "nll": nll, "kl": kl, **parts}
        return metrics, losses.per_value(metrics, x.shape, m.shape)

    small, means = measured(1, 1, 1, 1)
    large, of_large = measured(1, 2, 3, 2)
    for name, ratio in (("reconstruction", 6), ("nll", 6), ("kl", 12)):
        np.testing.assert_allclose(large[name], ratio * small[name], rtol=1e-5)
        np.testing.assert_allclose(
            of_large[f"{name}_per_value"], means[f"{name}_per_value"], rtol=1e-5
        )
    error = np.abs(video - reconstruction).mean()
    np.testing.assert_allclose(means["reconstruction_per_value"], error, rtol=1e-5)
    np.testing.assert_allclose(means["nll_per_value"], error / np.exp(0.25) + 0.25, rtol=1e-5)
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean()
    np.testing.assert_allclose(means["kl_per_value"], kl, rtol=1e-5)
