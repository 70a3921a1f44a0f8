"""Video diffusion on the latents of an autoencoder: the denoiser, its processes, and sampling."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odvae_jax.diffusion.config import LatteConfig, TrainedOn
    from odvae_jax.diffusion.denoiser import Latte, drop_labels
    from odvae_jax.diffusion.flow import RectifiedFlow
    from odvae_jax.diffusion.process import GaussianProcess
    from odvae_jax.diffusion.sampling import process_of, sample

__all__ = [
    "GaussianProcess",
    "Latte",
    "LatteConfig",
    "RectifiedFlow",
    "TrainedOn",
    "drop_labels",
    "process_of",
    "sample",
]

# Each is imported when it is first asked for, as in odvae_jax itself.
_HOMES = {
    "LatteConfig": "config",
    "TrainedOn": "config",
    "Latte": "denoiser",
    "drop_labels": "denoiser",
}
_HOMES |= {"GaussianProcess": "process", "RectifiedFlow": "flow"}
_HOMES |= {"process_of": "sampling", "sample": "sampling"}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
