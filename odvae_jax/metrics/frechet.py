"""The Fréchet distance of two sets of features (Heusel 2017; for video, Unterthiner 2018)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from odvae_jax.checks import check_array


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """The number, mean and scatter of feature vectors of length d, in float64.

    Attributes:
      count: the number of vectors.
      mean: the mean of the vectors, [d].
      scatter: the sum over vectors of the outer product of the deviation from the mean, [d, d].
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> FeatureStatistics:
        """Returns the statistics of n vectors.

        Raises:
          ValueError: if they are no array of numbers.
        """
        check_array("features", features)
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Returns the statistics of both sets of vectors together (Chan et al. 1979)."""
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
        """The covariance of the vectors, with count - 1 in the denominator.

        Raises:
          ValueError: if there are fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two feature vectors; there are {self.count}.")
        return self.scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Returns the Fréchet distance of two Gaussians with these statistics.

    It is |mean(a) - mean(b)|² + trace(A + B - 2 (A B)^½), where A and B are the covariances. The
    trace of (A B)^½ is computed as that of (A^½ B A^½)^½. This matrix is symmetric, so that the
    result is right even with fewer vectors than dimensions.

    Raises:
      ValueError: if there are fewer than two vectors on either side.
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
