"""How near generated clips are to real ones: FVD, KVD and the Inception score of sets of clips.

`clip_sets.py` makes a set of clips into vectors; here sets are compared. Neither knows the model
that made the clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Num

from odvae_jax.files import counted, printable
from odvae_jax.metrics.c3d import FRAMES
from odvae_jax.metrics.clip_sets import (
    COUNT,
    EVERY,
    FIRST,
    PROBABILITIES,
    ClipSet,
    Networks,
    set_of_clips,
)
from odvae_jax.metrics.feature_cache import FeatureCache
from odvae_jax.metrics.frechet import FeatureStatistics, frechet_distance
from odvae_jax.metrics.inception_score import inception_score
from odvae_jax.metrics.kernel import kernel_distance

SIZES = (256, 512, 1024)
"""The numbers of clips that FVD is printed for, beside all."""
TITLES = {
    "fvd16": f"FVD, first {FRAMES} frames ↓",
    "fvd": "FVD, all frames ↓",
    "kvd": "KVD, all frames ↓",
    "is": "Inception score ↑",
    "is10": "Inception score, ten splits ↑",
}
"""What a table calls the metrics, in the order of its rows."""
DIGITS = 2
"""Digits after the point with which a table shows a metric."""
_SPLITS, _SEED = 10, 42  # StyleGAN-V's and Latte's
_NAMED = 10  # clips that a note lists by name
# What of a set's vectors each metric takes.
_NEEDS = {"fvd16": FIRST, "fvd": EVERY, "kvd": EVERY, "is": PROBABILITIES, "is10": PROBABILITIES}


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of the table.

    Attributes:
      metric: the name of the metric, a key of `TITLES`.
      reals: the number of real clips behind it; 0 if the metric needs none.
      generated: the number of generated clips behind it.
      value: the number.
      deviation: the standard deviation over splits; None without splits.
    """

    metric: str
    reals: int
    generated: int
    value: float
    deviation: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All numbers of a comparison of generated clips with real ones.

    Attributes:
      reals: the set of real clips.
      generated: the set of generated clips.
      scores: the numbers, in the order of the table.
      missing: the reason why a metric could not be computed, by the metric's name. One that
        nobody asked for is neither here nor in `scores`.
    """

    reals: ClipSet
    generated: ClipSet
    scores: tuple[Score, ...]
    missing: dict[str, str]


def compare(reals: ClipSet, generated: ClipSet, *, sizes: Sequence[int] = SIZES) -> Comparison:
    """Returns all metrics of a set of generated clips.

    FVD is computed of the first n clips of both sets for every n of `sizes` that both have, then of
    all clips. It is biased: fewer clips give a greater distance, so that only distances of equal n
    can be compared.

    Args:
      reals: the set of real clips.
      generated: the set of generated clips.
      sizes: the numbers of clips that FVD is computed for, beside all.

    Raises:
      ValueError: if the clips of the sets have different shapes, or their vectors are of different
        networks.
    """
    if reals.shape != generated.shape:
        raise ValueError(
            f"{generated.what} clips are {_size(generated)} and {reals.what} ones {_size(reals)}: "
            "only clips of one shape can be compared. Read the real ones with the frames and the "
            "size of the generated ones."
        )
    if any(generated.networks.get(part, own) != own for part, own in reals.networks.items()):
        raise ValueError(
            f"the vectors of {reals.what} clips and of {generated.what} ones are of different "
            "networks: make both sets with the same ones."
        )
    scores: list[Score] = []
    missing = {}
    for metric, part in _NEEDS.items():
        sets = (generated,) if part == PROBABILITIES else (reals, generated)
        lacking = [s.missing.get(part) for s in sets if part not in s.vectors]
        least = _SPLITS if metric == "is10" else 1 if metric == "is" else 2
        few = [s for s in sets if len(s.names) < least]
        if lacking:
            if why := next(filter(None, lacking), None):
                missing[metric] = why
        elif few:
            found = " and ".join(f"{len(s.names)} {s.what}" for s in few)
            missing[metric] = f"needs {counted(least, 'finite clip')} of a kind; found {found}"
        else:
            scores += _scores(metric, [s.vectors[part] for s in sets], sizes)
    if bad := sorted({s.metric for s in scores if not np.isfinite(s.value)}):
        missing |= dict.fromkeys(bad, "the result is not finite")
    finite = tuple(s for s in scores if np.isfinite(s.value))
    return Comparison(reals, generated, finite, missing)


def measure_generated(
    reals: Iterable[tuple[str, Num[np.ndarray, "_ _ _ 3"]]],
    generated: Iterable[tuple[str, Num[np.ndarray, "_ _ _ 3"]]],
    networks: Networks,
    *,
    count: int = COUNT,
    sizes: Sequence[int] = SIZES,
    cache: FeatureCache | None = None,
    batch: int = 1,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> Comparison:
    """Compares generated clips with real ones: FVD, KVD and the Inception score.

    Args:
      reals: the name of the video and the frames of each real clip, as `set_of_clips` takes them.
      generated: the name and the frames of each generated clip.
      networks: the networks.
      count: the number of clips of either kind that are read at most.
      sizes: the numbers of clips that FVD is computed for, beside all.
      cache: where vectors are kept between calls; None computes all.
      batch: the number of clips per device and call.
      devices: the devices to use; None uses all devices of this process.
      progress: whether progress bars are shown.

    Raises:
      ValueError: if there are no clips of a kind, or clips have different shapes or another dtype.
    """
    options = {"count": count, "cache": cache, "batch": batch, "devices": devices}
    options["progress"] = progress
    made = set_of_clips(generated, networks, what="generated", **options)
    real = set_of_clips(reals, networks, what="real", classes=False, **options)
    return compare(real, made, sizes=sizes)


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of a table with one row per number.

    A metric that could not be computed is marked "missing".
    """
    rows = []
    for metric, title in TITLES.items():
        found = [s for s in comparison.scores if s.metric == metric]
        for s in found:
            value = f"{s.value:.{DIGITS}f}"
            if s.deviation is not None:
                value += f" ± {s.deviation:.{DIGITS}f}"
            rows.append([title, str(s.reals) if s.reals else "–", str(s.generated), value])
        if metric in comparison.missing:
            rows.append([title, "–", "–", "missing"])
    return ["metric", "real clips", "generated clips", "value"], rows


def notes(comparison: Comparison) -> list[str]:
    """Returns the lines that a reader of the table has to know, such as the numbers of clips."""
    reals, made = comparison.reals, comparison.generated
    distinct = len(set(reals.names))
    said = [
        f"{counted(len(made.names), 'generated clip')} and "
        f"{counted(len(reals.names), 'real one')} of {counted(distinct, 'video')}, {_size(made)}."
    ]
    for s in (reals, made):
        found = len(s.names) + len(s.not_finite)
        if found < s.asked:
            asked = counted(s.asked, f"{s.what} clip was", f"{s.what} clips were")
            said.append(f"{asked} asked for; {counted(found, 'was', 'were')} found.")
        if s.not_finite:
            listed = ", ".join(map(printable, s.not_finite[:_NAMED]))
            more = len(s.not_finite) - _NAMED
            listed += f" and {more} more" if more > 0 else ""
            said.append(
                f"{len(s.not_finite)} of {counted(found, f'{s.what} clip')} are not finite, and "
                f"are in no number: {listed}."
            )
    if min(len(reals.names), len(made.names)) < COUNT:
        said.append(
            f"Published numbers are of {COUNT} clips. FVD of fewer is greater: compare only "
            "numbers of as many clips."
        )
    missing = dict(comparison.missing)
    if "is" in missing and missing.get("is10") == missing["is"]:
        del missing["is10"]  # one reason for both
    said += [f"{TITLES[m][:-2]} is missing: {why}." for m, why in missing.items()]
    return said


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Returns all numbers of a comparison as values that JSON can hold."""

    def of_set(s: ClipSet) -> dict[str, Any]:
        return {
            "asked": s.asked,
            "clips": len(s.names),
            "videos": len(set(s.names)),
            "not_finite": list(s.not_finite),
        }

    frames, height, width = comparison.generated.shape
    return {
        "frames": frames,
        "height": height,
        "width": width,
        "real": of_set(comparison.reals),
        "generated": of_set(comparison.generated),
        "scores": [dataclasses.asdict(s) for s in comparison.scores],
        "missing": comparison.missing,
    }


def _scores(metric: str, vectors: list[np.ndarray], sizes: Sequence[int]) -> list[Score]:
    """The numbers of one metric, from the reals' vectors and the generated, or these alone."""
    counts = [len(v) for v in vectors]
    if metric == "is":
        return [Score(metric, 0, *counts, inception_score(vectors[0]).mean)]
    if metric == "is10":
        found = inception_score(vectors[0], splits=_SPLITS, seed=_SEED)
        return [Score(metric, 0, *counts, found.mean, found.deviation)]
    if metric == "kvd":
        return [Score(metric, *counts, kernel_distance(*vectors))]
    some = [(n, n) for n in sorted(set(sizes)) if 2 <= n <= min(counts)]
    scores = []
    for pair in [*(p for p in some if p != tuple(counts)), tuple(counts)]:
        a, b = (FeatureStatistics.of(v[:n]) for v, n in zip(vectors, pair, strict=True))
        scores.append(Score(metric, *pair, frechet_distance(a, b)))
    return scores


def _size(clips: ClipSet) -> str:
    frames, height, width = clips.shape
    return f"{counted(frames, 'frame')} of {height}×{width}"
