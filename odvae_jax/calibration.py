"""Measuring the mean and deviation of a model's latents, which a diffusion model needs."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import UInt8

from odvae_jax.inference import encode_uint8
from odvae_jax.latents import Statistics
from odvae_jax.parameters import Autoencoder


def measure(
    vae: Autoencoder, batches: Iterator[UInt8[np.ndarray, "b t h w 3"]], clips: int | None = None
) -> Statistics:
    """Encodes clips on one device, and returns the sums over their latents.

    `Scale.of` makes the scale of them. Sums are in float64. Batches of one shape share a compiled
    program.

    Args:
      vae: the model.
      batches: uint8 clips, [B, T, H, W, 3].
      clips: the number of clips that are counted, from the first one on; None counts all. So the
        last batch can have the shape of the others.

    Raises:
      ValueError: if there are no clips, if the model cannot take their shape, or if latents are not
        finite. The message says of which clips.
    """
    statistics, counted = Statistics(), 0
    vae = jax.device_put(vae, jax.local_devices()[0])
    for batch in batches:
        wanted = len(batch) if clips is None else min(max(clips - counted, 0), len(batch))
        posterior = encode_uint8(vae, batch)
        mean, logvar = (np.asarray(x)[:wanted] for x in (posterior.mean, posterior.logvar))
        if bad := mean.size - int((np.isfinite(mean) & np.isfinite(logvar)).sum()):
            raise ValueError(
                f"{bad} of {mean.size} latents of the clips {counted} to {counted + wanted - 1} "
                "are not finite: take another checkpoint, or --dtype=float32."
            )
        statistics.add(mean, logvar)
        counted += wanted
    if not counted:
        raise ValueError("there are no clips to measure the latents of.")
    return statistics
