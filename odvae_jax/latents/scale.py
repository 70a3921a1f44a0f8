"""The scale of latents, which models and datasets of latents share; it needs no JAX."""

from odvae_jax.scale import Scale

__all__ = ["Scale"]
