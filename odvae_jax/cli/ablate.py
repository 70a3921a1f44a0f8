"""Compares variants, initialisations and tiling in one run, as Figure 4 and Table 4 of the paper.

Trains every variant from the same 2D model by tail initialisation, and one of them by each
initialisation, all from the same data and seed. Then measures them on the videos' held-out ends,
whole and tiled. The same command continues what was interrupted, run by run and step by step.
"""

from __future__ import annotations

import argparse
import logging

from odvae_jax.cli.parsing import Parser, path
from odvae_jax.cli.programs import add_run_options, log_to_stderr

EXAMPLE = "odvae ablate --config=ablation --workdir=runs/ablation --config.data.path=VIDEOS"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae ablate`."""
    add_run_options(
        parser,
        "What is compared: a config file with a section `ablation`, or the name of the one that "
        "comes with the package, ablation.",
    )
    parser.add_argument_group("the start").add_argument(
        "--init",
        metavar="MODEL",
        type=path,
        help="A 2D model that all trainings start from, such as an SD-VAE. Without it, a 2D model "
        "is trained first, on single frames of the same videos.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains, measures and compares."""
    from odvae_jax.ablate import ablate
    from odvae_jax.compilation import use_compilation_cache

    log_to_stderr(logging.INFO)
    use_compilation_cache()
    ablate(arguments.config, arguments.workdir, init=arguments.init)
