"""Config files and models that come with the package, found by name from any folder.

A name is looked up in this order: a path that exists, what comes with the package, and, for models
only, a repository on the hub. What looks like a local path is never asked of the hub.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from odvae_jax.files import printable

_PACKAGE = Path(__file__).parent
# Ends of names that a path has and a hub id has not.
_FILES = (".py", ".json", ".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_MODEL_FILE = "config.json"
_HUB = "hf://"
_PLAIN_ID = r"[\w-][\w.-]*/[\w.-]+"
_PART = r"\w[\w.-]*"
_WHOLE_ID = re.compile(rf"({_PART}/{_PART})(?:@([\w%.-]+))?(?:/({_PART}(?:/{_PART})*))?/?")


class UnknownNameError(FileNotFoundError):
    """A config or a model was asked for by a name or a path that does not exist."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that is spelled most like `name`; None if none is like it."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, ending in a space; empty if no name is near."""
    near = nearest(name, known)
    return f'Did you mean "{near}"? ' if near else ""


def folder(kind: str) -> Path:
    """The folder that holds the shipped "configs" or "models".

    In an installed wheel it lies in the package. In a checkout it lies beside the package.
    """
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def config_names() -> list[str]:
    """The names of the shipped config files, sorted."""
    return sorted(path.stem for path in folder("configs").glob("[!_]*.py"))


def model_names() -> list[str]:
    """The names of the shipped models, sorted."""
    return sorted(path.parent.name for path in folder("models").glob(f"*/{_MODEL_FILE}"))


def config_path(name: str) -> Path:
    """The config file that a path or a shipped name stands for.

    Raises:
      UnknownNameError: if there is neither such a file nor such a name. The message has the nearest
        name and all that exist.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    names = config_names()
    name = name or "A config without a name"
    if name in names:
        return folder("configs") / f"{name}.py"
    raise UnknownNameError(
        f"{name} does not exist. {did_you_mean(path.stem, names)}Expected a config file, or the "
        f"name of one that comes with the package: {', '.join(names)}."
    )


def model_path(source: str | os.PathLike) -> Path:
    """The local path that `source` stands for: itself if it exists, or a shipped model's folder.

    A path that does not exist is returned as it is: it may be a hub id.
    """
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ValueError(
            f"the model's source is {source!r}; expected a folder, a file of weights, the name of "
            f"a model that comes with the package ({', '.join(model_names())}), or a hub id."
        )
    path = Path(source).expanduser()
    if not path.exists() and str(source) in model_names():
        return folder("models") / str(source)
    return path


class OnHub(NamedTuple):
    """A place on the hub.

    Attributes:
      repository: the repository, owner/name.
      revision: its branch, tag or commit; None for the usual one.
      subfolder: the folder in it; None for the repository itself.
    """

    repository: str
    revision: str | None = None
    subfolder: str | None = None

    def __str__(self) -> str:
        """The place as `on_hub` takes it."""
        at = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        below = f"/{self.subfolder}" if self.subfolder else ""
        return f"{_HUB}{self.repository}{at}{below}"


def on_hub(source: str) -> OnHub | None:
    """The place on the hub that a name stands for; None if it is no hub id.

    A hub id is owner/name, or `hf://owner/name@revision/subfolder`, of which the last two parts may
    be left out, and a slash in a revision is written %2F. Without `hf://`, what looks like a local
    path is none: it starts with ".", "/" or "~", ends like a file, has more than one slash or none,
    or begins with a folder that exists.

    Raises:
      ValueError: if it begins with `hf://` and goes on with something else.
    """
    if source.startswith(_HUB):
        found = _WHOLE_ID.fullmatch(source.removeprefix(_HUB))
        if not found:
            raise ValueError(
                f"{printable(source)} is no place on the hub: expected {_HUB}OWNER/NAME, and "
                "behind it @REVISION, /SUBFOLDER or both, in this order."
            )
        repository, revision, subfolder = found.groups()
        return OnHub(repository, revision and unquote(revision), subfolder)
    if not re.fullmatch(_PLAIN_ID, source) or source.endswith(_FILES):
        return None
    return None if Path(source.partition("/")[0]).is_dir() else OnHub(source)


def without_folders(source: str) -> str:
    """The name of a model as it may be told on another machine: of a local path, the last part.

    The name of a model that comes with the package and a hub id say the same everywhere, and stay.
    """
    if source in model_names() or source.startswith(_HUB):
        return source
    if not Path(source).expanduser().exists() and on_hub(source):
        return source
    return Path(source).name


def unknown_model(source: str | os.PathLike) -> UnknownNameError:
    """The error for a model that is no path, no shipped name and no hub id."""
    names = model_names()
    return UnknownNameError(
        f"{source} does not exist. {did_you_mean(Path(source).name, names)}Expected a folder, a "
        f"file of weights, the name of a model that comes with the package ({', '.join(names)}), "
        "or a hub id such as owner/name or hf://owner/name@revision/subfolder."
    )
