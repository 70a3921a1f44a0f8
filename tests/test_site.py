"""The site that `make docs` builds: every public name is on it, and every link leads somewhere."""

import contextlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import odvae_jax
from odvae_jax.cli import COMMANDS
from tests.browser import opened

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TEXTS = [*sorted(ROOT.glob("*.md")), *PAGES]
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# Packages and modules whose `__all__` is for the package's own use.
INNER = ("odvae_jax.lowering", "odvae_jax.checkpoints.pickles")

_spec = importlib.util.spec_from_file_location("listed", DOCS / "listed.py")
listed = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(listed)


def named(page):
    """The page as a test's name has it."""
    return str(page.relative_to(ROOT))


def exported():
    """The dotted names of all that `__all__` offers, of every module that has one."""
    for info in pkgutil.walk_packages(odvae_jax.__path__, "odvae_jax."):
        path = Path(info.module_finder.path, *info.name.split(".")[-1:])
        file = path / "__init__.py" if info.ispkg else path.with_suffix(".py")
        if info.name.startswith(INNER) or "__all__ =" not in file.read_text():
            continue
        yield from (f"{info.name}.{name}" for name in importlib.import_module(info.name).__all__)
    yield from (f"odvae_jax.{name}" for name in odvae_jax.__all__)


def mentioned(page):
    """The names of the package that a page's examples import, or that its text has in full."""
    text = page.read_text()
    for module, names in re.findall(
        r"^ *from (odvae_jax\S*) import (\([^)]*\)|[^#\n]+)", text, re.MULTILINE
    ):
        yield from (f"{module}.{name}" for name in re.findall(r"(\w+)(?: as \w+)?", names))
    yield from re.findall(r"\bodvae_jax(?:\.[A-Za-z_]\w*)+", text)


def is_public(name):
    """Whether it stands for something other than a module or an attribute of a class."""
    try:
        return not inspect.ismodule(listed.thing(name))
    except (ImportError, AttributeError):  # tests/test_readme.py finds names of nothing
        return False


def is_documented(directive, name):
    """Whether the thing has a docstring, or, for what can have none, whether the page says it."""
    if directive != "data":
        return bool(inspect.getdoc(listed.thing(name)))
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    said = rf"^\.\. py:data:: {name.split('.')[-1]}\n\n(   \S.*\n)*   \S.*\.$"
    return bool(re.search(said, text, re.MULTILINE))


def test_every_public_name_is_on_a_page_of_the_reference():
    names = {name for _, name in listed.listed()}
    things = {id(listed.thing(name)) for name in names}

    def is_shown(name):
        return id(listed.thing(name)) in things

    public = {*exported(), *(name for page in TEXTS for name in mentioned(page))}
    assert {"odvae_jax.encode", "odvae_jax.latents.LatentDataset"} <= public
    missing = [name for name in sorted(filter(is_public, public - names)) if not is_shown(name)]
    assert not missing


def test_every_name_of_the_reference_is_there_once_and_documented():
    names = [name for _, name in listed.listed()]
    assert len(names) == len(set(names)) > 100
    assert [name for what, name in listed.listed() if not is_documented(what, name)] == []


def anchors(page):
    """What a link to a heading of the page may have after its "#", as GitHub makes it."""
    headings = re.findall(r"^#{1,6} (.+?)\s*$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def dead_links(page):
    """The links of a page that lead to no file of the repository, or to no heading of a page."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            yield target


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_every_link_leads_to_a_file_or_a_heading(page):
    assert list(dead_links(page)) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n## What `x` is: 4×8\n\n[a](#a-page) [b](#what-x-is-48) [c](page.md#a-page)\n"
        "[d](#what) [e](page.md#b) [f](other.md) [g](https://example.org)\n"
    )
    assert list(dead_links(page)) == ["#what", "page.md#b", "other.md"]


def test_the_page_about_commands_has_each_of_them_in_the_order_of_the_help():
    text = (DOCS / "commands.md").read_text()
    assert re.findall(r"^## odvae (.*)$", text, re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"^```\{odvae-help\} (.*)$", text, re.MULTILINE) == list(COMMANDS)


def test_every_page_is_in_the_table_of_contents():
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.S | re.M)
    entries = {line for tree in trees for line in tree.splitlines() if line and line[0] != ":"}
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
    if "notebooks**" in entries:
        entries.remove("notebooks**")
        entries |= {page for page in pages if page.startswith("notebooks")}
    assert pages == entries | {"index"}


def build(source, target, *options):
    """Runs Sphinx with the site's settings, warnings as errors, and no notebook."""
    pytest.importorskip("myst_nb", reason="needs what `make docs` installs")
    command = ["-m", "sphinx", "--quiet", "-W", "--keep-going", "-D", "nb_execution_mode=off"]
    return subprocess.run(
        [sys.executable, *command, *options, "-c", DOCS, "-d", target / "trees", source, target],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the site, built without running notebooks."""
    target = tmp_path_factory.mktemp("site")
    done = build(DOCS, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(target.rglob("*.html"))


@pytest.mark.full
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(site):
    names = {page.name for page in site}
    assert {f"{page.stem}.html" for page in PAGES} <= names
    for page in site:
        loaded = re.findall(
            r"<(?:script|link|img|video|source|iframe)\b[^>]*?(?:src|href)=\"([^\"]+)\"",
            page.read_text(),
        )
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], page


@pytest.mark.full
def test_a_signature_shows_dtypes_and_shapes_and_links_types_to_what_they_are(site):
    (page,) = (page for page in site if page.parts[-2:] == ("api", "odvae_jax.html"))
    signature = re.search(r'id="odvae_jax\.encode">(.*?)</dt>', page.read_text(), re.S)[1]
    words = " ".join(re.sub(r"<[^>]+>", "", signature).split())
    assert "video: Float[AnyArray, 'b t h w 3']" in words
    assert 'href="models.html#odvae_jax.parameters.Autoencoder"' in signature


@pytest.mark.full
def test_the_page_about_commands_shows_what_their_help_prints(site):
    (page,) = (page for page in site if page.name == "commands.html")
    text = re.sub(r"<[^>]+>", "", page.read_text())
    for option in ("usage: odvae decode", "--tiling N", "usage: odvae data pack"):
        assert option in text


@pytest.mark.full
def test_a_link_to_a_file_of_the_repository_leads_to_a_page_that_shows_it(site):
    (page,) = (page for page in site if page.name == "tasks.html" and page.parent.name != "api")
    links = re.findall(r'href="(source/[^"#]+)"', page.read_text())
    assert "source/odvae_jax/training/tasks/task.py.html" in links
    assert all((page.parent / link).is_file() for link in links)
    assert "class" in (page.parent / links[0]).read_text()


@pytest.mark.full
def test_no_page_has_an_error_in_a_browser(site, tmp_path):
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(opened(site[0], tmp_path / "profile"))
        wrong = {}
        for page in site:
            browser.get(page.as_uri())
            pictures = browser.execute_script(
                "return [...document.images].filter(i => i.complete && !i.naturalWidth)"
                ".map(i => i.src)"
            )
            if found := [*browser.get_log("browser"), *pictures]:
                wrong[page.name] = found
        assert not wrong


@pytest.mark.full
def test_what_leads_nowhere_fails_the_build(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "index.md").write_text(
        "# Index\n\n```{toctree}\nother\n```\n\n"
        "[a](nowhere.md)\n[b](other.md#nowhere)\n[c](#nothing)\n[d](../no/file.py)\n[e](missing)\n"
        "[good](other.md#a-heading)\n\n![picture](nothing.png)\n"
    )
    (source / "other.md").write_text("# Other\n\n## A heading\n\nText.\n")
    (source / "alone.md").write_text("# In no table of contents\n")
    done = build(source, tmp_path / "site")
    assert done.returncode != 0
    for text in (
        "nowhere.md",
        "'nowhere'",
        "'nothing'",
        "../no/file.py",
        "'missing'",
        "nothing.png",
    ):
        assert text in done.stderr, (text, done.stderr)
    assert "alone.md" in done.stderr and "a-heading" not in done.stderr


NOTEBOOK = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# Notebook

```{code-cell} ipython3
CODE
```
"""


def notebook_built(folder, code):
    """Builds a site of one notebook, which runs, and whose result is kept in the folder."""
    source = folder / "source"
    (source / "notebooks").mkdir(parents=True, exist_ok=True)
    (source / "index.md").write_text("# Index\n\n```{toctree}\n:glob:\n\nnotebooks/*\n```\n")
    (source / "notebooks" / "one.md").write_text(NOTEBOOK.replace("CODE", code))
    run = ("-D", "nb_execution_mode=cache", "-D", f"nb_execution_cache_path={folder / 'cache'}")
    done = build(source, folder / "site", "-E", *run)
    return done, folder / "site" / "notebooks" / "one.html"


@pytest.mark.full
def test_a_notebook_runs_once_and_again_when_it_changes(tmp_path):
    count = f"import time\nfrom pathlib import Path\npath = Path({str(tmp_path / 'runs')!r})\n"
    count += "print('ru', end='', flush=True)\ntime.sleep(1)\n"  # the output comes in two pieces
    count += "print('ns:', path.write_text(path.read_text() + 'x' if path.exists() else 'x'))"
    for code, runs in ((count, 1), (count, 1), (count + "  # changed", 2)):
        done, page = notebook_built(tmp_path, code)
        assert done.returncode == 0, done.stderr
        assert f"runs: {runs}" in page.read_text()


@pytest.mark.full
def test_a_notebook_with_an_error_fails_the_build(tmp_path):
    done, _ = notebook_built(tmp_path, "1 / 0")
    assert done.returncode != 0 and "ZeroDivisionError" in done.stderr
