"""Draws reconstruction loss, held-out PSNR and the discriminator's logits of training runs.

Each run has a line of its own, so you can compare several runs in one picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from odvae_jax.cli.parsing import Parser, path

EXAMPLE = "odvae curves runs/image runs/video curves.png"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae curves`."""
    group = parser.add_argument_group("the picture")
    group.add_argument(
        "runs", nargs="+", metavar="RUN", type=path, help="The folder of a training run."
    )
    group.add_argument("output", metavar="OUT.png", type=path, help="The picture that is written.")


def run(arguments: argparse.Namespace) -> None:
    """Draws the picture."""
    from odvae_jax.training.curves import METRICS_FILE, plot_curves

    runs, output = [Path(run) for run in arguments.runs], Path(arguments.output)
    for folder in runs:
        if not (folder / METRICS_FILE).exists():
            raise FileNotFoundError(
                f"{folder / METRICS_FILE} does not exist; expected the folder of a training run."
            )
    if output.is_dir():
        raise ValueError(f"{output} is a folder; expected the name of a picture, such as out.png.")
    plot_curves(runs, output)
