"""Every name that the code uses exists, and every name that it brings in is used."""

import json
import re
import subprocess
import sys

from tests.test_readme import ROOT

CODE = ("odvae_jax", "benchmarks", "configs", "tests", "train.py", "eval.py")
# Shapes for jaxtyping are strings that no checker can read: Float[Array, "b *z"].
SHAPE = re.compile(r'\w*[Aa]rray, "[^"]*$')


def findings(*rules):
    """Of ruff, by the rules that it takes from pyflakes."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--target-version=py311",
         f"--select={','.join(rules)}", "--output-format=json", *CODE],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout)


def place(finding):
    """The place of a finding, what it says, and the line up to there."""
    row, column = finding["location"]["row"], finding["location"]["column"]
    with open(finding["filename"]) as file:
        before = file.read().splitlines()[row - 1][: column - 1]
    return f"{finding['filename']}:{row}: {finding['message']}", before


def test_every_name_is_defined():
    found = [place(finding) for finding in findings("F821")]
    shapes = [what for what, before in found if SHAPE.search(before)]
    assert shapes, "no shape was found: the search does not see the code"
    assert not [what for what, before in found if not SHAPE.search(before)]


def test_nothing_is_imported_or_set_that_nothing_uses():
    assert not [place(finding)[0] for finding in findings("F401", "F811", "F841")]
