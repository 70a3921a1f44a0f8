"""Orders that a seed and an index decide, without anything being kept or shuffled."""

from __future__ import annotations

import functools

import numpy as np

_BLOCK = 10_000  # The number of indices over which the shares are exact.


def turn(seed: int, weights: tuple[float, ...], index: int) -> tuple[int, int]:
    """Returns from which of several things an index is drawn, in exact shares.

    Over every 10,000 indices, each thing is drawn as often as its weight says, in an order that the
    seed decides.

    Args:
      seed: decides the order.
      weights: the share of each thing; together they are 1.
      index: the index, from 0.

    Returns:
      The number of the thing, and the number of indices before this one that it was drawn for.
    """
    if len(weights) == 1:
        return 0, index
    block, place = divmod(index, _BLOCK)
    which, rank, counts = _shares(seed, weights, block)
    return int(which[place]), block * counts[which[place]] + int(rank[place])


def shares(weights: tuple[float, ...]) -> list[int]:
    """Returns how often each of several things is drawn over every 10,000 indices.

    Args:
      weights: the share of each thing; together they are 1.
    """
    return np.diff(np.round(np.cumsum((0.0, *weights)) * _BLOCK).astype(int)).tolist()


@functools.lru_cache(maxsize=8)
def _shares(seed, weights, block):
    counts = shares(weights)
    which = np.repeat(np.arange(len(weights)), counts)
    np.random.default_rng([seed, block, len(weights)]).shuffle(which)
    rank = np.zeros(_BLOCK, int)
    for thing, count in enumerate(counts):
        rank[which == thing] = np.arange(count)
    return which, rank, counts


def shuffled(place: int, count: int, seed: int) -> int:
    """Returns where a permutation of range(count), which the seed decides, puts `place`.

    It is four rounds of a Feistel network on the smallest even number of bits that holds the count,
    repeated until the result lies below the count. So no list needs to be shuffled.
    """
    half = max((count - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    keys = _keys(seed)
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B1) & 0xFFFFFFFF
            mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA77) & 0xFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 13)) & mask)
        place = (left << half) | right
        if place < count:
            return place


@functools.lru_cache(maxsize=64)
def _keys(seed):
    return np.random.SeedSequence(seed).generate_state(4).tolist()
