"""What runs that were killed left behind."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from odvae_jax.files import part_of, printable
from odvae_jax.transcoding.plan import Job

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None

logger = logging.getLogger(__name__)


def remove_leftovers(jobs: Sequence[Job]) -> None:
    """Removes unfinished files of runs that were killed from the folders that jobs write to.

    A file that another process is writing is locked, and stays. Where files cannot be locked,
    nothing is removed.
    """
    if fcntl is None:
        return
    parts = {part_of(job.target) for job in jobs}
    for folder, suffix in {(job.target.parent, job.target.suffix) for job in jobs}:
        with contextlib.suppress(OSError):
            names = os.listdir(folder)
            parts |= {folder / n for n in names if n[:1] == "." and n.endswith(f"{suffix}.part")}
    for part in parts:
        with contextlib.suppress(OSError):
            _remove(part)


def _remove(part: Path) -> None:
    """Removes a file unless it is locked.

    Raises:
      OSError: if there is no such file, or it is locked.
    """
    with part.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
            part.unlink()
            logger.info("%s, which a killed run left, is removed", printable(part))
