"""Options that stand behind a source's name or path, such as `test,clips=100`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from odvae_jax.files import printable


def behind_path(text: str) -> tuple[str, str]:
    """Splits "PATH:OPTIONS" into both; the options are empty if there are none.

    A path that exists is one, even if a colon is part of it.
    """
    path, colon, options = text.rpartition(":")
    if not colon or "/" in options or os.path.lexists(text):
        return text, ""
    return path, options


def read_options(
    text: str, source: str, parts: Sequence[str], numbers: Mapping[str, int], example: str
) -> tuple[str, dict[str, int]]:
    """Reads options: the name of a part, and whole numbers, with commas between them.

    Args:
      text: the options, such as "test,clips=100"; empty for none.
      source: what messages call the source.
      parts: the names of parts.
      numbers: the default of each option that is a number, by the option's name.
      example: a correct string for messages.

    Returns:
      The name of the part, empty if none is given, and the numbers by their names.

    Raises:
      ValueError: if there is another option, or a number is not positive.
    """
    part, found = "", dict(numbers)
    for option in filter(None, (word.strip() for word in text.split(","))):
        name, equals, value = option.partition("=")
        if not equals and option in parts and not part:
            part = option
        elif name in numbers and value.isascii() and value.isdigit() and int(value):
            found[name] = int(value)
        else:
            known = [*parts, *(f"{name}=N" for name in numbers)]
            raise ValueError(
                f"{source}: {printable(option)!r} is no option; expected any of "
                f"{', '.join(known)}, as in {example}."
            )
    return part, found
