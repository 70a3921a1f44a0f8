"""What an autoencoder's training carries from step to step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import ENCODER
from odvae_jax.parameters import named_parameters
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.tasks.task import counters

Parameters = dict[str, jax.Array]
"""Arrays by dotted name, such as "decoder.conv_in.kernel"."""

LOGVAR = "loss.logvar"
"""The name of the one parameter that belongs to the loss and not to the model."""


class TrainState(NamedTuple):
    """Everything that the next step depends on, except for the clips.

    Attributes:
      step: the number of steps done, with those that the guard skipped.
      parameters: the parameters of the model by name, and the loss's `LOGVAR`.
      ema: the exponential moving average of `parameters`.
      optimizer: Adam's state for those parameters that are trained.
      discriminator: the parameters of the discriminator by name; empty without the adversarial
        term.
      discriminator_optimizer: Adam's state for the discriminator.
      skipped: the number of steps that changed nothing because a loss or a gradient was not finite.
      skipped_in_a_row: how many of the last steps were skipped without a good one between them.
    """

    step: Int[Array, ""]
    parameters: Parameters
    ema: Parameters
    optimizer: optax.OptState
    discriminator: Parameters
    discriminator_optimizer: optax.OptState
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


class Optimizers(NamedTuple):
    """The optimizers of a run, which turn gradients into updates.

    Attributes:
      generator: the autoencoder's optimizer, without the learning rate.
      discriminator: the discriminator's optimizer, without the learning rate.
      learning_rate: the learning rate as a function of the run's step, not of the number of updates
        that a network has had.
    """

    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation
    learning_rate: optax.Schedule


def make_optimizers(config: ml_collections.ConfigDict) -> Optimizers:
    """Makes Adam with the schedule and clipping of `config.optimizer`, alike for both networks."""
    o = config.optimizer
    warmup = optax.linear_schedule(0.0, o.learning_rate, max(o.warmup_steps, 1))
    if o.decay == "cosine":
        rest = optax.cosine_decay_schedule(o.learning_rate, max(config.steps - o.warmup_steps, 1))
    else:
        rest = optax.constant_schedule(o.learning_rate)
    schedule = optax.join_schedules([warmup, rest], [o.warmup_steps])
    clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity()

    def adam():
        return optax.chain(clip, optax.scale_by_adam(b1=o.b1, b2=o.b2))

    return Optimizers(adam(), adam(), schedule)


def model_parameters(parameters: Parameters) -> Parameters:
    """Returns the parameters without the loss's `LOGVAR`, as `with_parameters` takes them."""
    return {name: value for name, value in parameters.items() if name != LOGVAR}


def split_trained(
    parameters: Parameters, config: ml_collections.ConfigDict
) -> tuple[Parameters, Parameters]:
    """Splits parameters into those that are trained and those that stay as they are.

    `config.freeze` and `config.loss.train_logvar` decide.
    """

    def is_frozen(name):
        if name == LOGVAR:
            return not config.loss.train_logvar
        return config.freeze == "encoder" and name.startswith(ENCODER)

    trained = {name: value for name, value in parameters.items() if not is_frozen(name)}
    return trained, {name: value for name, value in parameters.items() if is_frozen(name)}


def ema_step(config: ml_collections.ConfigDict, step: Int[Array, ""]) -> float | Float[Array, ""]:
    """Returns the weight of the new parameters in the moving average: one minus the decay.

    The decay is `config.ema_decay`. With `config.ema_warmup` it is at most (1 + n) / (10 + n) in
    the step before which n were done, so that the average spans about the last ninth of all steps
    until the decay takes over. This is the rule of TensorFlow's `tf.train.ExponentialMovingAverage`
    with `num_updates`, and of `EMAModel` in diffusers unless its `use_ema_warmup` is set.

    Args:
      config: the run's config.
      step: the number of steps done.
    """
    if not config.ema_warmup:
        return 1.0 - config.ema_decay
    return jnp.maximum(1.0 - config.ema_decay, 9.0 / (10.0 + step))


def create_state(
    vae: ODVAE,
    discriminator: Discriminator | None,
    optimizers: Optimizers,
    config: ml_collections.ConfigDict,
) -> TrainState:
    """Makes the state before the first step; the moving average starts from the weights.

    Args:
      vae: the model with its initial parameters.
      discriminator: the discriminator with its initial parameters; None without one.
      optimizers: what `make_optimizers` returns for this config.
      config: the run's config.
    """
    logvar = jnp.asarray(config.loss.logvar, jnp.float32)
    parameters = {**named_parameters(vae), LOGVAR: logvar}
    adversary = {} if discriminator is None else named_parameters(discriminator)
    return TrainState(
        **counters(),
        parameters=parameters,
        ema=jax.tree.map(jnp.copy, parameters),
        optimizer=optimizers.generator.init(split_trained(parameters, config)[0]),
        discriminator=adversary,
        discriminator_optimizer=optimizers.discriminator.init(adversary),
    )
