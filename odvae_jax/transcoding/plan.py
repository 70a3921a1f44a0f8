"""Which file is read and which is written."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from odvae_jax.data.urls import is_url
from odvae_jax.data.video import EXTENSIONS
from odvae_jax.files import NAME_BYTES, counted, line_about, printable
from odvae_jax.latents import SUFFIX
from odvae_jax.latents.chosen import StoredRecord

logger = logging.getLogger(__name__)
# Who gives such a name means one file, not a folder; no command here writes these kinds.
_NEVER_WRITTEN = (".npy", ".npz", ".pt", ".h5", ".gif", ".png", ".jpg")


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to read and one file to write.

    Attributes:
      source: the path of the file to read, or a record of a dataset of latents.
      target: the path of the file to write.
      name: a name that no other job of the run has; the noise of samples depends on it.
    """

    source: os.PathLike
    target: Path
    name: str = ""


def plan_records(records: Sequence[StoredRecord], output: str | Path) -> list[Job]:
    """Plans into which video each record of a dataset is decoded.

    Args:
      records: the records.
      output: the folder to write. Each bucket has a folder in it, with one video per entry.
    """
    return [
        Job(record, Path(output) / record.bucket / f"entry-{record.entry:08d}.mp4", str(record))
        for record in records
    ]


def plan_jobs(
    inputs: Sequence[str | Path],
    output: str | Path,
    suffix: str,
    find: Callable[[Path], Sequence[str | Path]],
    problems: dict[str, str],
    *,
    skip_output: bool = False,
) -> list[Job]:
    """Plans which file is read and which is written.

    A single file is written to `output` if that has the suffix. All else is written into the folder
    `output`, where the files of a folder keep their places. Files that would get the same name keep
    their own suffix too. Inputs and files for which no job can be made are noted, and the others
    are planned.

    Args:
      inputs: files and folders.
      output: the file or folder to write.
      suffix: the suffix of the files that are written, such as ".mp4".
      find: returns the files below a folder, or the one file that a path is.
      problems: where it is noted, by the path to read, why there is no job for it: `find` raised
        OSError or ValueError, another file has the same target, the target is a file that is read,
        or the target's name is too long.
      skip_output: leaves out input files below `output`, for commands that write the kind of file
        that they read. The log says how many are left out.

    Raises:
      FileNotFoundError: if there is one input alone, and `find` raises it for that.
      ValueError: if there is one input alone, and nothing usable is there; if several inputs would
        go into one file; if `output` is a file of another kind; if all outputs are inputs; if an
        input or `output` is a URL.
    """
    for place in filter(is_url, (*inputs, output)):
        raise ValueError(
            f"{printable(place)} is a URL; expected a file or folder of this machine. Only "
            "`odvae encode --to=shards` reads videos from URLs and writes latents to them."
        )
    output = Path(output)
    shown = printable(output)
    if output.suffix in {*EXTENSIONS, SUFFIX, *_NEVER_WRITTEN} - {suffix} and not output.is_dir():
        raise ValueError(
            f"{shown} is no {suffix} file, which is what is written, and no folder. Give the name "
            f"of a folder, or for one input a name that ends in {suffix}."
        )
    if output.is_file() and output.suffix != suffix:
        raise ValueError(f"{shown} is a file; expected a folder to write to.")
    found = []
    errors: dict[Path, Exception] = {}
    for root in map(Path, inputs):
        try:
            files = list(map(Path, find(root)))
            if skip_output and root.is_dir() and _real(output) != _real(root):
                files = _without_output(files, output)
        except (OSError, ValueError) as error:
            errors[root] = error
            continue
        places = [f.relative_to(root) if root.is_dir() else Path(f.name) for f in files]
        found += zip(files, places, strict=True)
    if not found and len(errors) == 1:
        raise next(iter(errors.values()))
    problems |= {str(root): line_about(root, error) for root, error in errors.items()}
    if found and output.suffix == suffix and not output.is_dir():
        if (count := len(found) + len(errors)) > 1:
            raise ValueError(f"{count} files cannot go into one, {shown}: name a folder instead.")
        jobs = [Job(found[0][0], output, output.name)]
    else:
        names = collections.Counter(place.with_suffix(suffix) for _, place in found)
        jobs = []
        for file, place in found:
            short, long = place.with_suffix(suffix), place.with_name(place.name + suffix)
            name = short if names[short] == 1 else long
            jobs.append(Job(file, output / name, name.as_posix()))
    sources = {_real(file) for file, _ in found}
    same = {job for job in jobs if _real(job.target) in sources}
    if same and len(same) == len(jobs):
        names = [printable(job.target) for job in jobs[:4]]
        raise ValueError(f"{names} would be written over: choose another place to write to.")
    return _possible(jobs, same, problems)


def _possible(jobs: list[Job], same: set[Job], problems: dict[str, str]) -> list[Job]:
    """Returns the jobs whose target can be written, and no other job's is; notes the others.

    Args:
      jobs: the jobs.
      same: those whose target is a file that is read.
      problems: where it is noted why a job is left out.
    """
    targets = collections.Counter(job.target for job in jobs)
    kept = []
    for job in jobs:
        source, name = printable(job.source), job.target.name
        if job in same:
            problems[str(job.source)] = (
                f"{source}: its output, {printable(job.target)}, is a file that is read, which "
                "would be written over; choose another place to write to."
            )
        elif targets[job.target] > 1:
            problems[str(job.source)] = (
                f"{source}: several inputs would go to {printable(job.target)}; name their folders "
                "in calls of their own."
            )
        elif len(os.fsencode(name)) > NAME_BYTES:
            problems[str(job.source)] = (
                f"{source}: the name of its output has {len(os.fsencode(name))} bytes, and files "
                f"may have {NAME_BYTES}; name it alone, with an output file that has a short name."
            )
        else:
            kept.append(job)
    return kept


def _real(path: Path) -> str:
    """Returns a path without links; links that lead nowhere, or in a circle, stay."""
    return os.path.realpath(path)


def _without_output(files, output):
    """Returns the files without those that an earlier run wrote into `output`."""
    ours = Path(_real(output))
    kept = [f for f in files if ours not in (Path(_real(f)), *Path(_real(f)).parents)]
    if not kept:
        raise ValueError(
            f"there are no videos but those in {printable(output)}, which is to be written."
        )
    if len(kept) < len(files):
        logger.warning(
            "%s in %s left out: taken for what was written there before",
            counted(len(files) - len(kept), "video"),
            printable(output),
        )
    return kept
