"""The code has no findings of ruff's, and every name that it uses exists."""

import json
import re
import subprocess
import sys

from tests.test_readme import ROOT

# Shapes for jaxtyping are strings that no checker can read: Float[Array, "b *z"].
SHAPE = re.compile(r'\w*[Aa]rray, "[^"]*$')


def ruff(*words):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_code_has_no_findings_and_is_formatted():
    for words in (["check", "."], ["format", "--check", "."]):
        code, said = ruff(*words)
        assert code == 0, said


def test_every_name_is_defined():
    words = ["--isolated", "--target-version=py311", "--select=F821", "--output-format=json"]
    found = json.loads(ruff("check", *words, ".")[1])
    unknown = []
    for finding in found:
        row, column = finding["location"]["row"], finding["location"]["column"]
        with open(finding["filename"]) as file:
            before = file.read().splitlines()[row - 1][: column - 1]
        if finding["code"] == "F821" and not SHAPE.search(before):
            unknown.append(f"{finding['filename']}:{row}: {finding['message']}")
    assert found and not unknown, "\n".join(unknown)
