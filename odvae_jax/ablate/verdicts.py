"""Means over seeds with their spread, and what they say about the claims of the paper."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import ml_collections
import scipy.stats

from odvae_jax.ablate.plan import Arm, arms

CONFIDENCE = 0.95
"""The share of intervals that hold the true mean, if values are spread like a Gaussian."""
SIGNS = {"psnr": 1, "ssim": 1, "lpips": -1}
"""1 for a metric of which more is better, -1 for one of which less is better."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Values of several seeds: their mean, and how far they are apart.

    Attributes:
      seeds: the number of values.
      mean: the mean.
      deviation: the standard deviation, with `seeds` - 1 in the denominator; None for one value.
      low: the lower end of the 95% t-interval of the mean; None for one value.
      high: the upper end of that interval; None for one value.
    """

    seeds: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of values, of which there is at least one."""
        count, mean = len(values), statistics.fmean(values)
        if count < 2:
            return cls(count, mean)
        deviation = statistics.stdev(values, mean)
        quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
        half = quantile * deviation / math.sqrt(count)
        return cls(count, mean, deviation, mean - half, mean + half)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the paper says: that something is better than something else.

    Attributes:
      text: the claim in words.
      better: the name of the better configuration, and "whole" or "tiled".
      worse: the name of the other one, and "whole" or "tiled".
      metrics: the names of the metrics that the paper claims it of.
    """

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]
    metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the seeds say about a claim, in one metric.

    Attributes:
      claim: the claim.
      metric: the metric's name.
      gain: the differences, paired by seed. They are positive where the claim holds.
      word: "confirmed" if the 95% t-interval of the gain lies above 0, "contradicted" if it lies
        below 0, else "not decidable with N seeds".
    """

    claim: Claim
    metric: str
    gain: Spread
    word: str


def verdict(claim: Claim, metric: str, better: Sequence[float], worse: Sequence[float]) -> Verdict:
    """Returns what values say about a claim.

    Args:
      claim: the claim.
      metric: the metric's name, which decides whether more or less of it is better.
      better: the value of each seed, of what the claim calls better.
      worse: the values of the other one, with the same seeds in the same order.
    """
    sign = SIGNS[metric]
    gain = Spread.of([sign * (b - w) for b, w in zip(better, worse, strict=True)])
    if gain.low is None:
        return Verdict(claim, metric, gain, "not decidable with one seed")
    if gain.low > 0:
        return Verdict(claim, metric, gain, "confirmed")
    if gain.high < 0:
        return Verdict(claim, metric, gain, "contradicted")
    return Verdict(claim, metric, gain, f"not decidable with {gain.seeds} seeds")


def claims(config: ml_collections.ConfigDict) -> list[Claim]:
    """Returns the claims of section 4.3 of the paper that a config's configurations are about.

    Variant 1 is better than variant 4, and that is better than variants 2 and 3. Tail
    initialisation is better than average and random initialisation. Tiling costs a little.
    """
    every, found = ("psnr", "ssim", "lpips"), []

    def add(text, better: Arm, worse: Arm, metrics, parts=("whole", "whole")):
        if {better, worse} <= chosen:
            sides = ((arm.name, part) for arm, part in zip((better, worse), parts, strict=True))
            found.append(Claim(text, *sides, metrics))

    chosen = set(arms(config))
    for better, worse in ((1, 4), (4, 2), (4, 3)):
        pair = Arm(f"v{better}", "tail"), Arm(f"v{worse}", "tail")
        add(f"variant {better} is better than variant {worse}", *pair, every)
    own = f"v{config.ablation.variant}"
    tail = Arm(own, "tail")
    for method in ("average", "random"):
        text = f"tail initialisation is better than {method} initialisation"
        add(text, tail, Arm(own, method), ("psnr", "lpips"))
    add("whole clips are better than tiled ones", tail, tail, ("psnr", "lpips"), ("whole", "tiled"))
    return found


def verdicts(
    config: ml_collections.ConfigDict,
    values: Mapping[tuple[str, str], Mapping[str, Mapping[int, float]]],
) -> list[Verdict]:
    """Returns a verdict per claim and metric, as far as there is a seed to compare with.

    Args:
      config: the ablation's config.
      values: the value of each seed, by the configuration's name and "whole" or "tiled", then by
        the metric's name, then by the seed.
    """
    said = []
    for claim in claims(config):
        for metric in claim.metrics:
            a, b = (values[side].get(metric, {}) for side in (claim.better, claim.worse))
            if common := sorted(a.keys() & b.keys()):
                said.append(verdict(claim, metric, [a[s] for s in common], [b[s] for s in common]))
    return said
