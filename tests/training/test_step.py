"""One training step: what it computes, what it costs, what it leaves alone."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.flops import count_flops
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.parameters import abstract_model, named_parameters, with_parameters
from odvae_jax.pixels import to_unit_range
from odvae_jax.sharding import make_mesh
from odvae_jax.training import losses
from odvae_jax.training.config import default_config
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.state import (
    LOGVAR,
    create_state,
    ema_step,
    make_optimizers,
    model_parameters,
)
from odvae_jax.training.step import _samples, update_of_step
from tests.training.steps import make_train_step
from tests.two_levels import TWO_LEVELS

CLIPS = np.random.default_rng(0).integers(0, 256, (4, 1, 16, 16, 3), dtype=np.uint8)


def small(**fields):
    """Two levels on single frames: the smallest program that holds every part of a step."""
    config = default_config()
    model = ODVAEConfig(structure=TWO_LEVELS, width=8, groups=4, precision="highest")
    config.model = model.to_dict()
    values = {"discriminator.start": 0, "loss.perceptual_weight": 0.0, "batch_size": 4, **fields}
    values.setdefault("optimizer.learning_rate", 1e-3)
    config.update_from_flattened_dict(values)
    return config


def parts(config, seed=0):
    """Structure, discriminator, optimizers and first state of a run."""
    model = ODVAEConfig.from_dict(config.model.to_dict())
    optimizers = make_optimizers(config)
    adversary = None
    if config.discriminator.weight:
        adversary = Discriminator(8, seed=seed, precision="highest")
    state = create_state(ODVAE(model, rngs=seed), adversary, optimizers, config)
    return abstract_model(model), adversary, optimizers, state


def step_and_state(config, update="both"):
    vae, adversary, optimizers, state = parts(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    return make_train_step(config, vae, adversary, optimizers, mesh, update), state


@functools.cache
def compiled():
    """The step with everything on, and its first state."""
    config = small(**{"loss.train_logvar": True, "loss.logvar": 0.3, "loss.perceptual_weight": 1.0})
    step, state = step_and_state(config)
    return jax.jit(step), state, config


@functools.cache
def one_step():
    step, state, _ = compiled()
    return step(state, CLIPS, load_lpips("vgg"))


def test_gradient_is_that_of_the_whole_loss_written_out():
    _, state, config = compiled()
    lpips = load_lpips("vgg")
    _, metrics = one_step()
    vae, adversary, _, _ = parts(config)
    video = to_unit_range(jnp.asarray(CLIPS))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    keys = jax.random.split(key, len(CLIPS))

    @jax.jit
    def gradient_norm(parameters, adaptive):
        def loss(parameters):
            model = with_parameters(vae, model_parameters(parameters))
            posterior = model.encode(video)
            reconstruction = model.decode(_samples(posterior, keys))
            nll, _ = losses.reconstruction_loss(
                reconstruction, video, parameters[LOGVAR], perceptual=lpips
            )
            logits = with_parameters(adversary, state.discriminator)(reconstruction)
            kl = config.loss.kl_weight * losses.kl_loss(posterior)
            return nll + kl + adaptive * losses.generator_loss(logits)

        value, gradient = jax.value_and_grad(loss)(parameters)
        return value, jnp.sqrt(sum(jnp.sum(g**2) for g in gradient.values()))

    loss, norm = gradient_norm(state.parameters, metrics["adaptive_weight"])
    assert metrics["adaptive_weight"] > 0
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm_generator"], norm, rtol=1e-4)


def test_a_step_runs_under_the_strict_modes_of_jax():
    step, state, config = compiled()
    one_step()  # is compiled by now
    clips, lpips = jax.device_put(CLIPS), load_lpips("vgg")
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(step(state, clips, lpips))
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(step_and_state(config)[0], state, clips, lpips)


def test_every_part_of_the_state_moves_and_the_average_follows():
    _, state, config = compiled()
    after, _ = one_step()
    for part in ("parameters", "discriminator"):
        before, now = getattr(state, part), getattr(after, part)
        still = [name for name in before if (before[name] == now[name]).all()]
        # The last bias lifts real and reconstructed logits alike, and the hinges balance.
        assert still in ([], ["layers.4.bias"])
    for name, value in after.parameters.items():
        expected = config.ema_decay * state.ema[name] + (1 - config.ema_decay) * value
        np.testing.assert_allclose(after.ema[name], expected, atol=1e-6)
    assert int(after.step) == 1 and int(after.skipped) == 0


def test_a_short_run_with_a_warm_average_keeps_nothing_of_its_beginning():
    """The averages that the same weights have by the rule, and without a warm-up."""
    config = small(ema_warmup=True, ema_decay=0.97)
    values = np.random.default_rng(0).normal(size=300)  # the weights after each step

    def average(begin):
        now = begin
        for n, value in enumerate(values):
            now = (1 - (weight := float(ema_step(config, jnp.asarray(n))))) * now + weight * value
        return now, weight

    ends, weights = zip(*map(average, (0.0, 1000.0)), strict=True)
    np.testing.assert_allclose(*ends, atol=1e-6)
    assert abs(ends[0]) < 0.5
    np.testing.assert_allclose(weights, 0.03, rtol=1e-5)  # by then it is the run's own decay
    config.ema_warmup = False
    assert average(1000.0)[0] - average(0.0)[0] > 0.1


def test_the_average_is_warmed_up_by_the_step_that_the_state_counts():
    step, state = decoder_only()
    for n, decay in ((0, 1 / 10), (3, 4 / 13), (100_000, 0.999)):
        before = state._replace(step=jnp.asarray(n, jnp.int32))
        after, _ = step(before, CLIPS, None)
        for name, value in after.parameters.items():
            if name.startswith("decoder."):
                assert (value != state.parameters[name]).any(), name
            expected = decay * state.ema[name] + (1 - decay) * value
            np.testing.assert_allclose(after.ema[name], expected, rtol=1e-5, atol=1e-6)


def test_a_step_without_finite_loss_changes_nothing_and_is_counted():
    step, state, _ = compiled()
    poisoned = dict(state.parameters)
    kernel = poisoned["decoder.conv_in.kernel"]
    poisoned["decoder.conv_in.kernel"] = kernel.at[0, 0, 0, 0, 0].set(jnp.nan)
    before = state._replace(parameters=poisoned)
    after, metrics = step(before, CLIPS, load_lpips("vgg"))
    assert not np.isfinite(metrics["loss"])
    assert [int(x) for x in (after.step, after.skipped, after.skipped_in_a_row)] == [1, 1, 1]
    counters = dict(step=0, skipped=0, skipped_in_a_row=0)
    chex.assert_trees_all_equal(after._replace(**counters), before._replace(**counters))
    healed, _ = step(after._replace(parameters=state.parameters), CLIPS, load_lpips("vgg"))
    assert [int(x) for x in (healed.skipped, healed.skipped_in_a_row)] == [1, 0]


def test_alternate_turns_each_update_one_network():
    config = small(**{"discriminator.turns": "alternate", "discriminator.start": 3})
    turns = [update_of_step(config, step) for step in range(7)]
    generator, discriminator = "generator", "discriminator"
    assert turns == [*[generator] * 3, discriminator, generator, discriminator, generator]
    assert update_of_step(small(), 1) == "both"
    assert update_of_step(small(**{"discriminator.weight": 0.0}), 1) == "generator"
    step, state = step_and_state(config, "discriminator")
    late = state._replace(step=jnp.asarray(3, jnp.int32))
    after, metrics = jax.jit(step)(late, CLIPS, None)
    for name in ("parameters", "ema", "optimizer"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(state, name))
    assert any((after.discriminator[n] != v).any() for n, v in state.discriminator.items())
    assert metrics["discriminator"] > 0 and "nll" not in metrics
    early, _ = jax.jit(step)(state, CLIPS, None)  # before its start it is left alone
    chex.assert_trees_all_equal(early.discriminator, state.discriminator)
    chex.assert_trees_all_equal(early.discriminator_optimizer, state.discriminator_optimizer)


@pytest.mark.full
def test_accumulation_gives_the_whole_batch_s_gradient():
    norms = []
    for count in (1, 2):
        step, state = step_and_state(small(**{"discriminator.weight": 0.0, "accumulate": count}))
        _, metrics = jax.jit(step)(state, CLIPS, None)
        norms.append([float(metrics[n]) for n in ("loss", "gradient_norm_generator", "kl")])
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


@functools.cache
def decoder_only():
    """The step with a frozen encoder, no discriminator and a warm average, and its first state."""
    config = small(**{"discriminator.weight": 0.0, "freeze": "encoder", "ema_warmup": True})
    step, state = step_and_state(config)
    return jax.jit(step), state


def test_a_frozen_encoder_stays_and_costs_no_optimizer_state():
    step, state = decoder_only()
    after, _ = step(state, CLIPS, None)
    for name, value in state.parameters.items():
        same = bool((after.parameters[name] == value).all())
        assert same == (name.startswith(("encoder.", "quant_conv.")) or name == LOGVAR), name
        assert same == bool((after.ema[name] == value).all()), name
    sizes = [sum(a.size for a in jax.tree.leaves(t)) for t in (state.optimizer, state.parameters)]
    assert sizes[0] < 2 * sizes[1] * 0.7
    whole = step_and_state(small(**{"discriminator.weight": 0.0}))
    costs = [count_flops(f, s, CLIPS, None) for f, s in ((step, state), whole)]
    assert costs[0] < 0.85 * costs[1]


def full_width(**fields):
    """Shapes of a step of the paper's size; nothing is computed."""
    config = default_config()
    config.update_from_flattened_dict({"batch_size": 2, **fields})
    vae = abstract_model(ODVAEConfig.from_dict(config.model.to_dict()))
    adversary = Discriminator(seed=None, dtype="bfloat16") if config.discriminator.weight else None
    optimizers = make_optimizers(config)
    state = jax.eval_shape(lambda: create_state(vae_zeros(vae), adversary, optimizers, config))
    step = make_train_step(
        config, vae, adversary, optimizers, make_mesh(1, devices=jax.devices()[:1])
    )
    clips = jax.ShapeDtypeStruct((2, 25, 256, 256, 3), jnp.uint8)
    return step, state, clips


def vae_zeros(vae):
    return with_parameters(
        vae, {n: jnp.zeros(a.shape, a.dtype) for n, a in named_parameters(vae).items()}
    )


def test_the_losses_add_little_to_the_paper_s_step_and_the_adaptive_weight_next_to_nothing():
    lpips = load_lpips("vgg", dtype="bfloat16")
    whole = count_flops(*full_width(), lpips)
    alone = {"discriminator.weight": 0.0, "loss.perceptual_weight": 0.0}
    autoencoder = count_flops(*full_width(**alone), None)
    assert whole < 1.15 * autoencoder
    # What weighing the two gradients adds: each one's gradient of the last kernel.
    kernel_gradients = 2 * (2 * 27 * 128 * 3 * 2 * 25 * 256 * 256)
    assert kernel_gradients < 0.03 * whole
    # And nothing else is run twice: forward, backward for inputs, backward for kernels.
    vae = ODVAEConfig.variant(4, dtype="bfloat16", remat="convolutions")
    video = jax.ShapeDtypeStruct((2, 25, 256, 256, 3), jnp.float32)
    forward = count_flops(
        lambda vae, video: vae.decode(vae.encode(video).mode()), abstract_model(vae), video
    )
    assert autoencoder < 3.1 * forward  # 27 of 25 frames in the gradient of a TPU's convolution


@pytest.mark.full
def test_keeping_first_convolutions_runs_no_convolution_twice():
    def forward(vae, video):
        return jnp.sum(vae.decode(vae.encode(video).mode()) ** 2)

    def backward(remat):
        vae = abstract_model(ODVAEConfig.variant(4, width=16, groups=4, remat=remat))
        return count_flops(jax.grad(forward), vae, video) / count_flops(forward, vae, video)

    video = jax.ShapeDtypeStruct((1, 5, 32, 32, 3), jnp.float32)
    assert math.isclose(backward("convolutions"), backward("none"), rel_tol=2e-3)
    assert backward("blocks") > backward("none") + 0.3
