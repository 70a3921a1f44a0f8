"""Files of one kind below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def find_files(path: str | os.PathLike, extensions: frozenset[str], what: str) -> list[str]:
    """Returns the files with given extensions anywhere below a folder, sorted.

    Links to folders are followed.

    Args:
      path: a folder, or one file, which is then returned alone, whatever its extension.
      extensions: the extensions to look for, in lower case and with their dot.
      what: what the error messages call such a file, in the singular.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is no such file below the folder.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; expected a folder of {what}s, or one.")
    if root.is_file():
        return [str(root)]
    files = sorted(_files_below(root))
    # macOS leaves notes beside files on disks of other systems; their names begin with "._".
    found = [
        str(p) for p in files if p.suffix.lower() in extensions and not p.name.startswith("._")
    ]
    if not found:
        raise ValueError(
            f"no {what} below {root}: found {len(files)} files, looked for {sorted(extensions)}."
        )
    return found


def _files_below(root: Path) -> Iterator[Path]:
    """Yields all files below a folder; each folder is visited once, even if links form a circle."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)
