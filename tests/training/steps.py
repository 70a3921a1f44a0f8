"""The autoencoder's step as the loop runs it: with the guard around it."""

from odvae_jax.training.guard import guarded
from odvae_jax.training.step import autoencoder_step


def make_train_step(config, vae, adversary, optimizers, mesh, update="both"):
    return guarded(autoencoder_step(config, vae, adversary, optimizers, mesh, update), mesh)
