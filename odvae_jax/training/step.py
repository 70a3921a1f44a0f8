"""One step of training, and the reconstruction that pictures are made of; pure functions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import ml_collections
import optax
from jaxtyping import Array, UInt8

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import with_parameters
from odvae_jax.inference import to_unit_range
from odvae_jax.training.losses import kl_loss, reconstruction_loss
from odvae_jax.training.state import Parameters, TrainState

Metrics = dict[str, jax.Array]


def make_train_step(
    config: ml_collections.ConfigDict, vae: ODVAE, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, UInt8[Array, "b t h w 3"]], tuple[TrainState, Metrics]]:
    """The function (state, uint8 clips) -> (state, metrics); `vae` gives the structure only."""

    def loss_and_metrics(parameters: Parameters, video, key):
        model = with_parameters(vae, parameters)
        posterior = model.encode(video)
        reconstruction = model.decode(posterior.sample(key))
        rec = reconstruction_loss(reconstruction, video, config.loss.reconstruction)
        kl = kl_loss(posterior)
        loss = rec + config.loss.kl_weight * kl
        return loss, {"loss": loss, "reconstruction": rec, "kl": kl}

    def train_step(state: TrainState, clips):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradients, metrics = jax.grad(loss_and_metrics, has_aux=True)(
            state.parameters, to_unit_range(clips), key
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        ema = optax.incremental_update(parameters, state.ema, 1.0 - config.ema_decay)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return TrainState(state.step + 1, parameters, ema, optimizer_state), metrics

    return train_step
