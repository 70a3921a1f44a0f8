"""Decodes latents into mp4 videos of the size that the originals had.

They are files of latents, or records of a dataset. What is there already is left, so the same
command goes on where it was interrupted. Latents of another model are refused.
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
        "A folder, in which files keep their places; or, for one file of latents, an .mp4 file. "
        "Records of a dataset are decoded to BUCKET/entry-NUMBER.mp4 in it.",
    )
    parser.add_argument_group("a dataset").add_argument(
        "--records",
        metavar="LIST",
        help="The records to decode, by the numbers of their entries, as in 0,7,10-19. The default "
        "is all.",
    )
    files.add_model(
        parser,
        "The model. The default is the one that the latents were made with, which their files "
        "name, if it is on this machine.",
        required=False,
    )
    group = files.add_reading(parser)
    group.add_argument(
        "--allow-download",
        action="store_true",
        help="Without --ckpt, download the model that the latents name from the hub if it is not "
        "on this machine.",
    )
    files.add_quality(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decodes, and returns 1 if a file of latents could not be decoded."""
    return files.transcode(arguments, "decode")
