"""Decodes each video of a source once and stores it smaller, so that training reads it fast.

Training reads the packed videos as array_record:DEST. Long videos are cut into parts. Frames are
kept, but their time stamps are not: a variable frame rate becomes its average. If the command is
interrupted, the same command continues after the last complete file. Videos that cannot be used, or
that end too early, are listed, and the others are packed. The exit status is then 1. It is also 1
if a folder cannot be read.
"""

from __future__ import annotations

import argparse
import logging

from odvae_jax.cli.data_inspect import add_workers
from odvae_jax.cli.parsing import Parser, path, positive
from odvae_jax.cli.programs import add_source

EXAMPLE = "odvae data pack sample-clips PACKED --short-side=128"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae data pack`."""
    group = parser.add_argument_group("the videos")
    add_source(group)
    group.add_argument("dest", type=path, help="The folder to write to.")
    group = parser.add_argument_group("what is stored")
    group.add_argument(
        "--short-side",
        type=positive,
        default=256,
        metavar="N",
        help="Scale videos so that the shorter side has N pixels. The default is 256.",
    )
    group.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="The length in seconds of the parts that long videos are cut into. The default is 10.",
    )
    group.add_argument(
        "--kind",
        choices=["h264", "raw"],
        default="h264",
        help="Store H.264 with close key frames (h264, the default), or the pixels (raw).",
    )
    group.add_argument(
        "--crf",
        type=int,
        default=16,
        metavar="N",
        help="The quality of H.264, from 0 to 51. A lower number gives a better quality and a "
        "larger file. The default is 16.",
    )
    group.add_argument(
        "--videos-per-shard",
        type=positive,
        default=256,
        metavar="N",
        help="The number of videos whose parts go into one file. The default is 256.",
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Packs, prints what was packed, and returns 1 if a video or folder could not be used."""
    from odvae_jax.data.packing import pack_videos

    logging.getLogger("odvae_jax").setLevel(logging.WARNING)
    names = ("short_side", "seconds", "kind", "crf", "videos_per_shard", "workers")
    options = {name: getattr(arguments, name) for name in names}
    timeout = arguments.read_timeout
    packing = pack_videos(arguments.source, arguments.dest, timeout=timeout, **options)
    print(packing)
    return 1 if packing.unusable or packing.problems else 0
