"""The page of promises names tests that are there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"


def test_every_test_that_the_page_names_is_in_the_file_that_it_names():
    named, file = [], None
    for word in re.findall(r"`([\w/]+\.py|test_\w+)`", PAGE.read_text()):
        if word.endswith(".py"):
            file = ROOT / word
            assert file.is_file(), word
        else:
            named.append((file, word))
    assert len(named) > 30
    missing = [name for file, name in named if f"def {name}(" not in file.read_text()]
    assert not missing


def test_tests_in_italics_and_no_others_belong_to_the_full_set():
    text = PAGE.read_text()
    file = None
    for italic, word in re.findall(r"(\*?)`([\w/]+\.py|test_\w+)`", text):
        if word.endswith(".py"):
            file = (ROOT / word).read_text()
            continue
        marks = file.partition(f"def {word}(")[0].rpartition("\n\n\n")[2]
        full = "\n@pytest.mark.full\n" in f"\n{marks}"
        assert full == (bool(italic) or f"`{word}`*" in text), word
