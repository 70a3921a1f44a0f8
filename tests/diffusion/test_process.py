"""The Gaussian process, against the released implementation's numbers, and rectified flow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odvae_jax.checkpoints import latte
from odvae_jax.diffusion import GaussianProcess, RectifiedFlow
from odvae_jax.diffusion.process import GaussianSampler, Schedule, spaced, strided
from odvae_jax.parameters import named_parameters
from tests.diffusion.released import ABOUT, golden, released_model

PROCESS = GaussianProcess()


def test_the_schedule_is_the_released_implementation_s():
    found, expected = Schedule(np.linspace(1e-4, 0.02, 1000)), ABOUT["schedule"]
    names = {
        "betas": found.betas,
        "alphas_cumprod": found.kept,
        "posterior_variance": found.posterior_variance,
        "posterior_log_variance_clipped": found.posterior_log_variance,
        "posterior_mean_coef1": found.from_data,
        "posterior_mean_coef2": found.from_noisy,
    }
    for name, values in names.items():
        np.testing.assert_allclose(values[expected["t"]], expected[name], rtol=1e-12, atol=1e-15)


def test_respaced_steps_are_the_released_implementation_s():
    assert list(spaced(250)) == ABOUT["timesteps_250"]
    assert list(spaced(50)) == ABOUT["timesteps_50"]
    assert list(spaced(10)) == ABOUT["loop_timesteps"]
    assert list(strided(50)) == ABOUT["timesteps_ddim50"]
    assert spaced(1000) == tuple(range(1000)) and spaced(1) == (0,)
    with pytest.raises(ValueError, match="steps=300: no whole stride"):
        PROCESS.sampler("ddim-strided", 300)


def terms_of():
    """Data, noise, times, and an output of a network."""
    return [jnp.asarray(golden(f"diff_{n}")) for n in ("x0", "noise", "t", "model_output")]


def test_loss_terms_are_the_released_implementation_s():
    x, noise, t, output = terms_of()
    noisy = PROCESS.noised(x, noise, t)
    np.testing.assert_allclose(noisy, golden("diff_x_t"), atol=1e-6)
    terms = jax.jit(PROCESS.terms)(output, x, noise, t)
    assert t.tolist()[0] == 0  # whose bound is a difference of two numbers near 1, in float32
    for name in ("mse", "vb", "loss"):
        found, expected = terms[name], golden(f"diff_{name}")
        np.testing.assert_allclose(found[1:], expected[1:], rtol=4e-5, err_msg=name)
        np.testing.assert_allclose(found[:1], expected[:1], rtol=2e-3, err_msg=name)


@pytest.mark.parametrize("name", ["250", "50", "ddim50"])
def test_single_steps_are_the_released_implementation_s(name):
    original = strided(50) if name == "ddim50" else spaced(int(name))
    z, noise, output = (golden(n) for n in ("step_x_t", "step_noise", "diff_model_output"))
    z, noise, output = map(jnp.asarray, (z, noise, output))
    indices = golden(f"step_{name}_index")
    assert [original[i] for i in indices] == golden(f"step_{name}_model_t").tolist()
    schedule = GaussianSampler(original).schedule
    mean, log_variance = schedule.step_back(z, output, jnp.asarray(indices))
    data = schedule.predicted_data(z, output[..., :4], jnp.asarray(indices))

    def close(found, expected):
        expected = golden(f"step_{name}_{expected}")
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=4e-6 * max(1, np.abs(b).max()))

    close(mean, "mean")
    close(log_variance, "log_variance")
    close(data, "pred_x0")
    samplers = {
        "sample": GaussianSampler(original),
        "ddim": GaussianSampler(original, implicit=True),
        "ddim_eta03": GaussianSampler(original, implicit=True, eta=0.3),
    }
    for expected, sampler in samplers.items():
        found, asked = [], []
        for b, index in enumerate(indices):

            def denoise(z, time, b=b, asked=asked):
                asked.append(int(time))
                return output[b : b + 1]

            i = jnp.asarray(len(original) - 1 - index)
            of_step = noise[b : b + 1] if sampler.stochastic else None
            found.append(sampler.step(denoise, z[b : b + 1], i, of_step)[0])
        close(found, expected)
        assert asked == golden(f"step_{name}_model_t").tolist()


def mean_loss(model):
    x, t, y, noise = (golden(n) for n in ("cond_x", "train_t", "cond_y", "train_noise"))
    x, t, y, noise = map(jnp.asarray, (x, t, y, noise))
    terms = PROCESS.terms(model(PROCESS.noised(x, noise, t), t, y), x, noise, t)
    return jnp.mean(terms["loss"]), terms


def test_gradients_and_the_optimizer_s_step_are_the_released_implementation_s():
    model = released_model("cond")
    evaluate = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    chain = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-4, weight_decay=0))
    (loss, terms), gradient = evaluate(model)
    updates, _ = jax.jit(lambda g, m: chain.update(g, chain.init(m), m))(gradient, model)
    stepped = optax.apply_updates(model, updates)
    (loss_after, terms_after), gradient_after = evaluate(stepped)
    for found, expected in (
        ((loss, terms, gradient), ABOUT["train"][0]),
        ((loss_after, terms_after, gradient_after), ABOUT["train"][1]),
    ):
        assert found[0] == pytest.approx(expected["loss"], rel=1e-5)
        for name in ("mse", "vb"):
            assert jnp.mean(found[1][name]) == pytest.approx(expected[name], rel=2e-5)
        assert optax.global_norm(found[2]) == pytest.approx(expected["grad_norm"], rel=1e-5)
    norms = {
        latte.released_name(n): float(jnp.linalg.norm(g))
        for n, g in named_parameters(gradient).items()
    }
    assert norms == pytest.approx(ABOUT["train_grad_norms"], rel=2e-5)
    gradients, after = named_parameters(gradient), named_parameters(stepped)
    for found, name in (
        (gradients["last.linear.kernel"].T, "grad_final_linear_weight"),
        (gradients["blocks.1.attention.qkv.bias"], "grad_blocks1_qkv_bias"),
    ):
        expected = golden(f"train_{name}")
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    for ours, theirs in (
        ("blocks.0.mlp.linear_2.bias", "blocks0_fc2_bias"),
        ("last.linear.bias", "final_linear_bias"),
    ):
        # The step divides each gradient by its own size: tiny ones lose digits.
        np.testing.assert_allclose(after[ours], golden(f"train_after_{theirs}"), atol=2e-6, rtol=0)


def test_the_bound_trains_the_variance_alone():
    x, noise, t, output = terms_of()

    @jax.jit
    def gradients(output):
        terms = lambda o: {n: jnp.sum(v) for n, v in PROCESS.terms(o, x, noise, t).items()}  # noqa: E731
        return jax.jacrev(terms)(output)

    vb, mse = (gradients(output)[name] for name in ("vb", "mse"))
    assert not np.any(vb[..., :4]) and np.any(vb[..., 4:])
    assert np.any(mse[..., :4]) and not np.any(mse[..., 4:])


def test_gradients_are_finite_however_wrong_the_prediction_is():
    x, noise, _, output = terms_of()
    t = jnp.array([0, 1, 500, 999])
    output = (1e6 * output).at[..., 4:].set(0)
    loss = lambda output: jnp.sum(PROCESS.terms(output, x, noise, t)["loss"])  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(output)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("process", [PROCESS, RectifiedFlow()], ids=["gaussian", "flow"])
def test_losses_are_computed_of_clips_at_times_that_the_key_draws(process):
    x = jax.random.normal(jax.random.key(1), (512, 1, 2, 2, 3))
    seen = {}

    def network(z, t):
        seen.update(z=z, t=np.asarray(t, np.float64))
        return jnp.zeros((*z.shape[:-1], 3 if process == RectifiedFlow() else 6))

    losses = process.loss(network, x, jax.random.key(0))["loss"]
    assert losses.shape == (512,) and np.isfinite(losses).all()
    t = seen["t"]
    if process == PROCESS:  # uniform over 0 to 999; with a prediction of 0, mean squares of noise
        assert t.min() >= 0 and 990 < t.max() <= 999 and np.mean(t) == pytest.approx(500, abs=40)
        return
    # The logits of s are standard normal, and z lies on the line: x is had back where s is 1.
    s = 1 - t / 1000
    logits = np.log(s / (1 - s))
    assert np.mean(logits) == pytest.approx(0, abs=0.15)
    assert np.std(logits) == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(process.noised(x, 0 * x, jnp.ones(512)), x)
    assert np.mean(losses) == pytest.approx(2, rel=0.1)  # the variance of x - noise


def test_the_best_velocity_of_known_data_has_no_loss():
    """For one point of data the velocity is (x - z) / (1 - s), exactly."""
    point = jax.random.normal(jax.random.key(1), (1, 1, 2, 2, 3))

    def network(z, t):
        return (point - z) / (t / 1000).reshape(-1, 1, 1, 1, 1)

    x = jnp.repeat(point, 64, axis=0)
    losses = RectifiedFlow().loss(network, x, jax.random.key(0))["loss"]
    np.testing.assert_allclose(losses, 0, atol=1e-6)


def test_a_network_with_the_other_process_s_outputs_is_refused():
    x = jnp.zeros((2, 1, 2, 2, 3))
    with pytest.raises(ValueError, match=r"gives 3 channels for latents with 3.*'?gaussian"):
        PROCESS.loss(lambda z, t: z, x, jax.random.key(0))
    with pytest.raises(ValueError, match=r"gives 6 channels for latents with 3.*'?flow"):
        RectifiedFlow().loss(lambda z, t: jnp.concatenate([z, z], axis=-1), x, jax.random.key(0))


@pytest.mark.usefixtures("unchecked_types")
def test_samplers_that_there_are_not_are_refused():
    for process, name, steps, words in (
        (PROCESS, "euler", 10, r"'euler' is not known here; there are \['ddpm', 'ddim', 'ddim-s"),
        (PROCESS, "ddpm", 1001, "steps=1001: expected a positive whole number, at most 1000"),
        (PROCESS, "ddpm", 0, "steps=0"),
        (RectifiedFlow(), "ddim", 10, r"'ddim' is not known here; there are \['euler', 'heun'\]"),
        (RectifiedFlow(), "heun", 2.5, "steps=2.5"),
    ):
        with pytest.raises(ValueError, match=words):
            process.sampler(name, steps)
    for fields, words in (
        ({"original": (0, 0)}, "expected rising numbers"),
        ({"original": (0, 1000)}, "0 to 999"),
        ({"original": (0, 1), "eta": -1.0}, "eta=-1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            GaussianSampler(**fields)
