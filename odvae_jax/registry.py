"""Where models are saved and loaded, for the methods of models that do it.

The package `odvae_jax.checkpoints` knows every model and every layout of files. It puts its two
functions here, so that a model's own file need not know it.
"""

from __future__ import annotations

import importlib
import os
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


class Saved:
    """What every model has that writes it: into a folder, and into a repository on the hub."""

    def save_pretrained(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes `config.json` and `model.safetensors` into a folder.

        Args:
          path: the folder.
          overwrite: whether a model that the folder holds already is replaced.

        Raises:
          FileExistsError: if the folder holds something already and `overwrite` is not set, or if
            it holds files that are not a model's.
        """
        _function("save")(self, path, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        results: str | os.PathLike | None = None,
        license: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        message: str | None = None,
    ) -> str:
        """Writes the model into a repository on the hub, and makes the repository if there is none.

        `config.json`, `model.safetensors` and the model card, `README.md`, are written in one
        commit: all of them or none. `odvae_jax.from_pretrained(repo_id)` gives the same model, to
        the bit. A card that somebody has taken over, in which the comment above the title is
        missing, stays as it is, which the log says. Other files of the repository stay.

        Nothing says where files lie on this machine: a denoiser that was trained with an
        autoencoder at a local path names it by the last part of the path, and by its digest.

        Args:
          repo_id: the repository, such as "owner/name".
          results: what `odvae eval` has measured of the model, for the card: its `results.json`, or
            the folder that holds it.
          license: the hub's name for the licence of the weights, for the card, such as
            "apache-2.0".
          private: whether a repository that is made now is private; None takes what its owner has
            set. A repository that there is stays what it is.
          revision: the branch to write to; it is made if there is none. None is "main".
          token: a token of the hub that may write. None takes the environment's HF_TOKEN, or what
            `hf auth login` has stored.
          message: the message of the commit.

        Returns:
          The address of the commit.

        Raises:
          ValueError: if `repo_id` is none, the results are not this model's, the hub refuses the
            card, or the repository holds a model of another layout.
          OSError: if the hub could not be reached or refused: without a token or the right to
            write, for instance.
        """
        hub = importlib.import_module("odvae_jax.hub")
        return hub.push_to_hub(
            self,
            repo_id,
            results=results,
            license=license,
            private=private,
            revision=revision,
            token=token,
            message=message,
        )


def _function(name):
    if not _FUNCTIONS:  # nobody needed checkpoints before
        importlib.import_module("odvae_jax.checkpoints.pretrained")
    return _FUNCTIONS[name]
