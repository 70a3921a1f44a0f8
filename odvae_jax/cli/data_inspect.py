"""Shows a source of videos as training would see it.

Prints the number of videos, their hours, resolutions, frame rates and other columns, such as
captions. Says which videos cannot be used, and why. Draws four frames of some clips, one row per
clip, as training would see them. The exit status is 1 if no video can be used, or if a folder
cannot be read.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from odvae_jax.cli.parsing import Parser, not_negative, path, positive, seconds
from odvae_jax.cli.programs import add_rate, add_source
from odvae_jax.data import READ_TIMEOUT
from odvae_jax.files import printable

EXAMPLE = "odvae data inspect sample-clips --frames=17 --size=128 --output=sheet.png"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae data inspect`."""
    group = parser.add_argument_group("the videos")
    add_source(group)
    group.add_argument(
        "--frames",
        type=positive,
        default=25,
        metavar="N",
        help="The number of frames of a clip. A video that is too short for one clip cannot be "
        "used. The default is 25.",
    )
    group.add_argument(
        "--holdout",
        type=not_negative,
        default=0,
        metavar="N",
        help="The number of frames at the end of each video that no clip takes, as config.data."
        "holdout keeps them from training. A video needs them beside one clip. The "
        "default is 0.",
    )
    add_rate(group)
    group = parser.add_argument_group("the picture")
    group.add_argument(
        "--output",
        default="contact_sheet.png",
        metavar="FILE",
        type=path,
        help="The picture that is written. The default is contact_sheet.png.",
    )
    group.add_argument(
        "--size",
        type=positive,
        default=256,
        metavar="N",
        help="The side of a clip in pixels. The default is 256.",
    )
    group.add_argument(
        "--clips",
        type=positive,
        default=8,
        metavar="N",
        help="The number of clips in the picture. The default is 8.",
    )
    add_workers(parser)


def add_workers(parser: Parser) -> None:
    """Adds the options for the number of processes and the time that a read may take."""
    group = parser.add_argument_group("the work")
    group.add_argument(
        "--read-timeout",
        type=seconds,
        default=READ_TIMEOUT,
        metavar="S",
        help="The time limit for one read, in seconds; 0 means no limit. If a read takes longer, "
        f"its video is left out. The default is {READ_TIMEOUT:g}.",
    )
    group.add_argument(
        "--workers",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="The number of processes that read. The default is one per CPU core.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the counts, draws the picture, and returns 1 if no video can be used."""
    from odvae_jax.data.inspection import contact_sheet, survey

    logging.getLogger("odvae_jax").setLevel(logging.WARNING)
    options = {name: getattr(arguments, name) for name in ("frames", "holdout", "stride", "fps")}
    options["timeout"] = arguments.read_timeout
    report = survey(arguments.source, workers=arguments.workers, **options)
    print(report)
    # With a rate, a clip spans as many frames at least, unless the video has a smaller one.
    spanned = (arguments.frames - 1) * (1 if arguments.fps else arguments.stride) + 1
    if 0 < arguments.holdout < spanned:
        print(
            f"odvae data inspect: --holdout={arguments.holdout} is less than the {spanned} frames "
            "of a clip: a training measures frames that it trains on.",
            file=sys.stderr,
        )
    if not report.usable:
        return 1
    options |= {name: getattr(arguments, name) for name in ("size", "clips")}
    quiet = logging.getLogger("odvae_jax.data.clips")
    before = quiet.level
    quiet.setLevel(logging.ERROR)  # the report has named the unusable videos
    try:
        print(printable(contact_sheet(arguments.source, arguments.output, **options)))
    finally:
        quiet.setLevel(before)
    return 1 if report.problems else 0
