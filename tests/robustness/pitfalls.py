"""Targets that go wrong on purpose, by which the search itself is tested."""

from __future__ import annotations

import os
import time


def _raises(error):
    def use():
        raise error

    return lambda *_: ("odd", use)


TARGETS = {
    "good": lambda *_: ("odd", lambda: None),
    "refuses": _raises(ValueError("odd is damaged")),
    "unnamed": _raises(ValueError("it is damaged")),
    "silent": _raises(ValueError("")),
    "raises": _raises(IndexError("odd")),
    "aborts": lambda *_: ("odd", os.abort),
    "hangs": lambda *_: ("odd", lambda: time.sleep(60)),
    "grows": lambda *_: ("odd", lambda: (b"x" * (2**30 + 2**28)) and None),
    "differs": lambda *_: ("odd", lambda: "something else was read"),
    "flips": lambda rng, *_: ("odd", lambda: "odd" if rng.random() < 0.5 else None),
}
