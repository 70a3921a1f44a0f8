"""Compares variants, initialisations and tiling in one run, as Figure 4 and Table 4 of the paper.

Trains each variant from the same 2D model by tail initialisation, and one variant by each
initialisation, all with the same data and seeds. Then measures all of them on the held-out ends of
the videos, whole and tiled, and says for each claim of the paper whether the results confirm it. If
it is interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import logging
import sys

from odvae_jax.cli.parsing import Parser, path, positive
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
        "is trained first, on single frames of the same videos, once for all seeds.",
    )
    group = parser.add_argument_group("error bars")
    group.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="Train each configuration N times, with config.seed and the seeds after it. The "
        "default is 1. With the same folder and a larger number, only the new ones are trained.",
    )
    group = parser.add_argument_group("side by side")
    group.add_argument(
        "--at-once",
        type=positive,
        default=1,
        metavar="K",
        help="Train K runs at the same time. Each run is a process on one GPU, and writes "
        "train.log into its folder. Several processes can share a GPU. This saves time if the "
        "models are small and leave a GPU idle. The default is 1: one run at a time, on all "
        "devices.",
    )
    group.add_argument(
        "--only",
        metavar="RUN",
        help="Train one run alone, such as v4-tail-seed1, or image for the 2D model, and compare "
        "nothing. So several machines can share the runs.",
    )


def run(arguments: argparse.Namespace) -> int | None:
    """Trains, measures and compares."""
    import jax

    from odvae_jax.ablate import ablate, ablate_side_by_side, train_only
    from odvae_jax.ablate.side_by_side import end_with_parent
    from odvae_jax.compilation import use_compilation_cache

    log_to_stderr(logging.INFO)
    given = (arguments.config, arguments.workdir)
    shared = {"init": arguments.init, "seeds": arguments.seeds}
    if arguments.at_once > 1 and arguments.only is not None:
        raise ValueError("--only trains one run: leave out --at-once, which is for all of them.")
    if arguments.at_once > 1:
        jax.config.update("jax_platforms", "cpu")  # the GPU is for the processes
        # Of an option that is given twice the last one counts.
        command = [sys.executable, "-m", "odvae_jax", "ablate", *arguments.given, "--at-once=1"]
        return ablate_side_by_side(*given, command, at_once=arguments.at_once, **shared)
    use_compilation_cache()
    if arguments.only is not None:
        end_with_parent()
        train_only(*given, arguments.only, **shared)
    else:
        ablate(*given, **shared)
