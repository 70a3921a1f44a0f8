"""The public names: those that the pages of docs/api list. `make docs` and the tests read them."""

import importlib
import re
from pathlib import Path

API = Path(__file__).parent / "api"
DIRECTIVE = re.compile(r"^\.\. (?:py:)?(currentmodule|data|auto\w+):: ([\w.]+)$", re.MULTILINE)


def listed_on(text):
    """Pairs of the directive and the dotted name of everything that a page lists."""
    module = None
    for directive, name in DIRECTIVE.findall(text):
        if directive == "currentmodule":
            module = name
        else:
            yield directive, f"{module}.{name}"


def listed():
    """What all pages list, as pairs of directive and name; a name may come twice."""
    return [pair for page in sorted(API.glob("*.md")) for pair in listed_on(page.read_text())]


def thing(name):
    """The object that a dotted name stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
