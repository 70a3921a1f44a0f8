"""What Flax's users do with a module works with a model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.parameters import named_parameters
from tests.conftest import SMALL, random_video
from tests.two_levels import TWO_LEVELS

CONFIG = ODVAEConfig(structure=TWO_LEVELS, **SMALL)


def test_its_shapes_can_be_had_without_its_values():
    abstract = nnx.eval_shape(lambda: ODVAE(CONFIG, rngs=nnx.Rngs(0)))
    expected = {n: (p.shape, p.dtype) for n, p in named_parameters(ODVAE(CONFIG)).items()}
    assert {n: (p.shape, p.dtype) for n, p in named_parameters(abstract).items()} == expected


def test_it_can_be_made_inside_jit_with_the_same_distribution():
    vae = nnx.jit(lambda: ODVAE(CONFIG, rngs=nnx.Rngs(0)))()
    numpy = named_parameters(ODVAE(CONFIG, rngs=nnx.Rngs(0)))
    values = []
    for name, value in named_parameters(vae).items():
        if not name.endswith("kernel"):
            np.testing.assert_array_equal(value, numpy[name])
            continue
        fan_in = np.prod(value.shape[:-1])
        values.append(np.ravel(value) * np.sqrt(fan_in))
        assert (value != numpy[name]).any()
    values = np.concatenate(values)
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    assert abs(np.mean(np.abs(values) < 1) - 0.6827) < 0.01


def test_it_splits_merges_and_shows_itself(capsys):
    vae = ODVAE(CONFIG)
    graph, parameters, rest = nnx.split(vae, nnx.Param, ...)
    again = nnx.merge(graph, parameters, rest)
    video = random_video(1, 16, 16)
    np.testing.assert_array_equal(again.encode(video).mean, vae.encode(video).mean)
    assert len(jax.tree.leaves(nnx.state(vae, nnx.Param))) == len(named_parameters(vae))
    nnx.display(vae)
    assert "ODVAE" in capsys.readouterr().out


def test_an_optimizer_step_lowers_the_loss():
    vae, video = ODVAE(CONFIG), jnp.asarray(random_video(1, 16, 16))
    optimizer = nnx.Optimizer(vae, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(vae, optimizer):
        def loss(vae):
            return jnp.mean((vae.reconstruct(video) - video) ** 2)

        value, gradients = nnx.value_and_grad(loss)(vae)
        optimizer.update(vae, gradients)
        return value

    losses = [float(step(vae, optimizer)) for _ in range(4)]
    assert losses[-1] < losses[0]
