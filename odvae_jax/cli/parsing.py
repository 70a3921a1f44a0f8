"""The parser that all subcommands share, and the types of their options."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence

from odvae_jax.shipped import did_you_mean

DTYPES = {"bfloat16": ("bf16",), "float32": ("fp32", "f32"), "float16": ("fp16", "f16")}
"""The dtypes that a model can have, each with its short names."""
_HOME = re.compile(r"(^|[:*;]\s*)~(?=/|$)")


class UsageError(Exception):
    """A command line that cannot be understood.

    Args:
      message: what was wrong, what was expected, and what to do.
      program: the command whose `--help` says more.

    Attributes:
      message: the message.
      hint: a sentence that says where there is more.
    """

    def __init__(self, message: str, program: str):
        self.message, self.hint = message, f"`{program} --help` says more."
        super().__init__(f"{message}\n{self.hint}")


class Parser(argparse.ArgumentParser):
    """A parser of one subcommand's options, with the nearest name in its errors.

    Args:
      prog: the program's name with the subcommand, such as "odvae encode".
      description: what the subcommand does, in whole sentences.
      example: a command line that works.
    """

    def __init__(self, prog: str, description: str, example: str):
        super().__init__(
            prog=prog,
            description=description.strip(),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.takes_config = False
        self._common = self.add_argument_group("help")
        self._common.add_argument(
            "-h", "--help", action="help", help="Print this page and do nothing else."
        )

    def error(self, message: str):
        """Raises UsageError instead of ending the program."""
        raise UsageError(f"{self.prog}: {message}", self.prog)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses a subcommand's arguments, a config's fields among them if it takes one.

        The result has the arguments themselves, too, as `given`.

        Raises:
          UsageError: for an option, a value or a config that is not known.
        """
        given = argv = list(argv)
        if {"-h", "--help"} & set(argv):
            return self.parse_args(["--help"])
        self._check_names(argv)
        config = None
        if self.takes_config:
            # Importing it takes as long as importing JAX.
            from odvae_jax.cli.configs import read_config

            config, argv = read_config(argv, self.error)
        arguments = self.parse_args(argv)
        if self.takes_config:
            arguments.config = config
        arguments.given = given
        return arguments

    def _check_names(self, argv: list[str]) -> None:
        """Looks for options that do not exist, before any of their values is taken for another."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in argv:
            name = word.partition("=")[0]
            if word == "--":
                return
            if not name.startswith("--") or name in known:
                continue
            if self.takes_config and name.startswith(("--config.", "--noconfig.")):
                continue
            self.error(f"the option {name} is not known. {did_you_mean(name, known)}".strip())


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _at_least(text, 1)


def not_negative(text: str) -> int:
    """An integer of at least 0."""
    return _at_least(text, 0)


def _at_least(text: str, bound: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < bound:
        raise argparse.ArgumentTypeError(f"{value} is not at least {bound}")
    return value


def groups(text: str) -> int | str:
    """The frames of a group, an integer of at least 1; or "auto"."""
    return text if text == "auto" else positive(text)


def gigabytes(text: str) -> int:
    """A number of bytes, given in gigabytes of 1e9 bytes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9 or int(value * 1e9) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of gigabytes above 0")
    return int(value * 1e9)


def seconds(text: str) -> float | None:
    """A time in seconds; None for 0, which means no limit."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds of at least 0")
    return value or None


def positive_number(text: str) -> float:
    """A number greater than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number greater than 0")
    return value


def full_dtype(name: str) -> str:
    """The full name of a dtype that may be given by a short one; other names stay as they are."""
    return next((full for full, short in DTYPES.items() if name.lower() in (full, *short)), name)


def dtype(text: str) -> str:
    """The full name of a dtype that a model can have."""
    name = full_dtype(text)
    if name not in DTYPES:
        known = [word for full, short in DTYPES.items() for word in (full, *short)]
        hint = did_you_mean(text, known)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not known. {hint}There are {', '.join(known)}."
        )
    return name


def path(text: str) -> str:
    """A path, which may not be empty, and whose leading ~ stands for the home folder."""
    return os.path.expanduser(_not_empty(text, "path"))


def source(text: str) -> str:
    """A source of videos, or several; in each of their paths ~ stands for the home folder."""
    return with_home(_not_empty(text, "source of videos"))


def with_home(text: str) -> str:
    """A text in which ~ stands for the home folder wherever a path of a source can begin."""
    return _HOME.sub(lambda found: found[1] + os.path.expanduser("~"), text)


def _not_empty(text: str, what: str) -> str:
    if not text.strip():  # a shell variable that is not set; the current folder is called "."
        raise argparse.ArgumentTypeError(f"the text {text!r} is empty; expected a {what}")
    return text


def labelled(text: str) -> str:
    """A model, perhaps as LABEL=PATH; a leading ~ of the path stands for the home folder."""
    label, equals, rest = text.partition("=")
    if equals and not os.path.exists(text):
        return f"{label}={path(rest)}"
    return path(text)


def labelled_source(text: str) -> tuple[str, str]:
    """A source of videos and its name: NAME=SOURCE, or a source alone with the end of its path."""
    label, equals, rest = text.partition("=")
    if equals and re.fullmatch(r"[\w .-]+", label) and not os.path.exists(text):
        return label.strip(), source(rest)
    found = source(text)
    return os.path.basename(found.rstrip("/").rpartition(":")[2]) or found, found


def part(text: str) -> tuple[int, int]:
    """Returns the numbers i and n of "i/n".

    Raises:
      ValueError: if i is not one of 0 to n - 1.
    """
    which, slash, count = text.partition("/")
    if not (slash and which.isdigit() and count.isdigit() and int(which) < int(count)):
        raise ValueError(f"--shard={text} is not i/n with i from 0 to n - 1.")
    return int(which), int(count)
