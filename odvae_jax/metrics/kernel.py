"""The kernel distance of two sets of features (Bińkowski 2018), for video the KVD."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from odvae_jax.checks import check_array

_ROWS = 1024  # of a kernel matrix that are in memory at once


def kernel_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Returns the unbiased squared maximum mean discrepancy of two sets of vectors, in float64.

    It is the mean of k(x, y) over ordered pairs of different vectors of `a`, plus the same for `b`,
    minus twice the mean over all pairs of one vector of each, with k(x, y) = (x·y / d + 1)³. All
    vectors are compared at once, without subsets and without a factor. The distance can be
    negative, since it is unbiased.

    Args:
      a: n vectors of length d.
      b: m vectors of length d.

    Raises:
      ValueError: if they are no arrays of numbers, have different lengths, or if there are fewer
        than two vectors on either side.
    """
    for name, vectors in (("a", a), ("b", b)):
        check_array(name, vectors)
        if vectors.ndim != 2 or len(vectors) < 2:
            raise ValueError(
                f"{name} has shape {vectors.shape}; a kernel distance needs at least two vectors "
                "on either side, [n, d]."
            )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"vectors of length {a.shape[1]} cannot be compared with vectors of length "
            f"{b.shape[1]}: take features of one network."
        )
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return _among(a) + _among(b) - 2 * _sum(a, b) / (len(a) * len(b))


def _among(x):
    """The mean of the kernel over ordered pairs of different vectors."""
    n, d = x.shape
    own = np.sum((np.sum(x * x, axis=1) / d + 1) ** 3)
    return float((_sum(x, x) - own) / (n * (n - 1)))


def _sum(x, y):
    starts = range(0, len(x), _ROWS)
    return float(sum(np.sum((x[i : i + _ROWS] @ y.T / x.shape[1] + 1) ** 3) for i in starts))
