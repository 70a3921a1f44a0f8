"""Sends videos through encoder and decoder, and writes them as mp4 beside the originals.

Prints the PSNR of each video. Existing files are not replaced, so the same command continues an
interrupted one.
"""

from __future__ import annotations

import argparse

from odvae_jax.cli import files
from odvae_jax.cli.parsing import Parser

EXAMPLE = "odvae reconstruct sample-clips RECONSTRUCTED --ckpt=small --size=128"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae reconstruct`."""
    files.add_files(
        parser,
        "Videos: files, folders with video files anywhere below them, or sample-clips.",
        "A folder; files in it have the same relative paths as the inputs. For a single video, it "
        "may be an .mp4 file.",
    )
    files.add_model(
        parser,
        "The model: the folder of a training run or of a saved model, a file of weights, small (a "
        "model that comes with the package), or a hub id, owner/name or "
        "hf://owner/name@revision/subfolder (docs/weights.md).",
    )
    files.add_scaling(files.add_reading(parser))
    files.add_quality(parser).add_argument(
        "--alone",
        action="store_true",
        help="Write the reconstructions alone, without the originals.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Reconstructs, and returns 1 if a video could not be read to its end."""
    return files.transcode(arguments, "reconstruct")
