"""The command `odvae`: a table of its subcommands, each a module of this package.

A subcommand's module is imported only when the subcommand is chosen, so that help and version need
neither JAX nor NumPy. The module of "data inspect" is `data_inspect`. A module has:

- a docstring, which is the description that `--help` prints;
- `EXAMPLE`, a command line that works;
- `GOES_ON`, whether the same command continues an interrupted one;
- `add_arguments(parser)`, which adds the options to a `parsing.Parser`;
- `run(arguments)`, which does the work and returns an exit status, or None for 0.

To add a subcommand, write its module and add its line to `COMMANDS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Sequence

import odvae_jax
from odvae_jax.cli.parsing import Parser, UsageError
from odvae_jax.files import one_line, printable
from odvae_jax.shipped import UnknownNameError, did_you_mean

COMMANDS = {
    "demo": "Show what the small model does with three short videos.",
    "train": "Train a model, or continue its training.",
    "eval": "Compare models on videos, or generated videos with real ones, or time models.",
    "table1": "Measure the paper's Table 1, or time its models.",
    "table2": "Measure the paper's Table 2: denoisers on latents of several autoencoders.",
    "encode": "Encode videos into files of latents.",
    "decode": "Decode files of latents into videos.",
    "reconstruct": "Send videos through encoder and decoder, and compare.",
    "sample": "Make videos with a denoiser that was trained on latents.",
    "recognise": "Count how many samples show the class that they were made for.",
    "summary": "Print the statistics of the latents in a folder.",
    "data inspect": "Show a source of videos as training would see it.",
    "data collect": "Collect pictures and clips from packages, for training.",
    "data pack": "Decode videos once and store them smaller, for training.",
    "convert": "Convert weights between layouts, and inflate image models.",
    "push": "Write a model to the hub, with a model card.",
    "calibrate": "Measure a model's latents, and write their scale into the model.",
    "ablate": "Train and compare variants and initialisations.",
    "curves": "Draw the curves of training runs.",
    "variants": "Print the paper's models and their sizes.",
}
"""Each subcommand with a sentence about it, in the order of the help."""

USAGE_STATUS = 2
"""Exit status for a command line that cannot be understood."""
FAILURE_STATUS = 1
"""Exit status for work that could not be done."""
INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C, as shells have it."""
_ARENA_MAX, _HEAPS = -8, 2  # the first as malloc.h of glibc has it
_LONGEST = 5000  # characters of an error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
      argv: the arguments without the program's name; None takes them from `sys.argv`.

    Returns:
      0 if all went well, 1 if the work failed, 2 if the command line cannot be understood, 130
      after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _share_heaps()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that a terminal cannot show ends nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        name, rest = _command(argv)
        if name is None:
            return 0
        module = importlib.import_module(f"{__name__}.{name.replace(' ', '_')}")
        parser = Parser(f"odvae {name}", module.__doc__, module.EXAMPLE)
        module.add_arguments(parser)
        arguments = parser.parse(rest)
    except UsageError as error:
        _say(error, argv)
        return USAGE_STATUS
    except SystemExit as ended:  # argparse ends the program after --help
        return int(ended.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    return _run(module, arguments, f"odvae {name}", argv)


def _share_heaps() -> None:
    """Lets the threads of this process and its children allocate from two heaps, with glibc.

    By default each of some hundred threads gets a heap of its own. Memory that is freed in one
    cannot be used in another, so that a long training grows by some percent per hour.
    MALLOC_ARENA_MAX in the environment decides instead, if it is set.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and sys.platform == "linux":
        os.environ["MALLOC_ARENA_MAX"] = str(_HEAPS)  # read when a child starts
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_ARENA_MAX, _HEAPS)


def _run(module, arguments, program: str, argv: list[str]) -> int:
    """Does the work, and says in one line what went wrong."""
    try:
        return module.run(arguments) or 0
    except UsageError as error:
        _say(error, argv)
        return USAGE_STATUS
    except UnknownNameError as error:  # a mistyped name is a mistake of the command line
        _say(f"{program}: {error}", argv)
        return USAGE_STATUS
    except (ValueError, OSError, FloatingPointError) as error:
        _say(f"{program}: {error}", argv)
        return FAILURE_STATUS
    except RuntimeError as error:
        from odvae_jax.compilation import DeviceMemoryError
        from odvae_jax.data.processes import WorkerError

        if not isinstance(error, (WorkerError, DeviceMemoryError)):
            raise
        _say(f"{program}: {error}", argv)
        return FAILURE_STATUS
    except KeyboardInterrupt:
        goes_on = "; the same command goes on" if module.GOES_ON else ""
        print(f"{program}: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED_STATUS


def _say(error: UsageError | str, argv: list[str]) -> None:
    """Prints an error in one line, and the hint of a UsageError in another.

    Names may hold line breaks and bytes that are no UTF-8, those of the command line first of all.
    """
    text, hint = (error.message, error.hint) if isinstance(error, UsageError) else (error, "")
    words = {part for word in argv for part in (word, word.partition("=")[2])}
    for word in sorted(words, key=len, reverse=True):
        if not word.isprintable():
            text = text.replace(word, printable(word))
    print(one_line(Exception(text), length=_LONGEST), file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)


def _command(argv: list[str]) -> tuple[str | None, list[str]]:
    """The subcommand's name and its arguments; None if help or version was asked for and printed.

    Raises:
      UsageError: if there is no such subcommand.
    """
    if not argv:
        raise UsageError(f"odvae: name a command: {', '.join(COMMANDS)}.", "odvae")
    first = argv[0]
    if first in ("-h", "--help"):
        print(_help())
        return None, []
    if first == "--version":
        print(f"odvae {odvae_jax.__version__}")
        return None, []
    if first.startswith("-"):
        hint = did_you_mean(first, ["--help", "--version"])
        raise UsageError(f"odvae: {first} is not known. {hint}A command comes first.", "odvae")
    if first in COMMANDS:
        return first, argv[1:]
    group = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if not group:
        hint = did_you_mean(" ".join(argv[:2]), COMMANDS) or did_you_mean(first, COMMANDS)
        raise UsageError(
            f"odvae: the command {first!r} is not known. {hint}There are {', '.join(COMMANDS)}.",
            "odvae",
        )
    second = argv[1] if len(argv) > 1 else ""
    if second in ("-h", "--help"):
        print(_help(group))
        return None, []
    if f"{first} {second}" in group:
        return f"{first} {second}", argv[2:]
    hint = did_you_mean(f"{first} {second}", group) if second else ""
    known = f"the command '{first} {second}' is not known" if second else "name a command"
    raise UsageError(f"odvae: {known}. {hint}There are {', '.join(group)}.", f"odvae {first}")


def _help(names: Sequence[str] = tuple(COMMANDS)) -> str:
    lines = [f"  {name:14}{COMMANDS[name]}" for name in names]
    return "\n".join(
        [
            "usage: odvae COMMAND [ARGUMENT ...]",
            "",
            "OD-VAE in JAX: a causal video autoencoder, 4× in time and 8×8 in space.",
            "",
            "commands:",
            *lines,
            "",
            "`odvae COMMAND --help` explains a command's options and shows an example.",
            "`odvae --version` prints the version.",
        ]
    )
