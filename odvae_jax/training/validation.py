"""Measuring a model on fixed clips while it is trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from odvae_jax.autoencoder import ODVAE
from odvae_jax.metrics.lpips import LPIPS, SMALLEST
from odvae_jax.metrics.psnr import psnr
from odvae_jax.metrics.ssim import WINDOW, ssim
from odvae_jax.parameters import with_parameters
from odvae_jax.pixels import to_uint8, to_unit_range
from odvae_jax.sharding import gathered, replicated
from odvae_jax.training.state import Parameters, model_parameters


class Validation:
    """Measures PSNR, SSIM and LPIPS of fixed clips, and reconstructs them (section 4.1).

    Latents are the posterior's mean. SSIM and LPIPS are left out if the clips are too small for
    them.

    Args:
      vae: the model's structure.
      clips: the clips, uint8 [n, T, H, W, 3], the same on every process.
      lpips: LPIPS with AlexNet; None leaves LPIPS out.
      mesh: the devices that the parameters are spread over.

    Attributes:
      clips: the clips, uint8 [n, T, H, W, 3].
    """

    def __init__(
        self, vae: ODVAE, clips: UInt8[np.ndarray, "n t h w 3"], lpips: LPIPS | None, mesh: Mesh
    ):
        self.clips = clips
        side = min(clips.shape[2:4])
        self._lpips = lpips if side >= SMALLEST["alex"] else None

        def one_clip(parameters, clip, lpips):
            model = with_parameters(vae, parameters)
            video = to_unit_range(clip)
            decoded = model.decode(model.encode(video[None]).mode())[0]
            reconstruction = jnp.clip(decoded, -1.0, 1.0)
            pair = ((video + 1.0) / 2.0, (reconstruction + 1.0) / 2.0)
            quality = {"psnr": jnp.mean(psnr(*pair))}
            if side >= WINDOW:
                quality["ssim"] = jnp.mean(ssim(*pair))
            if lpips is not None:
                quality["lpips"] = jnp.mean(lpips(video, reconstruction))
            return quality, to_uint8(reconstruction)

        def all_clips(parameters, clips, lpips):
            # One clip after another, so that they need the memory of one.
            parameters = gathered(parameters, mesh)
            quality, shown = jax.lax.map(lambda clip: one_clip(parameters, clip, lpips), clips)
            return jax.tree.map(jnp.mean, quality), shown

        self._run = jax.jit(all_clips, out_shardings=replicated(mesh))

    def __call__(
        self, parameters: Parameters
    ) -> tuple[dict[str, float], UInt8[np.ndarray, "n t h w 3"]]:
        """Returns the means over frames and clips by the metric's name, and the reconstructions."""
        quality, shown = self._run(model_parameters(parameters), self.clips, self._lpips)
        return {name: float(value) for name, value in quality.items()}, np.asarray(shown)
