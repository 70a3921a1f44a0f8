"""Damage: to bytes, as disks and networks do it, and to JSON values, as people do it."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    10**40,
    "",
    "0",
    "nan",
    "../../../etc/passwd",
    "\x00",
    "\udcff",
    "é" * 300,
    [],
    [[]],
    {},
    {"a": {}},
    [1, "a", None],
]
_ODD_INTEGERS = [0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]


def damaged_bytes(rng: random.Random, content: bytes, others: list[bytes] = ()) -> bytes:
    """Returns bytes with one to four kinds of damage, which `rng` chooses.

    Args:
      rng: the source of randomness.
      content: the bytes; not empty.
      others: other files, pieces of which may be put in.
    """
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not found:
            break
        rng.choice(_KINDS)(rng, found, others)
    return bytes(found)


def _flip(rng, found, _):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        found[_place(rng, found)] ^= 1 << rng.randrange(8)


def _set(rng, found, _):
    for _ in range(rng.choice((1, 4, 16))):
        found[_place(rng, found)] = rng.choice((0, 255, 127, 128, 32, 10, rng.randrange(256)))


def _integer(rng, found, _):
    size = rng.choice((1, 2, 4, 8))
    at = min(_place(rng, found), max(len(found) - size, 0))
    value = rng.choice(_ODD_INTEGERS) % 2 ** (8 * size)
    found[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _cut(rng, found, _):
    del found[rng.randrange(len(found)) :]


def _remove(rng, found, _):
    at = _place(rng, found)
    del found[at : at + rng.choice((1, 2, 4, 16, 512))]


def _repeat(rng, found, _):
    at, size = _place(rng, found), rng.choice((1, 4, 16, 512))
    found[at:at] = found[at : at + size] * rng.choice((1, 2, 50))


def _zeros(rng, found, _):
    at, size = _place(rng, found), rng.choice((4, 64, 4096))
    found[at : at + size] = bytes(min(size, len(found) - at))


def _random(rng, found, _):
    at, size = _place(rng, found), rng.choice((4, 64, 512))
    found[at : at + size] = rng.randbytes(min(size, len(found) - at))


def _splice(rng, found, others):
    other = rng.choice(others) if others else bytes(found)
    at, start = _place(rng, found), rng.randrange(max(len(other), 1))
    found[at : at + 4096] = other[start : start + rng.choice((16, 512, 4096))]


_KINDS = [_flip, _set, _integer, _cut, _remove, _repeat, _zeros, _random, _splice]


def _place(rng, found):
    """A place in the bytes: often near the beginning or the end, where headers are."""
    near = rng.choice((64, 1024, len(found)))
    at = rng.randrange(min(near, len(found)))
    return at if rng.random() < 0.75 else len(found) - 1 - at


def damaged_json(rng: random.Random, value: Any) -> Any:
    """Returns a copy of a JSON value in which one to three places are changed.

    A value becomes an odd one, one of another type or one near to it; a key is removed, renamed or
    added.
    """
    found = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(found))
        if not places:
            return rng.choice(ODD_VALUES)
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.15 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", "", key.upper()))] = holder.pop(key)
        elif kind < 0.3:
            del holder[key]
        elif kind < 0.5:
            holder[key] = _near(rng, holder[key])
        elif kind < 0.6 and isinstance(holder, dict):
            holder[f"new{rng.randrange(9)}"] = rng.choice(ODD_VALUES)
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return found


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def _near(rng, value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, value * 2, str(value), float(value)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value.upper(), [value], value * 50))
    value = copy.deepcopy(value)  # none of its places may come to stand inside itself
    if isinstance(value, list):
        return rng.choice((value + value, value[:-1], [value], {"0": value}))
    return [value]


def deep_json(rng: random.Random) -> str:
    """Returns JSON of great depth, or of one giant number."""
    depth = rng.choice((100, 5_000, 200_000))
    return rng.choice(("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth, "9" * depth))
