"""The site: `make docs` builds it out of the pages beside this file into docs/_build/html."""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]

project = "odvae_jax"
author = "The authors of odvae_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
extensions += [
    "site_commands",
    "site_notebooks",
    "site_reference",
    "site_sources",
]  # beside this file
exclude_patterns = ["_build"]
# Quotes in pages are those of strings.
smartquotes = False

html_theme = "furo"
html_title = "odvae_jax"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"

# Markdown. A link to a heading is checked like a link to a page.
myst_heading_anchors = 4

# Docstrings. What stands in single backquotes is code, as in Markdown (`site_reference.py`).
default_role = "literal"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "special-members": "__call__,__getitem__",
    "exclude-members": "tree_flatten,tree_unflatten",
}
autodoc_typehints = "signature"
maximum_signature_line_length = 88


def digest():
    """Changes with the package, on which what notebooks show depends."""
    found = hashlib.sha256()
    for folder in ("odvae_jax", "configs", "models"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".safetensors"):
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


# Notebooks run once, and again when they or the package change. An error in one is a warning, which
# fails the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / ".cache" / "notebooks" / digest())
nb_execution_timeout = 3600
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # no page loads anything from elsewhere
