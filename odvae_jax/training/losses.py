"""What training minimises (section 4.1; VQGAN's loss, as the released OD-VAE has it)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.metrics.lpips import LPIPS
from odvae_jax.posterior import DiagonalGaussian

AdversarialKind = Literal["hinge", "vanilla"]


def reconstruction_loss(
    reconstruction: Float[Array, "b t h w 3"],
    video: Float[Array, "b t h w 3"],
    logvar: Float[Array, ""] | float = 0.0,
    *,
    kind: Literal["l1", "l2"] = "l1",
    perceptual: LPIPS | None = None,
    perceptual_weight: float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The negative log-likelihood of a clip: error and perceptual distance of every value.

    The error |x - y| (or its square) of a value, plus the LPIPS of its frame times
    `perceptual_weight`, divided by exp(`logvar`), plus `logvar`; summed over all values and divided
    by the number of frames, B·T.

    Args:
      reconstruction: the decoded clips [B, T, H, W, 3].
      video: the original clips [B, T, H, W, 3], in [-1, 1].
      logvar: the logarithm of the scale that all values are taken to deviate by.
      kind: "l1" for the absolute error of a value, "l2" for its square.
      perceptual: LPIPS with VGG-16; None leaves the perceptual term out.
      perceptual_weight: what LPIPS is multiplied by.

    Returns:
      The loss, and its parts before `logvar`: "reconstruction", the errors summed over a frame, and
      with the perceptual term "perceptual", the mean LPIPS; both are means over frames.
    """
    video = video.astype(jnp.float32)
    difference = reconstruction.astype(jnp.float32) - video
    error = jnp.abs(difference) if kind == "l1" else difference**2
    frames = video.shape[0] * video.shape[1]
    values = video.size // frames  # of a frame
    parts = {"reconstruction": jnp.sum(error) / frames}
    total = parts["reconstruction"]
    if perceptual is not None:
        parts["perceptual"] = jnp.mean(perceptual(reconstruction, video))
        total = total + perceptual_weight * values * parts["perceptual"]
    return total * jnp.exp(-logvar) + values * logvar, parts


def kl_loss(posterior: DiagonalGaussian) -> Float[Array, ""]:
    """KL divergence to the unit Gaussian, in nats: the mean over clips of each clip's sum."""
    return jnp.mean(posterior.kl())


def generator_loss(logits_fake: Float[Array, "*patches"]) -> Float[Array, ""]:
    """What the autoencoder minimises against the discriminator.

    It is minus the mean logit of the reconstructed patches.
    """
    return -jnp.mean(logits_fake)


def discriminator_loss(
    logits_real: Float[Array, "*patches"],
    logits_fake: Float[Array, "*patches"],
    kind: AdversarialKind = "hinge",
) -> Float[Array, ""]:
    """What the discriminator minimises: half for real and half for reconstructed patches.

    "hinge": relu(1 - real) and relu(1 + fake); "vanilla": softplus(-real) and softplus(fake).
    """
    if kind == "hinge":
        real, fake = jax.nn.relu(1.0 - logits_real), jax.nn.relu(1.0 + logits_fake)
    else:
        real, fake = jax.nn.softplus(-logits_real), jax.nn.softplus(logits_fake)
    return 0.5 * (jnp.mean(real) + jnp.mean(fake))


def adaptive_weight(
    reconstruction_gradient: Float[Array, "*kernel"], generator_gradient: Float[Array, "*kernel"]
) -> Float[Array, ""]:
    """Weight of the adversarial term that gives it the pull of the reconstruction (VQGAN, Eq. 7).

    The norm of the one gradient over that of the other plus 1e-4, clamped to [0, 1e4]; both are
    with respect to the decoder's last kernel.
    """
    norms = [jnp.linalg.norm(g.ravel()) for g in (reconstruction_gradient, generator_gradient)]
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)
