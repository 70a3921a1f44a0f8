"""What training minimises (section 4.1): VQGAN's loss, as the released OD-VAE has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    """Returns the negative log-likelihood of clips under the error and the perceptual distance.

    For each value, the error |x - y| or its square, plus `perceptual_weight` times the LPIPS of its
    frame, is divided by exp(`logvar`), and `logvar` is added. The loss is the sum over all values,
    divided by the number of frames, B·T.

    Args:
      reconstruction: the decoded clips [B, T, H, W, 3].
      video: the original clips [B, T, H, W, 3], in [-1, 1].
      logvar: the logarithm of the scale of the errors, one for all values.
      kind: "l1" for the absolute error of a value, "l2" for its square.
      perceptual: LPIPS with VGG-16; None leaves the perceptual term out.
      perceptual_weight: what LPIPS is multiplied by.

    Returns:
      The loss, and its parts before `logvar`: "reconstruction", the errors summed over a frame, and
      with the perceptual term "perceptual", the mean LPIPS. Both are means over frames.
    """
    video = video.astype(jnp.float32)
    difference = reconstruction.astype(jnp.float32) - video
    error = jnp.abs(difference) if kind == "l1" else difference**2
    frames = video.shape[0] * video.shape[1]
    values = video.size // frames  # per frame
    parts = {"reconstruction": jnp.sum(error) / frames}
    total = parts["reconstruction"]
    if perceptual is not None:
        parts["perceptual"] = jnp.mean(perceptual(reconstruction, video))
        total = total + perceptual_weight * values * parts["perceptual"]
    return total * jnp.exp(-logvar) + values * logvar, parts


def per_value(
    metrics: Mapping[str, Float[Array, ""]], video: tuple[int, ...], latents: tuple[int, ...]
) -> dict[str, Float[Array, ""]]:
    """Returns means per value for the sums among metrics, each as "NAME_per_value".

    The loss, "nll" and "reconstruction" are sums over the H·W·3 values of a frame, and the KL is
    one over the t·h·w·C values of a clip's latents. So their sizes depend on the size of the clips,
    and those of the means do not.

    Args:
      metrics: the metrics of a step by name.
      video: the shape of the clips, [B, T, H, W, 3].
      latents: the shape of their latents, [B, t, h, w, C].
    """
    frame, clip = math.prod(video[2:]), math.prod(latents[1:])
    counts = {"loss": frame, "nll": frame, "reconstruction": frame, "kl": clip}
    return {f"{name}_per_value": metrics[name] / count for name, count in counts.items()}


def kl_loss(posterior: DiagonalGaussian) -> Float[Array, ""]:
    """Returns the mean over clips of the KL divergence to the unit Gaussian, in nats."""
    return jnp.mean(posterior.kl())


def generator_loss(logits_fake: Float[Array, "*patches"]) -> Float[Array, ""]:
    """Returns what the autoencoder minimises against the discriminator.

    It is minus the mean logit of the reconstructed patches.
    """
    return -jnp.mean(logits_fake)


def discriminator_loss(
    logits_real: Float[Array, "*patches"],
    logits_fake: Float[Array, "*patches"],
    kind: AdversarialKind = "hinge",
) -> Float[Array, ""]:
    """Returns what the discriminator minimises: half for real and half for reconstructed patches.

    Args:
      logits_real: the logits of patches of original clips.
      logits_fake: the logits of patches of reconstructed clips.
      kind: "hinge" takes the means of relu(1 - real) and relu(1 + fake); "vanilla" takes those of
        softplus(-real) and softplus(fake).
    """
    if kind == "hinge":
        real, fake = jax.nn.relu(1.0 - logits_real), jax.nn.relu(1.0 + logits_fake)
    else:
        real, fake = jax.nn.softplus(-logits_real), jax.nn.softplus(logits_fake)
    return 0.5 * (jnp.mean(real) + jnp.mean(fake))


def adaptive_weight(
    reconstruction_gradient: Float[Array, "*kernel"], generator_gradient: Float[Array, "*kernel"]
) -> Float[Array, ""]:
    """Returns the weight that gives the adversarial term the pull of the reconstruction.

    It is the norm of the reconstruction's gradient, divided by the norm of the adversarial gradient
    plus 1e-4, and clamped to [0, 1e4] (VQGAN, Eq. 7).

    Args:
      reconstruction_gradient: the gradient of the reconstruction loss with respect to the decoder's
        last kernel.
      generator_gradient: the gradient of the adversarial loss with respect to the same kernel.
    """
    norms = [jnp.linalg.norm(g.ravel()) for g in (reconstruction_gradient, generator_gradient)]
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)
