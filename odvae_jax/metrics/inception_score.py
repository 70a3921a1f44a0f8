"""The Inception score of the classes that a network sees in samples (Salimans et al. 2016)."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float

from odvae_jax.checks import check_array
from odvae_jax.files import counted

_LEAST = 1e-20  # added to probabilities before their logarithm, as TGANv2 does
_FROM_ONE = 1e-3  # how far the sum of a sample's probabilities may be from 1


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """A score with its deviation over splits.

    Attributes:
      mean: the mean of the splits' scores, from 1 to the number of classes. More is better.
      deviation: the standard deviation of the splits' scores; 0 for one split.
    """

    mean: float
    deviation: float


def inception_score(
    probabilities: Float[np.ndarray, "n classes"], *, splits: int = 1, seed: int | None = None
) -> InceptionScore:
    """Returns the exponential of the mean KL divergence of samples' classes from their mean.

    With several splits the score is computed for each split by itself. Splits are smaller, and
    their scores are therefore lower: scores of different numbers of splits cannot be compared.
    TGANv2 takes one split. StyleGAN-V and Latte take ten with `seed=42`.

    Args:
      probabilities: the probabilities of the classes, one row per sample.
      splits: the number of splits, of successive samples and as equal as possible in size.
      seed: the seed of NumPy's `RandomState` with which samples are shuffled first; None leaves
        their order.

    Raises:
      ValueError: if they are no probabilities, or if there are fewer samples than splits.
    """
    check_array("probabilities", probabilities)
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not (p >= 0).all() or not (abs(p.sum(axis=1) - 1) < _FROM_ONE).all():
        raise ValueError(
            "these are no probabilities of classes: every row must hold numbers from 0 on whose "
            "sum is 1."
        )
    if not 1 <= splits <= len(p):
        raise ValueError(f"{counted(len(p), 'sample')} cannot be cut into {splits} splits.")
    if seed is not None:
        p = p[np.random.RandomState(seed).permutation(len(p))]
    edges = [len(p) * i // splits for i in range(splits + 1)]
    scores = [_score(p[i:j]) for i, j in itertools.pairwise(edges)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(p):
    mean = p.mean(axis=0)
    return np.exp(np.mean(np.sum(p * (np.log(p + _LEAST) - np.log(mean + _LEAST)), axis=1)))
