"""Prints mean and standard deviation of the latents in a folder, per channel.

It also prints the scaling factor: the number by which the latents must be multiplied so that all
samples together have standard deviation 1. For a dataset of latents, it also prints what each
bucket holds. All numbers are read from the files' metadata, or from the dataset's indices; no
latents are read. odvae calibrate writes such numbers into a model.
"""

from __future__ import annotations

import argparse
import collections
import sys

from odvae_jax.cli import files
from odvae_jax.cli.parsing import Parser, path
from odvae_jax.files import counted, line_about, printable

EXAMPLE = "odvae summary LATENTS"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae summary`."""
    group = parser.add_argument_group("the latents")
    group.add_argument(
        "folder",
        type=path,
        help="A folder with files of latents, one such file, or a dataset. A dataset may be at a "
        "URL.",
    )
    files.add_read_timeout(group)


def run(arguments: argparse.Namespace) -> int:
    """Prints the statistics of all latents together; returns 1 if there are problems."""
    from odvae_jax.latents import Statistics, find_latents
    from odvae_jax.latents.chosen import is_dataset

    if is_dataset(arguments.folder):
        return _of_dataset(arguments.folder)
    infos, problems = collections.defaultdict(list), []
    unread: dict[str, str] = {}
    for file in find_latents(arguments.folder, problems=unread):
        try:
            info = files.info_of(file, arguments)
            infos[info.encoder, info.config["latent_channels"]].append((file, info))
        except Exception as error:
            problems.append(line_about(file, error))
    problems += [line_about(name, OSError(reason)) for name, reason in unread.items()]
    most, *others = sorted(infos.values(), key=len, reverse=True) or [[]]
    for file, info in (pair for other in others for pair in other):
        error = ValueError(f"has another encoder ({info.encoder}) than most, and is left out")
        problems.append(line_about(file, error))
    if most:
        frames = sum(info.frames for _, info in most)
        found = f"{counted(len(most), 'file')}, {counted(frames, 'frame')}"
        print(f"{found}, of {printable(most[0][1].model)}")
        print(Statistics.total(info.statistics for _, info in most).table(), flush=True)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        left_out = counted(len(problems), "file")
        print(f"odvae summary: {left_out} with problems", file=sys.stderr)
    return int(bool(problems))


def _of_dataset(place: str) -> int:
    from odvae_jax.latents.summary import summarise

    summary = summarise(place)
    print(summary, flush=True)
    for problem in summary.problems:
        print(printable(problem), file=sys.stderr)
    if summary.problems:
        problems = counted(len(summary.problems), "problem")
        print(f"odvae summary: {problems}", file=sys.stderr)
    return int(bool(summary.problems))
