"""The other autoencoders of the paper's Table 1, one file per model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odvae_jax.baselines.base import Baseline, Codes
    from odvae_jax.baselines.cv_vae import CVVAE, CVVAEConfig
    from odvae_jax.baselines.ops_vae import OPSVAE, OPSVAEConfig
    from odvae_jax.baselines.svd_vae import SVDVAE, SVDVAEConfig
    from odvae_jax.baselines.tats import TATS, TATSConfig
    from odvae_jax.baselines.vqgan import VQGAN, VQGANConfig

__all__ = [
    "CVVAE",
    "MODELS",
    "OPSVAE",
    "SVDVAE",
    "TATS",
    "VQGAN",
    "Baseline",
    "CVVAEConfig",
    "Codes",
    "OPSVAEConfig",
    "SVDVAEConfig",
    "TATSConfig",
    "VQGANConfig",
    "model_class",
]

MODELS = {
    "vqgan": "VQGAN",
    "svd_vae": "SVDVAE",
    "tats": "TATS",
    "cv_vae": "CVVAE",
    "ops_vae": "OPSVAE",
}
"""The class of each model, by the name that `config.json` gives it, which is its file's too."""

# Each is imported when it is first asked for.
_HOMES = {"Baseline": "base", "Codes": "base"}
_HOMES |= {name: home for home, cls in MODELS.items() for name in (cls, f"{cls}Config")}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})


def model_class(name: str) -> Any:
    """Returns the class of a model, whose config's class is its `config_class`.

    Args:
      name: a key of `MODELS`.

    Raises:
      ValueError: if there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not known; there are {list(MODELS)}.")
    return __getattr__(MODELS[name])
