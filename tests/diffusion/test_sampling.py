"""Sampling: against the released implementation's loops, and against closed forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import make_mesh
from odvae_jax.diffusion import Latte, process_of, sample, sampling
from odvae_jax.diffusion.flow import FlowSampler
from odvae_jax.diffusion.process import GaussianSampler, spaced
from odvae_jax.diffusion.sampling import PROCESSES, guided, integrate
from tests.conftest import full
from tests.diffusion.released import ABOUT, golden, released_model
from tests.diffusion.test_denoiser import small

SCALE = ABOUT["cfg_scale"]


def test_guidance_is_the_released_implementation_s():
    model = released_model("cond")
    x, t, y = (jnp.asarray(golden(n)) for n in ("cond_x", "cfg_t", "cfg_y"))
    sampler = GaussianSampler(spaced(1000))
    run = jax.jit(lambda model, x, t, y: guided(model, sampler, y, SCALE)(x, t))
    for i in range(2):  # the labelled half; a sampler's time is the same for all clips
        found = run(model, x[i : i + 1], t[i], y[i : i + 1])
        expected = golden("cfg_out")[i : i + 1]
        # Guidance takes the difference seven times.
        np.testing.assert_allclose(found, expected, atol=7 * 4e-5, rtol=0)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_whole_loops_are_the_released_implementation_s(name, monkeypatch):
    model, noise = released_model("cond"), jnp.asarray(golden("loop_noise")[:, 0])
    monkeypatch.setattr(sampling, "_noise", lambda keys, i, shape: noise[i][None])
    sampler = process_of(model.config).sampler(name, 10)
    assert sampler.original == tuple(ABOUT["loop_timesteps"])

    @jax.jit
    def run(model, z):
        labels = jnp.array([ABOUT["loop_y"]])
        denoise = guided(model, sampler, labels, SCALE)
        return integrate(denoise, sampler, z, jax.random.split(jax.random.key(0), 1))

    found, expected = run(model, jnp.asarray(golden("loop_z"))), golden(f"loop_{name}")[0]
    np.testing.assert_allclose(found[0], expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


MEAN, STD = 1.5, 0.6


def velocity(z, s):
    """The velocity that carries N(0, 1) to N(MEAN, STD²): the mean of x - noise, given z at s."""
    variance = (1 - s) ** 2 + (s * STD) ** 2
    return MEAN + (s * STD**2 - (1 - s)) / variance * (z - s * MEAN)


def flow(z, sampler):
    return jax.jit(lambda z: integrate(velocity, sampler, z))(z)


@pytest.mark.parametrize("sampler", [FlowSampler(500), FlowSampler(50, second_order=True)])
def test_the_closed_form_velocity_of_gaussian_data_gives_its_mean_and_variance(sampler):
    z = flow(jax.random.normal(jax.random.key(0), (4, 100_000)), sampler)
    assert np.mean(z) == pytest.approx(MEAN, rel=0.01)
    assert np.var(z) == pytest.approx(STD**2, rel=0.01)


@pytest.mark.full
def test_the_closed_form_noise_of_gaussian_data_gives_its_mean_and_variance():
    """The Gaussian process, with all 1,000 steps, and with the variance at its lower bound."""
    sampler = GaussianSampler(spaced(1000))
    kept = jnp.asarray(sampler.schedule.kept, jnp.float32)

    def denoise(z, t):
        variance = kept[t] * STD**2 + 1 - kept[t]
        noise = jnp.sqrt(1 - kept[t]) * (z - jnp.sqrt(kept[t]) * MEAN) / variance
        return jnp.concatenate([noise, -jnp.ones_like(noise)], axis=-1)

    @jax.jit
    def run(z):
        return integrate(denoise, sampler, z, jax.random.split(jax.random.key(1), 16))

    z = run(jax.random.normal(jax.random.key(0), (16, 2_000)))
    assert np.mean(z) == pytest.approx(MEAN, rel=0.01)
    assert np.var(z) == pytest.approx(STD**2, rel=0.02)


@pytest.mark.parametrize(("second_order", "factor"), [(False, 2), (True, 4)])
def test_halving_the_step_divides_the_error_by(second_order, factor):
    z = np.linspace(-3, 3, 25, dtype=np.float32)[None]
    exact = MEAN + STD * z  # a quantile stays the quantile that it is
    errors = [
        np.abs(flow(jnp.asarray(z), FlowSampler(n, second_order)) - exact).max()
        for n in (16, 32, 64)
    ]
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios, factor, rtol=0.2)


def test_the_network_is_given_its_own_time_and_the_last_step_of_heun_is_euler_s():
    asked = []

    def denoise(z, s):
        jax.debug.callback(lambda s: asked.append(float(s)), s, ordered=True)
        return jnp.zeros_like(z)

    jax.block_until_ready(integrate(denoise, FlowSampler(4, second_order=True), jnp.zeros((1, 2))))
    jax.effects_barrier()
    assert asked == pytest.approx([0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75])
    assert FlowSampler(4).network_time(jnp.float32(0.25)) == pytest.approx(750)


def model_of(process):
    return small(process=process, rows=4, columns=4)


@pytest.mark.parametrize(
    ("process", "name"),
    [("gaussian", "ddpm"), pytest.param("flow", "heun", marks=pytest.mark.full)],
)
def test_a_sample_is_the_same_alone_in_a_batch_and_on_eight_devices(process, name):
    model = model_of(process)
    sampler = process_of(model.config).sampler(name, 5)
    numbers, labels = np.arange(100, 116), np.arange(16) % 4  # 3 is no label

    def run(chosen, **arguments):
        return np.asarray(
            sample(
                model,
                sampler,
                numbers[chosen],
                key=jax.random.key(3),
                labels=labels[chosen],
                guidance=2.0,
                **arguments,
            )
        )

    batch = run(slice(None))
    assert batch.shape == (16, *model.config.latent_shape) and batch.dtype == np.float32
    tolerance = 1e-5 * np.abs(batch).max()
    np.testing.assert_allclose(run([5]), batch[[5]], atol=tolerance, rtol=0)
    np.testing.assert_allclose(run([9, 2]), batch[[9, 2]], atol=tolerance, rtol=0)
    spread = run(slice(None), mesh=make_mesh(data=4, fsdp=2))
    np.testing.assert_allclose(spread, batch, atol=tolerance, rtol=0)
    assert len({sample.tobytes() for sample in batch}) == 16


def test_samples_are_spread_over_the_mesh():
    model = model_of("flow")
    mesh = make_mesh()
    z = sample(
        model,
        process_of(model.config).sampler("euler", 1),
        np.arange(8),
        key=jax.random.key(0),
        labels=np.zeros(8, int),
        mesh=mesh,
    )
    assert {shard.data.shape[0] for shard in z.addressable_shards} == {1}
    assert len(z.sharding.device_set) == 8


@pytest.mark.parametrize(
    ("process", "name"), [("flow", "euler"), ("gaussian", "ddpm"), ("gaussian", "ddim-strided")]
)
def test_a_sampler_s_times_are_those_at_which_it_calls_the_network(process, name):
    sampler = PROCESSES[process].sampler(name, 4)
    called = []

    def denoise(z, time):
        called.append(float(time))
        return jnp.zeros((*z.shape[:-1], z.shape[-1] * (2 if process == "gaussian" else 1)))

    z = jnp.ones((1, 1, 1, 1, 2))
    for i in range(4):
        sampler.step(denoise, z, jnp.asarray(i), z)
    np.testing.assert_allclose(called, sampler.times)
    assert sampler.span[0] <= min(called) and max(called) <= sampler.span[1]


@pytest.mark.parametrize("process", ["flow", *full("gaussian")])
def test_guidance_is_applied_within_its_interval_alone(process):
    model = model_of(process)
    first = process_of(model.config).samplers[0]
    sampler = process_of(model.config).sampler(first, 4)
    # In its own time a sampler starts at noise: 999, or 0.
    late, early = ((0, 500), (501, 999)) if process == "gaussian" else ((0.6, 1.0), (0.0, 0.5))

    def run(guidance, interval=None, labels=(1,)):
        return sample(
            model,
            sampler,
            np.array([7]),
            key=jax.random.key(0),
            labels=np.array(labels),
            guidance=guidance,
            interval=interval,
        )

    whole = (0, 999) if process == "gaussian" else (0.0, 1.0)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    assert_close(run(3.0, whole), run(3.0))
    nowhere = (2000, 3000)
    assert_close(run(3.0, nowhere), run(1.0))
    results = [run(3.0, early), run(3.0, late), run(3.0), run(1.0)]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert np.abs(a - b).max() > 1e-4 * np.abs(a).max()
    # Guidance 0 is the prediction without a label, though its variance is the labelled one's.
    if process == "flow":
        assert_close(run(0.0), run(1.0, labels=(3,)))


def test_it_is_a_pure_function_that_is_compiled_once():
    model = model_of("flow")
    sampler = process_of(model.config).sampler("euler", 3)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(model, numbers, labels, key):
        return sample(model, sampler, numbers, key=key, labels=labels, guidance=2.0)

    key = jax.random.key(0)
    a = run(model, jnp.array([1, 2]), jnp.array([0, 1]), key)
    b = run(model, jnp.array([3, 4]), jnp.array([2, 1]), key)
    assert np.abs(a - b).max() > 1e-3
    outside = sample(
        model, sampler, np.array([1, 2]), key=key, labels=np.array([0, 1]), guidance=2.0
    )
    np.testing.assert_allclose(a, outside, atol=1e-5)


def test_a_network_with_labels_can_be_sampled_without_guidance_and_one_without_labels_too():
    with_labels, without = model_of("flow"), small(process="flow", classes=None)
    sampler = process_of(without.config).sampler("euler", 2)
    arguments = {"numbers": np.array([0]), "key": jax.random.key(0)}
    labelled = sample(with_labels, sampler, labels=np.array([1]), **arguments)
    unlabelled = sample(with_labels, sampler, labels=np.array([3]), **arguments)
    assert np.abs(labelled - unlabelled).max() > 1e-4
    assert np.isfinite(sample(without, sampler, **arguments)).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": np.array([1, 4])}, r"the classes \[4\] are not known.*0 to 2, and 3 means no"),
        ({"labels": np.array([-1, 0])}, r"the classes \[-1\] are not known"),
        ({"labels": None}, "labels are missing"),
        ({"labels": np.array([1])}, r"labels have the shape \(1,\).*\(2,\)"),
        ({"guidance": np.nan}, "guidance=nan"),
        ({"interval": (5, 1)}, r"interval=\(5, 1\).*first and the last"),
        ({"numbers": np.array([0.5, 1.0])}, "numbers are float"),
        ({"sampler": FlowSampler(3)}, r"of the process 'flow'.*'gaussian'.*'ddpm'"),
        ({"mesh": 8}, "2 samples do not divide over the mesh.*multiple of 8"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_sampled_is_refused(arguments, words):
    model = model_of("gaussian")
    if "mesh" in arguments:
        arguments = {"mesh": make_mesh()}
    usual = {
        "sampler": process_of(model.config).sampler("ddpm", 3),
        "numbers": np.array([1, 2]),
        "key": jax.random.key(0),
        "labels": np.array([0, 1]),
        "guidance": 2.0,
    }
    with pytest.raises(ValueError, match=words):
        sample(model, **usual | arguments)


def test_guidance_of_a_network_without_labels_is_refused():
    model = small(process="flow", classes=None)
    sampler = process_of(model.config).sampler("euler", 2)
    with pytest.raises(ValueError, match=r"guidance=2.0 needs labels"):
        sample(model, sampler, np.array([0]), key=jax.random.key(0), guidance=2.0)


def test_samples_that_are_not_finite_are_named():
    model = model_of("flow")
    model.conditioning.labels[...] = model.conditioning.labels[...].at[1].set(jnp.inf)
    sampler = process_of(model.config).sampler("euler", 2)
    with pytest.raises(ValueError, match="2 of 3 samples are not finite.* numbers 41, 43: "):
        sample(
            model,
            sampler,
            np.array([41, 42, 43]),
            key=jax.random.key(0),
            labels=np.array([1, 0, 1]),
        )


def test_a_class_that_there_is_not_gives_no_finite_sample_under_jit():
    model = model_of("flow")
    t, z = jnp.ones(2), jnp.zeros((2, *model.config.latent_shape))
    output = jax.jit(Latte.__call__)(model, z, t, jnp.array([0, 9]))
    assert np.isfinite(output[0]).all() and np.isnan(output[1]).all()
