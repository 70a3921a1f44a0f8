"""The options that commands that measure models share, and the messages at their end."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from odvae_jax.cli.files import add_read_timeout
from odvae_jax.cli.parsing import Parser, dtype, not_negative, path, positive
from odvae_jax.files import counted

if TYPE_CHECKING:
    from odvae_jax.evaluation.clips import FixedClips
    from odvae_jax.evaluation.results import Results


def add_clips(parser: Parser, frames: str, size: str, part: str) -> argparse._ArgumentGroup:
    """Adds what the clips are, and returns the group.

    Args:
      parser: to add them to.
      frames: what --frames is if it is left out, as the end of a sentence.
      size: what --size is if it is left out, as the end of a sentence.
      part: what the help says of a model that takes a part of a clip only.
    """
    group = parser.add_argument_group("the clips")
    group.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help=f"The length of a clip. The default is {frames}.",
    )
    group.add_argument(
        "--size",
        type=positive,
        default=256,
        metavar="N",
        help=f"The side of the square clips. The default is {size}.",
    )
    group.add_argument(
        "--clips",
        type=not_negative,
        default=0,
        metavar="N",
        help="Use only the first N videos of a source. The default, 0, uses all.",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="Refuse clips of which a model takes only a part. Without this option, the model is "
        f"measured on that part, and the table says so{part}.",
    )
    add_read_timeout(group)
    return group


def add_computation(group: argparse._ArgumentGroup) -> None:
    """Adds how many clips are computed together, and in which dtype."""
    group.add_argument(
        "--batch",
        type=positive,
        default=1,
        metavar="N",
        help="The number of clips that a device computes at once. The default is 1.",
    )
    group.add_argument(
        "--dtype",
        type=dtype,
        metavar="DTYPE",
        help="The dtype of the computation: float32 (fp32, the default), bfloat16 (bf16, the "
        "default of --speed) or float16 (fp16).",
    )


def add_speed(parser: Parser, title: str, what: str) -> None:
    """Adds the options by which models are timed instead.

    Args:
      parser: to add them to.
      title: the title of the group.
      what: what --speed does, in whole sentences.
    """
    group = parser.add_argument_group(title)
    group.add_argument("--speed", action="store_true", help=what)
    group.add_argument(
        "--work",
        action="append",
        choices=["encode", "decode"],
        help="What --speed times. The default is both.",
    )
    group.add_argument(
        "--largest-batch",
        type=positive,
        metavar="N",
        help="The largest batch that --speed times. It begins with 1 clip, and tries larger "
        "batches while they are faster. The default is 64.",
    )


def add_c3d(group: argparse._ArgumentGroup) -> None:
    """Adds the weights that the Inception score needs."""
    group.add_argument(
        "--c3d",
        metavar="FILE",
        type=path,
        help="The weights of C3D, for the Inception score: conv3d_deepnetA_ucf.npz, with mean2.npz "
        "in the same folder. Or c3d_ucf101.pt, which needs --trust-torchscript "
        "(docs/generated.md).",
    )


def add_i3d(group: argparse._ArgumentGroup, what: str) -> None:
    """Adds the file that stands for I3D, and whether files of TorchScript may run.

    Args:
      group: to add them to.
      what: the metrics that I3D is for, as the help names them.
    """
    group.add_argument(
        "--i3d",
        metavar="FILE",
        type=path,
        help=f"An i3d_torchscript.pt for {what}, run by PyTorch on the CPU. It needs "
        "--trust-torchscript.",
    )
    group.add_argument(
        "--trust-torchscript",
        action="store_true",
        help="Let TorchScript files run. Such a file is a program, and can do everything that you "
        "are allowed to do on this machine. Use only files from people whom you trust.",
    )


def say_memory(error: RuntimeError, program: str, remedies: str) -> int:
    """Says in one line that the device's memory does not suffice, and returns the exit status.

    Args:
      error: what was raised; it is raised again if it is about something else.
      program: the name of the command.
      remedies: options that help.
    """
    if "RESOURCE_EXHAUSTED" not in str(error):  # JAX has no class of its own for it
        raise error
    print(
        f"{program}: the device's memory does not suffice: try {remedies}, shorter or smaller "
        "clips, or --dtype=bfloat16.",
        file=sys.stderr,
    )
    return 1


def complain(results: Results, clips: FixedClips, program: str) -> int:
    """Prints to stderr what went wrong in an evaluation.

    Args:
      results: the numbers.
      clips: the clips that were measured.
      program: the name of the command, for the messages.

    Returns:
      The exit status: 1 if a reconstruction is not finite or a video could not be used.
    """
    not_finite = [row.contender.label for row in results.rows if row.not_finite]
    for label in not_finite:
        print(f"{program}: {label} gives reconstructions that are not finite", file=sys.stderr)
    if results.skipped:
        skipped = counted(len(results.skipped), "video was", "videos were")
        print(f"{program}: {skipped} skipped", file=sys.stderr)
    for problem in clips.problems:
        print(problem, file=sys.stderr)
    return int(bool(not_finite or results.skipped or clips.problems))
