"""Looking up what a config names as "package.module:name"."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any


def import_named(text: str, field: str) -> Any:
    """Imports the module before the colon and returns what it calls the name behind the colon.

    The module is looked for where Python looks, and then in the current folder. Only what a user
    asked for is given to this function: nothing that was read from a checkpoint.

    Args:
      text: the module and the name, such as "my_losses:smooth" or "package.module:Class".
      field: the config's field that holds it, for the error message.

    Raises:
      ValueError: if there is no such module, or no such name in it.
    """
    module_name, _, name = text.partition(":")
    if module_name.endswith(".py"):
        written = f"{os.path.basename(module_name).removesuffix('.py')}:{name}"
        raise ValueError(
            f"{field}: {text!r} names a file; expected a module: write {written!r}, without .py. "
            "It is looked for on Python's path and in the current folder; name another folder "
            "with PYTHONPATH."
        )
    here = os.getcwd()
    if here not in sys.path:  # at the end, so that it hides nothing
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{field}: {text!r} cannot be imported ({error}). The module {module_name!r} is looked "
            f"for on Python's path and in the current folder, {here}; name another folder with "
            "PYTHONPATH."
        ) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ValueError(
            f"{field}: {text!r} does not exist; {nearest(name, public)}the module is "
            f"{getattr(module, '__file__', module_name)}."
        )
    return getattr(module, name)


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names the nearest known name, to be put into an error; empty if none is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
