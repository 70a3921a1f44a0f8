"""What the paper's Tables 1 to 4 say (sections 4.2 and 4.3), as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from odvae_jax.baselines import model_class
from odvae_jax.baselines.base import BaselineConfig
from odvae_jax.config import ODVAEConfig
from odvae_jax.parameters import Config

DATASETS = ("WebVid-10M", "Panda-70M")
"""The data sets whose validation sets the paper measures on."""
FRAMES, SIZE = 25, 256
"""The number of frames and the side in pixels of the paper's clips (section 4.1)."""
SPEED_FRAMES = 81
"""The number of frames of the clips that the paper times (section 4.3)."""
METRICS = ("psnr", "ssim", "lpips")
"""The metrics of Table 1, in its order."""


_MEASURED = ("shift", "deviation")  # numbers that stand in OPS-VAE's weights


@dataclasses.dataclass(frozen=True)
class Published:
    """One row of Table 1.

    Attributes:
      name: the model's name in the paper.
      model: the model's name in this package, a key of `odvae_jax.baselines.MODELS`, or "image"
        or "v4", which are rows of `ODVAEConfig`.
      block: the number of frames, rows and columns of the video per position of the latents.
      parameters: the number of parameters as it is printed there.
      scores: PSNR in dB, SSIM and LPIPS, in this order, by the name of the data set.
    """

    name: str
    model: str
    block: tuple[int, int, int]
    parameters: str
    scores: Mapping[str, tuple[float, float, float]]

    @property
    def config_class(self) -> type[Config]:
        """The class of the model's config."""
        if self.model in ("image", "v4"):
            return ODVAEConfig
        return model_class(self.model).config_class

    def config(self, **fields: Any) -> Config:
        """Returns the config of the model that the paper measured; of OD-VAE, as released.

        Args:
          **fields: config fields to change, such as `dtype`.
        """
        if self.config_class is ODVAEConfig:
            upsample = "nearest" if self.model == "image" else "linear"
            return ODVAEConfig(structure=self.model, upsample=upsample, **fields)
        return self.config_class(**fields)

    def is_of(self, config: Config) -> bool:
        """Whether a config is that of such a model: of the class, and image or video model."""
        if not isinstance(config, self.config_class):
            return False
        is_image = isinstance(config, ODVAEConfig) and config.parts.is_image
        return is_image == (self.model == "image")

    def other_sizes(self, config: Config) -> dict[str, tuple[Any, Any]]:
        """Returns what decides the parameters' shapes and is not as in the paper's model.

        Args:
          config: the config of such a model.

        Returns:
          The value there and the paper's, by the name of the field.
        """
        paper = self.config()
        fixed = ("width", "latent_channels", "groups")
        if isinstance(config, BaselineConfig):
            free = (*config.changeable, *_MEASURED)
            fixed = [f.name for f in dataclasses.fields(config) if f.name not in free]
        pairs = {name: (getattr(config, name), getattr(paper, name)) for name in fixed}
        if isinstance(config, ODVAEConfig):
            pairs["structure"] = (config.name, paper.name)
        return {name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours != theirs}


def _row(name, model, block, parameters, webvid, panda) -> Published:
    return Published(
        name, model, block, parameters, dict(zip(DATASETS, (webvid, panda), strict=True))
    )


_IMAGE, _VIDEO = (1, 8, 8), (4, 8, 8)
TABLE_1 = (
    _row("VQGAN", "vqgan", _IMAGE, "69.00M", (26.26, 0.7699, 0.0906), (26.07, 0.8295, 0.0722)),
    _row("SD-VAE", "image", _IMAGE, "83.65M", (30.19, 0.8379, 0.0568), (30.40, 0.8894, 0.0396)),
    _row("SVD-VAE", "svd_vae", _IMAGE, "97.74M", (31.15, 0.8686, 0.0547), (31.00, 0.9058, 0.0379)),
    _row("TATS", "tats", _VIDEO, "52.19M", (23.10, 0.6758, 0.2645), (21.77, 0.6680, 0.2858)),
    _row("CV-VAE", "cv_vae", _VIDEO, "182.45M", (30.76, 0.8566, 0.0803), (29.57, 0.8795, 0.0673)),
    _row("OPS-VAE", "ops_vae", _VIDEO, "393.34M", (31.12, 0.8569, 0.1003), (31.06, 0.8969, 0.0666)),
    _row("OD-VAE", "v4", _VIDEO, "239.19M", (31.16, 0.8694, 0.0586), (30.49, 0.8970, 0.0454)),
)
"""The rows of Table 1, in its order."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One row of Table 2: a denoiser on the latents of an autoencoder.

    Attributes:
      name: the autoencoder's name in the paper.
      scores: FVD, KVD and the Inception score by the name of the metric, by that of the data set.
      megabytes: the memory that training takes, in MB (TMem), by the name of the data set.
      steps_per_second: the speed of training (TSpeed), by the name of the data set.
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    megabytes: Mapping[str, int]
    steps_per_second: Mapping[str, float]


def _generation(name, ucf101, sky) -> Generation:
    by_name = {"UCF101": ucf101, "SkyTimelapse": sky}
    scores = {n: dict(zip(("fvd", "kvd", "is"), v[:-2], strict=False)) for n, v in by_name.items()}
    memory, speed = ({n: v[i] for n, v in by_name.items()} for i in (-2, -1))
    return Generation(name, scores, memory, speed)


TABLE_2 = (
    _generation("SD-VAE", (1685.29, 116.10, 33.00, 74364, 0.87), (325.00, 26.28, 74498, 0.86)),
    _generation("SVD-VAE", (1663.98, 108.27, 31.41, 74364, 0.87), (285.23, 25.10, 74498, 0.86)),
    _generation("CV-VAE", (1380.43, 129.29, 61.11, 30628, 1.31), (326.86, 23.57, 30938, 1.29)),
    _generation("OPS-VAE", (1502.64, 142.4, 53.13, 31220, 1.52), (312.22, 24.47, 31516, 1.49)),
    _generation("OD-VAE", (1315.13, 110.88, 58.98, 30520, 1.80), (294.31, 20.76, 30834, 1.76)),
)
"""The rows of Table 2, in its order; measured on A100s of 80 GB, of 2,048 samples."""

TABLE_3 = {1: (2.15, 1.26), 2: (2.44, 1.38), 3: (4.13, 1.80), 4: (4.13, 1.80)}
"""Table 3: clips encoded per second (CSpeed) and TSpeed on UCF101, by the number of the variant."""

TABLE_4 = {False: (1315.13, 58.98), True: (1331.46, 58.89)}
"""Table 4: FVD and Inception score on UCF101, by whether the autoencoder's clips are tiled."""
