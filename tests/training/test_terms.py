"""Terms of the loss that are functions of a user's own."""

import json
import re
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odvae_jax import ODVAE
from odvae_jax.parameters import with_parameters
from odvae_jax.pixels import to_unit_range
from odvae_jax.sharding import make_mesh
from odvae_jax.training import loop, losses
from odvae_jax.training.raw_weights import load_raw
from odvae_jax.training.state import LOGVAR, Optimizers, model_parameters
from odvae_jax.training.step import _samples, autoencoder_step
from odvae_jax.training.tasks.autoencoder import Autoencoder
from tests.training.test_loop import lines, tiny, videos  # noqa: F401
from tests.training.test_step import CLIPS, parts, small

OWN = '''
import jax
import jax.numpy as jnp

def smooth(video, reconstruction, posterior, key):
    """Large where neighbouring columns differ."""
    return jnp.mean((reconstruction[:, :, :, 1:] - reconstruction[:, :, :, :-1]) ** 2)

def quiet(video, reconstruction, posterior, key):
    """Large where noisy latents are."""
    noise = jax.random.normal(key, posterior.mean.shape)
    return jnp.mean((posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise) ** 4)

def uneven(video, reconstruction, posterior, key):
    return jnp.mean(reconstruction, (1, 2, 3, 4))

def narrow(video, reconstruction):
    return jnp.mean(video - reconstruction)

constant = 3.0
'''
TERMS = (("own_losses:smooth", 300.0), ("own_losses:quiet", 70.0))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module outside the repository."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)
    yield folder
    sys.modules.pop("own_losses", None)


def train(config, workdir):
    return loop.train(config, workdir, devices=jax.devices()[:1])


def with_terms(config, terms=TERMS):
    config.loss.terms = terms
    return config


def step_of(config):
    """The step, by plain gradient descent: its new parameters are the old minus the gradient."""
    vae, adversary, _, state = parts(config)
    none = optax.identity()
    optimizers = Optimizers(none, none, lambda step: 1.0)
    state = state._replace(optimizer=none.init({}), discriminator_optimizer=none.init({}))
    mesh = make_mesh(devices=jax.devices()[:1])
    step = jax.jit(autoencoder_step(config, vae, adversary, optimizers, mesh))
    return (vae, adversary, state, *step(state, CLIPS, None))


@pytest.mark.usefixtures("own")
def test_gradients_are_those_of_the_sum_written_out():
    config = with_terms(small())
    vae, adversary, state, after, metrics = step_of(config)
    import own_losses

    video = to_unit_range(jnp.asarray(CLIPS))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    keys = jax.random.split(key, len(CLIPS))  # as the step draws latents
    noise = jax.random.fold_in(keys[0], 1)

    def nll_of(reconstruction, parameters):
        return losses.reconstruction_loss(reconstruction, video, parameters[LOGVAR])[0]

    def generator_of(reconstruction):
        return losses.generator_loss(
            with_parameters(adversary, state.discriminator)(reconstruction)
        )

    def loss(parameters):
        model = with_parameters(vae, model_parameters(parameters))
        posterior = model.encode(video)
        hidden = model.decoder.hidden(model.post_quant_conv(_samples(posterior, keys)))

        def last(kernel):
            layer = with_parameters(
                model.decoder.conv_out,
                {"kernel": kernel, "bias": parameters["decoder.conv_out.bias"]},
            )
            return layer(hidden)

        kernel = parameters["decoder.conv_out.kernel"]
        reconstruction = last(kernel)
        given = video, reconstruction, posterior
        smooth = own_losses.smooth(*given, jax.random.fold_in(noise, 0))
        quiet = own_losses.quiet(*given, jax.random.fold_in(noise, 1))
        # The adaptive weight knows nothing of them.
        weight = config.discriminator.weight * losses.adaptive_weight(
            jax.grad(lambda kernel: nll_of(last(kernel), parameters))(kernel),
            jax.grad(lambda kernel: generator_of(last(kernel)))(kernel),
        )
        written = nll_of(reconstruction, parameters)
        written += config.loss.kl_weight * losses.kl_loss(posterior)
        written += jax.lax.stop_gradient(weight) * generator_of(reconstruction)
        return written + 300.0 * smooth + 70.0 * quiet, (weight, smooth, quiet)

    (value, each), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.parameters)
    names = ("adaptive_weight", "term_smooth", "term_quiet")
    np.testing.assert_allclose([metrics[name] for name in names], each, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert all(each) and 300.0 * each[1] + 70.0 * each[2] > 0.1 * value, "they are no rounding"

    expected.pop(LOGVAR)
    moved = jax.tree.map(jnp.subtract, state.parameters, after.parameters)
    got = {name: gradient for name, gradient in moved.items() if name != LOGVAR}
    wrong = optax.global_norm(jax.tree.map(jnp.subtract, got, expected))
    assert wrong < 1e-4 * optax.global_norm(expected)
    for name in ("quant_conv.kernel", "decoder.conv_out.kernel"):
        atol = 1e-4 * jnp.abs(expected[name]).max()
        chex.assert_trees_all_close(got[name], expected[name], rtol=1e-3, atol=atol)


def test_a_run_with_them_is_saved_loaded_without_the_module_and_not_continued(
    own,
    videos,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    fields = {"steps": 2, "validate_every": 0, "discriminator.weight": 0.0}
    config = with_terms(tiny(videos, **fields))
    state = train(config, tmp_path / "run")
    assert int(state.step) == 2
    assert all(r["term_smooth"] > 0 and r["term_quiet"] > 0 for r in lines(tmp_path / "run"))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["loss"]["terms"] == [list(term) for term in TERMS]

    longer = {**fields, "steps": 3}
    with pytest.raises(ValueError, match=r"loss.terms: \[\['own_losses:smooth', .* there, \[\] no"):
        train(tiny(videos, **longer), tmp_path / "run")
    with pytest.raises(ValueError, match=r"loss.terms: .*continue_with_changes"):
        train(with_terms(tiny(videos, **longer), TERMS[:1]), tmp_path / "run")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(own)])
    sys.modules.pop("own_losses")
    with pytest.raises(ValueError, match="config.loss.terms: 'own_losses:smooth' cannot be impor"):
        train(with_terms(tiny(videos, **longer)), tmp_path / "run")
    with pytest.raises(ValueError, match=r"loss.terms: \[\['own_losses:smooth'"):
        train(tiny(videos, **longer), tmp_path / "run")
    np.testing.assert_array_equal(
        ODVAE.from_pretrained(tmp_path / "run").quant_conv.kernel[...],
        state.ema["quant_conv.kernel"],
    )
    load_raw(tmp_path / "run")
    assert "own_losses" not in sys.modules, "nothing imports what a checkpoint names"


@pytest.mark.parametrize(
    "terms, words",
    [
        ((("own_losses:smoth", 1.0),), r"'own_losses:smoth' does not exist; did you mean 'smooth'"),
        ((("own_losses:constant", 1.0),), "'own_losses:constant' is no function"),
        (
            (("own_losses:narrow", 1.0),),
            r"'own_losses:narrow' .*narrow\(video, reconstruction, posterior, key\)",
        ),
        ((("own_losses.py:smooth", 1.0),), r"write 'own_losses:smooth', without \.py"),
        ((("own_loss:smooth", 1.0),), "'own_loss:smooth' cannot be imported .*current folder"),
        ((("own_losses.smooth", 1.0),), r"expected \(\"package.module:function\", weight\)"),
        ((("own_losses:smooth", "1"),), r"expected \(\"package.module:function\", weight\)"),
        ((("own_losses:smooth", float("nan")),), r"expected \(\"package.module:function\""),
        (("own_losses:smooth", 1.0), r"'own_losses:smooth' is not known; expected \("),
        ((*TERMS, TERMS[0]), "config.loss.terms has two functions of the name 'smooth'"),
    ],
)
@pytest.mark.usefixtures("own")
def test_terms_that_cannot_be_are_refused_by_name(terms, words):
    mesh = make_mesh(devices=jax.devices()[:1])
    config = with_terms(tiny("anywhere"), terms)
    with pytest.raises(ValueError, match=words):
        Autoencoder.check(config, mesh)


@pytest.mark.usefixtures("own")
def test_a_term_that_is_no_scalar_is_named():
    with pytest.raises(ValueError, match=r"config.loss.terms: 'uneven' returned .* shape \(4,\)"):
        step_of(with_terms(small(), (("own_losses:uneven", 1.0),)))


def test_the_term_of_the_page_is_what_it_says():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = (block for block in blocks if "my_losses.py" in block)
    module = {}
    exec(code, module)
    video, decoded = np.random.default_rng(0).uniform(-1, 1, (2, 2, 5, 8, 8, 3))
    value = module["smooth"](jnp.asarray(video), jnp.asarray(decoded), None, None)
    expected = np.mean(np.diff(decoded - video, axis=1) ** 2)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
