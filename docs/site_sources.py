"""Pages that show files of the repository outside of docs/, an extension of Sphinx."""

import html
import posixpath
from pathlib import Path

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes

ROOT = Path(__file__).parents[1]


def link_to_source(app, doctree):
    """Turns links to files of the repository outside of docs/ into links to pages of the site.

    On GitHub they lead to the file, and here to a page that shows it.
    """
    page = app.env.docname
    shown = app.env.source_pages = getattr(app.env, "source_pages", {})
    shown[page] = set()
    for node in list(doctree.findall(addnodes.download_reference)):
        path = (Path(app.env.doc2path(page)).parent / node["reftarget"]).resolve()
        if not path.is_relative_to(ROOT) or path.is_relative_to(app.srcdir):
            continue
        name = path.relative_to(ROOT).as_posix()
        target = posixpath.relpath(f"source/{name}.html", posixpath.dirname(page) or ".")
        node.replace_self(nodes.reference("", "", *node.children, refuri=target))
        shown[page].add(name)


def source_pages(app):
    """The pages that show files of the repository."""
    for name in sorted(set().union(*getattr(app.env, "source_pages", {}).values())):
        try:
            lexer = get_lexer_for_filename(name).aliases[0]
        except ClassNotFound:
            lexer = "text"
        code = app.builder.highlighter.highlight_block((ROOT / name).read_text(), lexer)
        title = html.escape(name)
        yield f"source/{name}", {"title": title, "body": f"<h1>{title}</h1>{code}"}, "page.html"


def forget_page(app, env, page):
    """Forgets what a page linked to, before it is read again."""
    getattr(env, "source_pages", {}).pop(page, None)


def setup(app):
    # Before Sphinx, which would make each link a download.
    app.connect("doctree-read", link_to_source, priority=400)
    app.connect("html-collect-pages", source_pages)
    app.connect("env-purge-doc", forget_page)
    return {"parallel_read_safe": False}
