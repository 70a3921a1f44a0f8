"""Functions that several subcommands share: options of the config, several hosts, and the log."""

from __future__ import annotations

import argparse
import logging

from odvae_jax.cli.parsing import Parser, path, positive, positive_number, source


def add_run_options(parser: Parser, config: str) -> None:
    """Adds `--config`, with options for its fields, and `--workdir`.

    Args:
      parser: to add them to.
      config: a sentence about the config.
    """
    parser.takes_config = True
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--config",
        required=True,
        metavar="NAME_OR_FILE[:ARGUMENT]",
        help=config,
    )
    group.add_argument(
        "--config.FIELD",
        dest="field",
        metavar="VALUE",
        help="Change any field of the config, as in --config.data.path=VIDEOS. The value must have "
        "the type of the field. --config.data.flip sets a field to true, and --noconfig.data.flip "
        "sets it to false.",
    )
    group.add_argument(
        "--workdir",
        required=True,
        metavar="FOLDER",
        type=path,
        help="The folder for everything that is written. If it holds an unfinished run, the same "
        "command continues it.",
    )


def add_source(group: argparse._ArgumentGroup) -> None:
    """Adds the source of videos."""
    group.add_argument(
        "source",
        type=source,
        help="What config.data.path takes: a folder of videos, sample-clips, or another source "
        "(docs/data.md).",
    )


def add_rate(group: argparse._ArgumentGroup) -> None:
    """Adds the options for the distance between the frames of a clip."""
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--stride",
        type=positive,
        default=1,
        metavar="N",
        help="The distance between the frames of a clip, in frames of the video. The default is 1.",
    )
    either.add_argument(
        "--fps",
        type=positive_number,
        metavar="F",
        help="The frames per second of clips, instead of --stride.",
    )


def add_host_options(parser: Parser) -> None:
    """Adds the options for work that several processes share."""
    group = parser.add_argument_group("several hosts")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="The address of the first of several processes. The word auto is for Slurm, TPU pods "
        "and other clusters that JAX recognises.",
    )
    group.add_argument("--processes", type=positive, metavar="N", help="The number of processes.")
    group.add_argument(
        "--process", type=int, metavar="I", help="The number of this process, counted from 0."
    )


def join_hosts(arguments: argparse.Namespace) -> None:
    """Connects this process with the others, if there are any.

    Raises:
      ValueError: if processes are counted, but nobody says where the first one listens.
    """
    import jax

    counted = arguments.processes is not None or arguments.process is not None
    if not arguments.coordinator and counted:
        raise ValueError("--processes and --process need --coordinator: where the first listens.")
    if arguments.coordinator == "auto":
        jax.distributed.initialize()
    elif arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)


def log_to_stderr(level: int | None = None) -> None:
    """Sends the log to stderr, each line with its time.

    Args:
      level: the level of this library's own messages; None leaves it at warnings, like all others.
    """
    from absl import flags
    from absl import logging as absl_logging

    flags.FLAGS.mark_as_parsed()  # there are none here; else the log begins with a warning of absl
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax reports every file that it writes
    if level is not None:
        logging.getLogger("odvae_jax").setLevel(level)
