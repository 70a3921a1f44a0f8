"""What a training run carries from step to step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import named_parameters

Parameters = dict[str, jax.Array]
"""Parameters by dotted name."""


class TrainState(NamedTuple):
    """Parameters, their moving average, the optimizer's state, and the number of steps done."""

    step: jax.Array
    parameters: Parameters
    ema: Parameters
    optimizer: optax.OptState


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam with the learning-rate schedule of `config.optimizer`."""
    o = config.optimizer
    warmup = optax.linear_schedule(0.0, o.learning_rate, max(o.warmup_steps, 1))
    if o.decay == "cosine":
        rest = optax.cosine_decay_schedule(o.learning_rate, max(config.steps - o.warmup_steps, 1))
    else:
        rest = optax.constant_schedule(o.learning_rate)
    schedule = optax.join_schedules([warmup, rest], [o.warmup_steps])
    return optax.adam(schedule, b1=o.b1, b2=o.b2)


def create_state(vae: ODVAE, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the moving average starts from the weights."""
    parameters = named_parameters(vae)
    ema = jax.tree.map(jnp.copy, parameters)
    return TrainState(jnp.zeros((), jnp.int32), parameters, ema, optimizer.init(parameters))
