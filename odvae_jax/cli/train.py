"""Trains a model. Writes checkpoints, logs and, at the end, the model into a folder.

Run the same command again to continue. SIGTERM and Ctrl-C save the run before it ends. On several
machines, run the same command on each, with --coordinator, --processes and --process.
"""

from __future__ import annotations

import argparse
import logging

from odvae_jax.cli.parsing import Parser
from odvae_jax.cli.programs import add_host_options, add_run_options, join_hosts, log_to_stderr

EXAMPLE = "odvae train --config=quick:image --workdir=runs/image --config.steps=100"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae train`."""
    add_run_options(
        parser,
        "What is trained: a config file, or the name of one that comes with the package (v1, v2, "
        "v3, v4, small, finetune, quick, latte). A colon is followed by the argument of the file's "
        "get_config, as in v4:phase1 or finetune:decoder.",
    )
    add_host_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Trains until the config's last step, or until the run is told to stop."""
    import jax

    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.training.loop import train

    use_compilation_cache()
    join_hosts(arguments)
    log_to_stderr(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    # Where a disk is full, asyncio prints a traceback for every array; the library reports it once.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    train(arguments.config, arguments.workdir)
