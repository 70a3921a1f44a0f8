"""Which file is read and which is written."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from odvae_jax.data.latents import SUFFIX
from odvae_jax.data.video import EXTENSIONS

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to read and one file to write.

    Attributes:
      source: the path of the file to read.
      target: the path of the file to write.
      name: a name that no other job of the run has; the noise of samples depends on it.
    """

    source: Path
    target: Path
    name: str = ""


def plan_jobs(
    inputs: Sequence[str | Path],
    output: str | Path,
    suffix: str,
    find: Callable[[Path], Sequence[str | Path]],
    *,
    skip_output: bool = False,
) -> list[Job]:
    """Plans which file is read and which is written.

    A single file is written to `output` if that has the suffix. All else is written into the folder
    `output`, where the files of a folder keep their places. Files that would get the same name keep
    their own suffix too.

    Args:
      inputs: files and folders.
      output: the file or folder to write.
      suffix: the suffix of the files that are written, such as ".mp4".
      find: returns the files below a folder, or the one file that a path is.
      skip_output: leaves out input files below `output`, for commands that write the kind of file
        that they read. The log says how many are left out.

    Raises:
      FileNotFoundError: if `find` raises it, because there is no such file or folder.
      ValueError: if `find` raises it, because nothing usable is there; if several inputs would go
        into one file; if `output` is a file of another kind; if inputs would be written over.
    """
    output = Path(output)
    if output.suffix in {*EXTENSIONS, SUFFIX} - {suffix} and not output.is_dir():
        raise ValueError(f"{output} is no {suffix} file, which is what is written, and no folder.")
    if output.is_file() and output.suffix != suffix:
        raise ValueError(f"{output} is a file; expected a folder to write to.")
    found = []
    for root in map(Path, inputs):
        files = list(map(Path, find(root)))
        if skip_output and root.is_dir() and output.resolve() != root.resolve():
            files = _without_output(files, output)
        places = [f.relative_to(root) if root.is_dir() else Path(f.name) for f in files]
        found += zip(files, places, strict=True)
    sources = {file.resolve() for file, _ in found}
    if output.suffix == suffix and not output.is_dir():
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} files cannot go into one, {output}: name a folder instead."
            )
        jobs = [Job(found[0][0], output, output.name)]
    else:
        names = collections.Counter(place.with_suffix(suffix) for _, place in found)
        jobs = []
        for file, place in found:
            short, long = place.with_suffix(suffix), place.with_name(place.name + suffix)
            name = short if names[short] == 1 else long
            jobs.append(Job(file, output / name, name.as_posix()))
    if same := [str(job.target) for job in jobs if job.target.resolve() in sources]:
        raise ValueError(f"{same[:4]} would be written over: choose another place to write to.")
    targets = collections.Counter(job.target for job in jobs)
    if doubled := [str(target) for target, count in targets.items() if count > 1]:
        raise ValueError(f"several inputs would go to {doubled[:4]}; encode the folders apart.")
    return jobs


def _without_output(files, output):
    """Returns the files without those that an earlier run wrote into `output`."""
    ours = output.resolve()
    kept = [f for f in files if ours not in (f.resolve(), *f.resolve().parents)]
    if not kept:
        raise ValueError(f"there are no videos but those in {output}, which is to be written.")
    if len(kept) < len(files):
        logger.warning(
            "%d videos in %s are left out: they are taken for what was written there before",
            len(files) - len(kept),
            output,
        )
    return kept
