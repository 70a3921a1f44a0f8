"""Signatures and docstrings on the pages of docs/api, an extension of Sphinx."""

import dataclasses
import inspect
import re

import listed
from sphinx import addnodes

# The public names by the objects that they stand for.
NAMES = {id(listed.thing(name)): name for _, name in listed.listed()}
# For each function the names in its annotations that are public, with the names in full.
TYPES = {}


class _Written(str):
    """An annotation as it is written in the source, which a signature shows without quotes."""

    def __repr__(self):
        return str(self)


def signature_as_written(app, what, name, thing, options, signature, returned):
    """Shows types as the source has them, such as `Float[AnyArray, "b t h w 3"]`."""
    function = thing
    if what == "class":
        function = thing.__init__
        if function is object.__init__ or issubclass(thing, tuple | BaseException):
            return None
    elif what not in ("function", "method"):
        return None
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    TYPES[name] = _public_types(found, function)
    parameters = list(found.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    written = [
        p.replace(annotation=_written(p.annotation), default=_shortened(p.default))
        for p in parameters
    ]
    given = found.return_annotation
    if what == "class" or given is inspect.Signature.empty:
        given = None
    return str(inspect.Signature(written)), given and str(_written(given))


def _public_types(signature, function):
    """The public names that annotations hold, each with its name in full."""
    known = getattr(inspect.unwrap(function), "__globals__", {})
    annotations = [p.annotation for p in signature.parameters.values()]
    text = " ".join(a for a in [*annotations, signature.return_annotation] if isinstance(a, str))
    types = {}
    for word in set(re.findall(r"[A-Za-z_][\w.]*", text)):
        value = known.get(word.partition(".")[0])
        for part in word.split(".")[1:]:
            value = getattr(value, part, None)
        if id(value) in NAMES:
            types[word] = NAMES[id(value)]
    return types


def link_types(app, doctree):
    """Links the types in signatures to what they are, and no type to what has the same name."""
    for signature in doctree.findall(addnodes.desc_signature):
        types = TYPES.get((signature["ids"] or [""])[0], {})
        for node in list(signature.findall(addnodes.pending_xref)):
            if full := types.get(node["reftarget"]):
                node["reftarget"] = full
            else:
                node.replace_self(node.children)


def _written(annotation):
    if annotation is inspect.Parameter.empty or not isinstance(annotation, str):
        return annotation
    return _Written(annotation)


def _shortened(default):
    """Defaults whose representation is no Python, such as functions, are shown as "..."."""
    if default is inspect.Parameter.empty:
        return default
    if dataclasses.is_dataclass(default) or repr(default).startswith("<"):
        return _Written(getattr(default, "__name__", "..."))
    return default


def as_markdown(app, what, name, thing, options, lines):
    """Reads docstrings as Markdown where that differs from reStructuredText: `code` and |x|.

    What names a page of docs/ becomes a link to it.
    """
    parts = re.split(r"`([^`]+)`", "\n".join(lines))
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    parts[::2] = [re.sub(r"docs/([\w-]+)\.md", r":doc:`\1 </\1>`", part) for part in parts[::2]]
    parts[1::2] = [rf"``{part}``\ " for part in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app):
    app.connect("autodoc-process-signature", signature_as_written)
    # Before Napoleon.
    app.connect("autodoc-process-docstring", as_markdown, priority=400)
    app.connect("doctree-read", link_types)
    return {"parallel_read_safe": False}
