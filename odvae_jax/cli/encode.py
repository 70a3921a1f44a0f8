"""Encodes videos of any length into files of latents, in constant memory.

Each video becomes one safetensors file. What is there already is left, so the same command goes on
where it was interrupted. Ends with the mean and standard deviation of all latents, per channel.
"""

from __future__ import annotations

import argparse

from odvae_jax.cli import files
from odvae_jax.cli.parsing import Parser, dtype, not_negative
from odvae_jax.latents import CONTENTS

EXAMPLE = "odvae encode sample-clips LATENTS --ckpt=small --size=128"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae encode`."""
    files.add_files(
        parser,
        "Videos: files, folders with video files anywhere below them, or sample-clips.",
        "A folder, in which files keep their places; or, for one video, a .safetensors file.",
    )
    files.add_model(
        parser,
        "The model: the folder of a training run or of a saved model, a file of weights, small (a "
        "model that comes with the package), or a hub id (docs/weights.md).",
    )
    group = parser.add_argument_group("the latents")
    group.add_argument(
        "--content",
        choices=CONTENTS,
        default="mean",
        help="What of the posterior is stored: its mean (the default), moments (mean and "
        "log-variance), or a sample.",
    )
    group.add_argument(
        "--store",
        type=dtype,
        default="float32",
        metavar="DTYPE",
        help="The dtype in the files: float32 (fp32, the default), float16 (fp16) or bfloat16 "
        "(bf16).",
    )
    group.add_argument(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="The seed of samples. The default is 0.",
    )
    files.add_scaling(files.add_reading(parser))


def run(arguments: argparse.Namespace) -> int:
    """Encodes, and returns 1 if a video could not be read to its end."""
    return files.transcode(arguments, "encode")
