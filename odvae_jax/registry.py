"""Where models are saved and loaded, for the methods of models that do it.

The package `odvae_jax.checkpoints` knows every model and every layout of files. It puts its two
functions here, so that a model's own file need not know it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from odvae_jax.files import printable

_FUNCTIONS: dict[str, Callable] = {}


def register(*, load: Callable, save: Callable) -> None:
    """Makes these the functions behind `load` and `save`."""
    _FUNCTIONS.update(load=load, save=save)


def load(source: Any, **arguments: Any) -> Any:
    """The model that a source holds; see `odvae_jax.from_pretrained`."""
    return _function("load")(source, **arguments)


def load_autoencoder(source: Any, **arguments: Any) -> Any:
    """The autoencoder that a source holds; see `odvae_jax.from_pretrained`.

    Raises:
      ValueError: if it holds a model of another kind, such as a denoiser.
    """
    model = load(source, **arguments)
    if not hasattr(model, "reconstruct"):
        raise ValueError(
            f"{printable(source)} holds a {type(model).__name__}, a denoiser; an autoencoder is "
            "needed here."
        )
    return model


def load_as(cls: type, source: Any, **arguments: Any) -> Any:
    """The model of a class that a source holds; see `odvae_jax.from_pretrained`.

    Args:
      cls: the class.
      source: a path, a shipped name or a hub id.
      **arguments: what `odvae_jax.from_pretrained` takes.

    Raises:
      ValueError: if it holds a model of another class.
    """
    model = load(source, **arguments)
    if not isinstance(model, cls):
        found, wanted = (
            f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
            for name in (type(model).__name__, cls.__name__)
        )
        raise ValueError(
            f"{printable(source)} holds {found}, not {wanted}: odvae_jax.from_pretrained loads "
            "whatever model there is."
        )
    return model


def save(model: Any, path: Any, **arguments: Any) -> None:
    """Writes a model into a folder; see `ODVAE.save_pretrained`."""
    _function("save")(model, path, **arguments)


def _function(name):
    if not _FUNCTIONS:  # nobody needed checkpoints before
        importlib.import_module("odvae_jax.checkpoints.pretrained")
    return _FUNCTIONS[name]
