"""The process in which the cases of `fuzz` run, so that a crash ends it and not the search.

It reads a case per line, "target seed", and answers with a line of JSON: what came of it.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

MEMORY = 2**30
"""Bytes by which one case may raise the peak of the process."""
_ADDRESSES = 24 * 2**30


def main(module: str, corpus: str) -> None:
    """Answers cases until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    targets = importlib.import_module(module).TARGETS
    if corpus_maker := getattr(importlib.import_module(module), "make_corpus", None):
        corpus_maker(Path(corpus))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, seed = line.split()
        print(json.dumps(run(targets[name], name, int(seed), Path(corpus))), file=answers)
        answers.flush()


def run(target, name: str, seed: int, corpus: Path) -> dict:
    """Runs one case and says what came of it.

    A target gets a source of randomness, the corpus and an empty folder. It returns the path of
    the file whose name an error must show, and a function that uses the file; this returns None,
    or what is wrong with what it got.
    """
    # A folder of its own: readers may keep files open by their paths.
    scratch = Path(tempfile.mkdtemp(prefix="case-", dir=corpus.parent))
    before, start = _peak(), time.monotonic()
    shown, use = target(random.Random(f"{name}:{seed}"), corpus, scratch)
    try:
        wrong = use()
        kind, said = ("finding", wrong) if wrong else ("taken", "")
    except (ValueError, OSError) as error:
        kind, said = _judged(error, shown)
    except BaseException as error:
        kind, said = "finding", f"{type(error).__name__}: {_last_lines(error)}"
    if (grown := _peak() - before) > MEMORY:
        kind, said = "finding", f"took {grown / 2**20:.0f} MiB; {said}"
    seconds = time.monotonic() - start
    shutil.rmtree(scratch, ignore_errors=True)
    return {"kind": kind, "said": said, "seconds": seconds}


def _judged(error, shown):
    """A refusal is good if it is short, can be printed, and names the file."""
    text = str(error)
    if not text.strip():
        return "finding", f"an error that says nothing: {_last_lines(error)}"
    if len(text) > 5000:
        return "finding", f"an error of {len(text)} characters: {text[:200]}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "finding", f"an error that cannot be printed: {text!r}"
    if shown is not None and shown not in text:
        return "finding", f"an error without the file's name: {text[:300]}"
    return "refused", text[:300]


def _last_lines(error):
    return "".join(traceback.format_exception(error))[-1500:]


def _peak():
    # Not getrusage's ru_maxrss, which begins with that of the process that started this one.
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
