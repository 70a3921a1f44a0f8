"""One step of an autoencoder's training, as pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt32

from odvae_jax.autoencoder import ODVAE
from odvae_jax.metrics.lpips import LPIPS
from odvae_jax.parameters import with_parameters
from odvae_jax.pixels import to_unit_range
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.sharding import gathered
from odvae_jax.training import losses
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.micro_batches import over_micro_batches
from odvae_jax.training.state import (
    LOGVAR,
    Optimizers,
    Parameters,
    TrainState,
    ema_step,
    model_parameters,
    split_trained,
)
from odvae_jax.training.tasks.task import Metrics
from odvae_jax.training.terms import load_terms, sum_of_terms

Update = Literal["both", "generator", "discriminator"]
SeedKey = UInt32[Array, " words"]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""A function of (state, clips uint8 [B, T, H, W, 3], LPIPS or None, perhaps a SeedKey)."""


class LastLayerGradients(NamedTuple):
    """The gradients of those losses that are computed on the reconstruction.

    Attributes:
      last: the gradient with respect to the last layer's parameters.
      hidden: the gradient with respect to what the last layer is applied to.
      logvar: the gradient with respect to the logarithm of the reconstruction loss's scale.
      discriminator: the gradient of the discriminator's own loss with respect to its parameters;
        empty without a discriminator.
      posterior: the gradient of the user's own terms with respect to the posterior; None without
        such terms.
    """

    last: Any
    hidden: Float[Array, "b t h w d"]
    logvar: Float[Array, ""]
    discriminator: Parameters
    posterior: DiagonalGaussian | None


def update_of_step(config: ml_collections.ConfigDict, step: int) -> Update:
    """Returns which networks the step number `step`, counted from 0, updates."""
    adversary = config.discriminator
    if not adversary.weight:
        return "generator"
    if adversary.turns == "together":
        return "both"
    return "discriminator" if step >= adversary.start and step % 2 else "generator"


def last_layer_gradients(
    last_layer: Callable[[Any, Float[Array, "b t h w d"]], Float[Array, "b t h w 3"]],
    parameters: Any,
    kernel: Callable[[Any], Float[Array, "..."]],
    hidden: Float[Array, "b t h w d"],
    video: Float[Array, "b t h w 3"],
    *,
    reconstruction_loss: Callable,
    logvar: Float[Array, ""],
    discriminator: Discriminator | None = None,
    discriminator_parameters: Parameters | None = None,
    kind: losses.AdversarialKind = "hinge",
    weight: Float[Array, ""] | float = 0.0,
    update: Update = "both",
    terms: Callable[[Float[Array, "b t h w 3"], DiagonalGaussian], tuple[Float[Array, ""], Metrics]]
    | None = None,
    posterior: DiagonalGaussian | None = None,
) -> tuple[LastLayerGradients, Metrics]:
    """Returns the gradients of reconstruction and adversarial loss at the decoder's last layer.

    The two losses meet there. The norms of their gradients with respect to the last kernel give the
    adaptive weight, and their weighted sum goes back through the network only once.

    Args:
      last_layer: a function of its parameters and `hidden` to the reconstruction.
      parameters: the last layer's parameters.
      kernel: a function that picks the kernel, or its gradient, out of such parameters.
      hidden: what the last layer is applied to.
      video: the original clips, in [-1, 1].
      reconstruction_loss: a function of (reconstruction, video, logvar) to the loss and its parts.
      logvar: the logarithm of the reconstruction loss's scale.
      discriminator: the discriminator's structure; None leaves the adversarial term out.
      discriminator_parameters: the discriminator's parameters by name.
      kind: the discriminator's loss, "hinge" or "vanilla".
      weight: what the adaptive weight is multiplied by.
      update: with "generator" the discriminator's own loss is not computed.
      terms: a function of (reconstruction, posterior) to the weighted sum of a user's own terms,
        and metrics. The adaptive weight does not take them into account. None leaves them out.
      posterior: the posterior that `terms` is given.

    Returns:
      The gradients, and the values of the losses and their parts by name.
    """
    reconstruction, pull_last = jax.vjp(last_layer, parameters, hidden)
    nll, pull_nll, parts = jax.vjp(
        lambda y, s: reconstruction_loss(y, video, s), reconstruction, logvar, has_aux=True
    )
    cotangent, d_logvar = pull_nll(jnp.ones_like(nll))
    metrics = {"nll": nll, **parts}
    d_discriminator: Parameters = {}
    if discriminator is not None:
        logits = _logits_of(discriminator)
        fake, pull_fake = jax.vjp(logits, discriminator_parameters, reconstruction)
        generator, pull_generator = jax.vjp(losses.generator_loss, fake)
        adversarial = pull_fake(*pull_generator(jnp.ones_like(generator)))[1]
        _, pull_kernel = jax.vjp(lambda p: last_layer(p, hidden), parameters)
        norms = [kernel(pull_kernel(c)[0]) for c in (cotangent, adversarial)]
        adaptive = weight * losses.adaptive_weight(*norms)
        cotangent = cotangent + adaptive * adversarial
        metrics |= {"generator": generator, "adaptive_weight": adaptive}
        metrics["logits_fake"] = jnp.mean(fake)
        if update == "both":
            d_discriminator, more = _discriminator_gradient(
                logits, discriminator_parameters, video, fake, pull_fake, kind
            )
            metrics |= more
    d_posterior = None
    if terms is not None:
        value, pull_terms, more = jax.vjp(terms, reconstruction, posterior, has_aux=True)
        d_reconstruction, d_posterior = pull_terms(jnp.ones_like(value))
        cotangent = cotangent + d_reconstruction
        metrics |= more
    d_last, d_hidden = pull_last(cotangent)
    gradients = LastLayerGradients(d_last, d_hidden, d_logvar, d_discriminator, d_posterior)
    return gradients, metrics


def _logits_of(discriminator):
    return lambda parameters, clips: with_parameters(discriminator, parameters)(clips)


def _discriminator_gradient(logits, parameters, video, fake, pull_fake, kind):
    """Gradient of the discriminator's loss; real and reconstructed clips pass separately."""
    real, pull_real = jax.vjp(lambda parameters: logits(parameters, video), parameters)
    loss, pull = jax.vjp(lambda r, f: losses.discriminator_loss(r, f, kind), real, fake)
    d_real, d_fake = pull(jnp.ones_like(loss))
    gradient = jax.tree.map(jnp.add, pull_real(d_real)[0], pull_fake(d_fake)[0])
    means = {"logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
    return gradient, {"discriminator": loss, **means}


def seed_key(config: ml_collections.ConfigDict) -> SeedKey:
    """Returns the data of the random key that all random numbers of a run's steps come from."""
    return jax.random.key_data(jax.random.key(config.seed))


def autoencoder_step(
    config: ml_collections.ConfigDict,
    vae: ODVAE,
    discriminator: Discriminator | None,
    optimizers: Optimizers,
    mesh: Mesh,
    update: Update = "both",
) -> TrainStep:
    """Returns the function that does one step of training.

    It maps (state, uint8 clips, LPIPS or None) to (state, metrics). A fourth argument is what
    `seed_key` returns for the config, so that runs that differ in their seeds alone share the
    compiled program; without it the seed is part of the program. It is pure, and takes arrays that
    are spread over `mesh` as `clip_sharding` and `state_shardings` describe. It neither counts
    steps nor checks whether its results are finite; `odvae_jax.training.guard.guarded` does both.

    Args:
      config: the run's config; see `odvae_jax.training.config`.
      vae: the model, of which only the structure matters.
      discriminator: the discriminator, of which only the structure matters; None without the
        adversarial term.
      optimizers: what `make_optimizers` returns for this config.
      mesh: the devices, of `odvae_jax.sharding.make_mesh`.
      update: which networks the step updates; `update_of_step` returns it for every step.

    Raises:
      ValueError: if a function that `config.loss.terms` names does not exist.
    """
    adversary = config.discriminator
    own_terms = load_terms(config.loss.terms)

    def posterior_and_hidden(trained, frozen, video, keys):
        model = with_parameters(vae, model_parameters(trained | frozen))
        posterior = model.encode(video)
        hidden = model.decoder.hidden(model.post_quant_conv(_samples(posterior, keys)))
        return hidden, posterior

    def last_layer(last, hidden):
        return with_parameters(vae.decoder.conv_out, last)(hidden)

    def generator_gradients(state, clips, keys, lpips):
        video = to_unit_range(clips)
        trained, frozen = split_trained(state.parameters, config)
        (hidden, posterior), pull = jax.vjp(
            lambda trained: posterior_and_hidden(trained, frozen, video, keys), trained
        )
        prefix = "decoder.conv_out."
        last = {n.removeprefix(prefix): v for n, v in trained.items() if n.startswith(prefix)}
        reconstruction_loss = functools.partial(
            losses.reconstruction_loss,
            kind=config.loss.reconstruction,
            perceptual=lpips,
            perceptual_weight=config.loss.perceptual_weight,
        )

        def of_terms(reconstruction, posterior):
            # The first clip's key draws its latents; one derived from it is independent of that.
            key = jax.random.fold_in(keys[0], 1)
            return sum_of_terms(own_terms, video, reconstruction, posterior, key)

        gradients, metrics = last_layer_gradients(
            last_layer,
            last,
            lambda last: last["kernel"],
            hidden,
            video,
            reconstruction_loss=reconstruction_loss,
            logvar=state.parameters[LOGVAR],
            discriminator=discriminator,
            discriminator_parameters=state.discriminator,
            kind=adversary.loss,
            weight=adversary.weight * (state.step >= adversary.start),
            update=update,
            terms=of_terms if own_terms else None,
            posterior=posterior,
        )
        kl, d_posterior = jax.value_and_grad(losses.kl_loss)(posterior)
        d_posterior = jax.tree.map(lambda g: config.loss.kl_weight * g, d_posterior)
        if own_terms:
            d_posterior = jax.tree.map(jnp.add, d_posterior, gradients.posterior)
        (d_trained,) = pull((gradients.hidden, d_posterior))
        d_trained |= {prefix + name: value for name, value in gradients.last.items()}
        if LOGVAR in d_trained:
            d_trained[LOGVAR] = gradients.logvar
        loss = metrics["nll"] + config.loss.kl_weight * kl
        for term in own_terms:
            loss += term.weight * metrics[f"term_{term.name}"]
        if discriminator is not None:
            loss += metrics["adaptive_weight"] * metrics["generator"]
        metrics |= {"loss": loss, "kl": kl}
        metrics |= losses.per_value(metrics, video.shape, posterior.mean.shape)
        metrics["latent_mean"] = jnp.mean(posterior.mean)
        metrics["latent_std"] = jnp.std(posterior.mean)
        if LOGVAR in trained:
            metrics["logvar"] = trained[LOGVAR]
        return {"generator": d_trained, "discriminator": gradients.discriminator}, metrics

    def discriminator_gradients(state, clips, keys, _):
        video = to_unit_range(clips)
        model = with_parameters(vae, model_parameters(state.parameters))
        reconstruction = model.decode(_samples(model.encode(video), keys))
        logits = _logits_of(discriminator)
        fake, pull_fake = jax.vjp(lambda p: logits(p, reconstruction), state.discriminator)
        gradient, metrics = _discriminator_gradient(
            logits, state.discriminator, video, fake, pull_fake, adversary.loss
        )
        return {"generator": {}, "discriminator": gradient}, metrics

    gradients_of = discriminator_gradients if update == "discriminator" else generator_gradients

    def train_step(state: TrainState, clips, lpips: LPIPS | None, seed: SeedKey | None = None):
        seed = seed_key(config) if seed is None else seed
        key = jax.random.fold_in(jax.random.wrap_key_data(seed), state.step)
        keys = jax.random.split(key, clips.shape[0])  # one per clip, however the batch is cut
        whole = state._replace(
            parameters=gathered(state.parameters, mesh),
            discriminator=gathered(state.discriminator, mesh),
        )
        gradients, metrics = over_micro_batches(
            lambda *part: gradients_of(whole, *part, lpips), (clips, keys), config.accumulate
        )
        norms = {name: optax.global_norm(g) for name, g in gradients.items() if g}
        metrics |= {f"gradient_norm_{name}": norm for name, norm in norms.items()}
        rate = jnp.asarray(optimizers.learning_rate(state.step), jnp.float32)
        metrics["learning_rate"] = rate
        new = state
        if gradients["generator"]:
            trained, frozen = split_trained(state.parameters, config)
            trained, optimizer = _apply(
                optimizers.generator, rate, gradients["generator"], state.optimizer, trained
            )
            average, _ = split_trained(state.ema, config)
            average = optax.incremental_update(trained, average, ema_step(config, state.step))
            new = new._replace(
                parameters=trained | frozen, ema=average | frozen, optimizer=optimizer
            )
        if gradients["discriminator"]:
            updated = _apply(
                optimizers.discriminator,
                rate,
                gradients["discriminator"],
                state.discriminator_optimizer,
                state.discriminator,
            )
            before = (state.discriminator, state.discriminator_optimizer)
            updated = _choose(state.step >= adversary.start, updated, before)
            new = new._replace(discriminator=updated[0], discriminator_optimizer=updated[1])
        return new, metrics

    return train_step


def _apply(optimizer, rate, gradients, state, parameters):
    updates, state = optimizer.update(gradients, state, parameters)
    updates = jax.tree.map(lambda update: -rate * update, updates)
    return optax.apply_updates(parameters, updates), state


def _choose(condition, a, b):
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _samples(posterior, keys):
    return jax.vmap(lambda one, key: one.sample(key))(posterior, keys)
