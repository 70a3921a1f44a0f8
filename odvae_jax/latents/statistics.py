"""Sums over latents, from which their mean and deviation per channel are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Float64


@dataclasses.dataclass
class Statistics:
    """Sums over the positions of latents, per channel, in float64.

    Attributes:
      count: the number of positions.
      mean: the sum of the posterior's mean, [C].
      square: the sum of the square of the posterior's mean, [C].
      variance: the sum of the posterior's variance, [C].
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    square: np.ndarray | float = 0.0
    variance: np.ndarray | float = 0.0

    def add(
        self, mean: Float[np.ndarray, "*positions c"], logvar: Float[np.ndarray, "*positions c"]
    ) -> None:
        """Adds the mean and the log-variance of posteriors, each [..., C]."""
        axes = tuple(range(mean.ndim - 1))
        self.count += mean[..., 0].size
        self.mean = self.mean + mean.sum(axes, dtype=np.float64)
        self.square = self.square + np.square(mean, dtype=np.float64).sum(axes)
        self.variance = self.variance + np.exp(logvar.astype(np.float64)).sum(axes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the sums as values that JSON can hold."""
        return {n: np.asarray(v).tolist() for n, v in dataclasses.asdict(self).items()}

    @classmethod
    def total(cls, parts: Iterable[dict[str, Any]]) -> Statistics:
        """Returns the statistics of several files together, from what `to_dict` returned."""
        total = cls()
        for part in parts:
            total.count += part["count"]
            for name in ("mean", "square", "variance"):
                setattr(total, name, getattr(total, name) + np.asarray(part[name]))
        return total

    def per_channel(
        self,
    ) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
        """Returns three arrays [C]: the mean, and the standard deviations of means and of samples.

        The variance of samples is the variance of the means plus the mean of the variances.
        """
        mean = np.asarray(self.mean / self.count)
        variance = np.maximum(self.square / self.count - mean**2, 0)
        return mean, np.sqrt(variance), np.sqrt(variance + self.variance / self.count)

    def spread(self) -> float:
        """Returns the standard deviation of the samples of all channels about their common mean."""
        mean, _, sampled = self.per_channel()
        return float(np.sqrt(max(np.mean(sampled**2 + mean**2) - np.mean(mean) ** 2, 0.0)))

    def table(self) -> str:
        """Returns a table of the mean and the standard deviation per channel.

        Below it stands the scaling factor that makes the standard deviation of all sampled latents
        together 1.
        """
        lines = [f"{'channel':>8}{'mean':>10}{'std':>10}{'std, sampled':>14}"]
        for i, row in enumerate(zip(*self.per_channel(), strict=True)):
            lines.append(f"{i:8}{row[0]:10.4f}{row[1]:10.4f}{row[2]:14.4f}")
        spread = self.spread()
        factor = f"{1 / spread:.5f}" if spread else "none, they are all equal"
        lines.append(f"scaling factor, 1 / std of all sampled latents: {factor}")
        return "\n".join(lines)
