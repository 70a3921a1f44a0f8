"""The Fréchet distance of two sets of features (Heusel 2017; for video, Unterthiner 2018)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter of feature vectors, float64; parts of a set can be merged.

    Attributes:
      count: of vectors.
      mean: [d].
      scatter: [d, d], the sum over vectors of the outer product of the deviation from the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> FeatureStatistics:
        """Those of n vectors."""
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Those of both sets together (Chan et al. 1979)."""
        count = self.count + other.count
        between = other.mean - self.mean
        return FeatureStatistics(
            count,
            self.mean + between * (other.count / count),
            self.scatter
            + other.scatter
            + np.outer(between, between) * (self.count * other.count / count),
        )

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """[d, d], with count - 1 in the denominator.

        Raises:
          ValueError: for fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two feature vectors; there are {self.count}.")
        return self.scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mean difference|² + trace(A + B - 2 (A B)^½) of two Gaussians with these statistics.

    The root's trace is that of (A^½ B A^½)^½, a symmetric matrix, so that covariances of fewer
    vectors than dimensions do no harm.

    Raises:
      ValueError: for fewer than two vectors on either side.
    """
    root = _root(a.covariance)
    values = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.sum(np.sqrt(np.clip(values, 0.0, None)))
    difference = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace
    return float(difference @ difference + spread)


def _root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
