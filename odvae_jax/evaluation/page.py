"""Parts of a page in HTML that holds all its pictures and videos, so that it needs no network."""

from __future__ import annotations

import base64
import html
import mimetypes
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;
color:#1c1c1c;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .8rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
img,video{max-width:100%;height:auto;display:block}video{min-width:min(100%,640px)}
figure{margin:1rem 0}
figcaption,.note{color:#555;font-size:.9rem}
"""


def whole(title: str, parts: Sequence[str]) -> str:
    """Returns a page.

    Args:
      title: its title, which also stands above it.
      parts: its parts in HTML.
    """
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body></html>", ""])


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Returns a table."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        '<div class="wide"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(path: Path, caption: str, *, plays: bool = False) -> str:
    """Returns a picture or a video, whose file becomes part of the page, with its caption.

    Args:
      path: the path of the file.
      caption: what stands below it.
      plays: whether a video begins to play by itself.
    """
    kind = mimetypes.guess_type(path.name)[0]
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    alt = html.escape(caption or path.stem)
    plays_itself = " autoplay" if plays else ""
    media = (
        f'<video controls{plays_itself} loop muted playsinline src="{data}"></video>'
        if path.suffix == ".mp4"
        else f'<img alt="{alt}" src="{data}">'
    )
    return f"<figure>{media}<figcaption>{html.escape(caption)}</figcaption></figure>"
