"""Decodes latents into mp4 videos with the size of the originals.

The latents are files, or records of a dataset. Existing videos are not replaced, so the same
command continues an interrupted one. Latents of another model are refused.
"""

from __future__ import annotations

import argparse

from odvae_jax.cli import files
from odvae_jax.cli.parsing import Parser

EXAMPLE = "odvae decode LATENTS DECODED"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae decode`."""
    files.add_files(
        parser,
        "Latents: files, or folders with files of latents anywhere below them; or one dataset.",
        "A folder; files in it have the same relative paths as the inputs, and records of a "
        "dataset are named BUCKET/entry-NUMBER.mp4. For a single file of latents, it may be an "
        ".mp4 file.",
    )
    parser.add_argument_group("a dataset").add_argument(
        "--records",
        metavar="LIST",
        help="The numbers of the records to decode, as in 0,7,10-19. The default is all.",
    )
    files.add_model(
        parser,
        "The model. The default is the model that made the latents, if it is on this machine. The "
        "files name it.",
        required=False,
    )
    group = files.add_reading(parser)
    group.add_argument(
        "--allow-download",
        action="store_true",
        help="Without --ckpt, allow downloading the model that the latents name from the hub, if "
        "it is not on this machine.",
    )
    files.add_quality(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decodes, and returns 1 if a file of latents could not be decoded."""
    return files.transcode(arguments, "decode")
