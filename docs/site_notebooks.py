"""What a cell of a notebook prints, in one piece, an extension of Sphinx.

MyST-NB merges the pieces in which a cell's output arrives, and puts a line's end between them, also
where the output has none.
"""

from myst_nb.core import render

_merged = render.coalesce_streams


def in_one_piece(outputs):
    """Joins what a cell printed to each stream, in the place of the first piece."""
    pieces, first = [], {}
    for output in outputs:
        name = output.get("name") if output["output_type"] == "stream" else None
        if name in first:
            first[name]["text"] += output["text"]
            continue
        pieces.append(output)
        if name:
            first[name] = output
    return _merged(pieces)


def setup(app):
    render.coalesce_streams = in_one_piece
    return {"parallel_read_safe": True}
