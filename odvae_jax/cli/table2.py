"""Measures the paper's Table 2: denoisers trained on the latents of several autoencoders.

Each autoencoder of config.table2.arms is an arm. For each arm, the command encodes the videos,
trains a denoiser, makes samples, and compares them with real clips. Each of these stages is a
process of its own. If the weights of an arm do not exist, its row is marked "missing". If an arm
fails, the others are still done. If the command is interrupted, the same command continues with the
current stage.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys

from odvae_jax.cli.measuring import add_c3d, add_i3d
from odvae_jax.cli.parsing import Parser
from odvae_jax.cli.programs import add_run_options, log_to_stderr

EXAMPLE = (
    "odvae table2 --config=table2:small --workdir=runs/table2 --config.data.path=moving-shapes "
    "--config.table2.arms=small=small,random=RUN"
)
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae table2`."""
    add_run_options(
        parser,
        "What is compared, and how: a config file of a denoiser with a section `table2`, or the "
        "name of the one that comes with the package: table2:ucf101, table2:sky or table2:small.",
    )
    group = parser.add_argument_group("the metrics")
    add_c3d(group)
    add_i3d(group, "FVD and KVD")
    group = parser.add_argument_group("parts")
    group.add_argument(
        "--arm",
        metavar="NAME",
        help="Do the stages of one arm alone, and report nothing. So several machines can share "
        "the arms. At the end, the same command without it reports all.",
    )
    group.add_argument(
        "--stage",
        metavar="NAME",
        help="Do one stage of --arm alone, in this process: encode, train-STEPS, sample-STEPS or "
        "measure.",
    )


def run(arguments: argparse.Namespace) -> int | None:
    """Does the stages of all arms and reports, or a part of it."""
    import jax

    from odvae_jax.ablate.side_by_side import end_with_parent
    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.metrics.clip_sets import load_networks
    from odvae_jax.table2 import compare, do_arm, do_stage

    log_to_stderr(logging.INFO)
    given = (arguments.config, arguments.workdir)
    networks = {"c3d": arguments.c3d, "i3d": arguments.i3d}
    if arguments.stage is not None:
        if arguments.arm is None:
            raise ValueError("--stage is a part of an arm: name that, --arm.")
        end_with_parent()
        use_compilation_cache()
        load = functools.partial(
            load_networks, **networks, trust_torchscript=arguments.trust_torchscript
        )
        do_stage(*given, arguments.arm, arguments.stage, networks=networks, load_networks=load)
        return 0
    jax.config.update("jax_platforms", "cpu")  # devices are for the processes of the stages
    command = [sys.executable, "-m", "odvae_jax", "table2", *arguments.given]
    if arguments.arm is not None:
        return do_arm(*given, arguments.arm, command, networks=networks)
    return compare(*given, command, networks=networks)
