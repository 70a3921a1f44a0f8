"""Prints mean and standard deviation of the latents in a folder, per channel.

It also prints the scaling factor that makes the deviation of samples 1, which is what a diffusion
model wants. The numbers are in the files: no latents are read.
"""

from __future__ import annotations

import argparse

from odvae_jax.cli.parsing import Parser, path

EXAMPLE = "odvae summary LATENTS"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae summary`."""
    parser.add_argument_group("the latents").add_argument(
        "folder", type=path, help="The folder with the files of latents; or one file."
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the statistics of all files of latents together."""
    from odvae_jax.data.latents import LatentsError, LatentsFile, Statistics, find_latents

    infos = [LatentsFile(path).info for path in find_latents(arguments.folder)]
    encoders = {info.encoder for info in infos}
    if len(encoders) > 1:
        raise LatentsError(
            f"{arguments.folder} holds latents of {len(encoders)} different encoders."
        )
    frames = sum(info.frames for info in infos)
    print(f"{len(infos)} files, {frames} frames, of {infos[0].model}")
    print(Statistics.total(info.statistics for info in infos).table())
