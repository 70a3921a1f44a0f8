"""Distances of sets of features, and the Inception score, against what released code printed."""

import json
import pathlib

import numpy as np
import pytest
import scipy.linalg

from odvae_jax.metrics.frechet import FeatureStatistics, frechet_distance
from odvae_jax.metrics.inception_score import inception_score
from odvae_jax.metrics.kernel import kernel_distance

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
ARRAYS = np.load(FIXTURES / "latte.npz")
FACTS = json.loads((FIXTURES / "latte.json").read_text())
METRICS = FACTS["metrics"]


def pair(case):
    """The two sets of features of one case."""
    reals, fakes = ARRAYS["feat_real"], ARRAYS["feat_fake"]
    n = METRICS[case].get("n", len(reals))
    return reals[:n], (reals if case == "same" else fakes)[:n]


def fvd(a, b):
    return frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))


def divided_by_n(features):
    """Statistics whose covariance has n in the denominator, as some codes take it."""
    of = FeatureStatistics.of(features)
    return FeatureStatistics(of.count + 1, of.mean, of.scatter)


@pytest.mark.parametrize(
    ("case", "tolerance"), [("full_rank", 1e-11), ("few_samples", 3e-6), ("same", 3e-6)]
)
def test_fvd_is_that_of_the_released_codes(case, tolerance):
    a, b = pair(case)
    expected = METRICS[case]
    ours = fvd(a, b)
    near = {"rel": tolerance, "abs": 3e-6 if case == "same" else 0}
    assert ours == pytest.approx(expected["fvd_unbiased_float64"], **near)
    near["rel"] = max(tolerance, 1e-10)  # what scipy's root is good for
    assert ours == pytest.approx(expected["fvd_unbiased_sqrtm"], **near)
    biased = frechet_distance(divided_by_n(a), divided_by_n(b))
    assert biased == pytest.approx(expected["fvd_biased_sqrtm"], **near)
    in_float32 = expected["fvd_unbiased_float32_as_run"]
    assert ours == pytest.approx(in_float32, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("case", ["full_rank", "few_samples", "same"])
def test_kvd_is_that_of_the_released_code(case):
    assert kernel_distance(*pair(case)) == pytest.approx(METRICS[case]["kvd"], rel=1e-12)


def test_distances_of_i3d_s_features_are_those_of_the_released_codes():
    reals, fakes = ARRAYS["i3d_real"], ARRAYS["i3d_fake"]
    assert fvd(reals, fakes) == pytest.approx(FACTS["i3d_fvd_unbiased_float64"], rel=3e-6)
    assert kernel_distance(reals, fakes) == pytest.approx(FACTS["i3d_kvd"], rel=1e-12)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("one_split_no_shuffle", {}),
        ("ten_splits_no_shuffle", {"splits": 10}),
        ("ten_splits_shuffled_seed42", {"splits": 10, "seed": 42}),
    ],
)
def test_the_inception_score_is_that_of_the_released_codes(case, options):
    score = inception_score(ARRAYS["is_probs"], **options)
    mean, deviation = METRICS["inception_score"][case]
    assert score.mean == pytest.approx(mean, abs=1e-5)
    assert score.deviation == pytest.approx(deviation, abs=1e-5)


def test_fvd_of_gaussians_is_their_closed_form():
    """Many draws of two Gaussians have the distance of their known means and covariances."""
    rng = np.random.default_rng(0)
    d, n = 5, 200_000
    mixes = rng.normal(size=(2, d, d))
    means = rng.normal(size=(2, d))
    sets = [mean + rng.normal(size=(n, d)) @ mix.T for mean, mix in zip(means, mixes, strict=True)]
    a, b = (mix @ mix.T for mix in mixes)
    cross = scipy.linalg.sqrtm(scipy.linalg.sqrtm(a) @ b @ scipy.linalg.sqrtm(a))
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(a + b - 2 * np.real(cross))
    assert fvd(*sets) == pytest.approx(expected, rel=0.02)


def test_kvd_is_its_definition_pair_by_pair_and_can_be_negative():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(7, 4)), 0.5 + rng.normal(size=(5, 4))

    def mean(x, y):
        same = x is y
        values = [
            (np.dot(p, q) / 4 + 1) ** 3
            for i, p in enumerate(x)
            for j, q in enumerate(y)
            if not (same and i == j)
        ]
        return np.mean(values)

    expected = mean(a, a) + mean(b, b) - 2 * mean(a, b)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(a, a) < 0


def test_kvd_of_many_vectors_does_not_depend_on_how_they_are_cut():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(1500, 6)), rng.normal(size=(1100, 6)) + 0.1
    k = lambda x, y: (x @ y.T / 6 + 1) ** 3  # noqa: E731
    off = [(m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in (k(a, a), k(b, b))]
    assert kernel_distance(a, b) == pytest.approx(sum(off) - 2 * k(a, b).mean(), rel=1e-9)


def test_sharp_and_varied_classes_score_their_number_and_equal_ones_score_one():
    one_hot = np.tile(np.eye(8), (5, 1))
    assert inception_score(one_hot).mean == pytest.approx(8, rel=1e-12)
    assert inception_score(np.full((6, 8), 1 / 8)).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(np.tile(np.eye(8)[3], (6, 1))).mean == pytest.approx(1, rel=1e-12)
    in_splits = inception_score(one_hot, splits=5)
    assert (in_splits.mean, in_splits.deviation) == (pytest.approx(8), pytest.approx(0, abs=1e-12))


def test_bad_sets_are_refused(unchecked_types):
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"a has shape \(1, 4\).* at least two vectors"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="vectors of length 4 cannot .* length 3"):
        kernel_distance(x, x[:, :3])
    with pytest.raises(ValueError, match="no probabilities of classes"):
        inception_score(x)
    with pytest.raises(ValueError, match="no probabilities of classes"):
        inception_score(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="3 samples cannot be cut into 10 splits"):
        inception_score(x / 4, splits=10)
