"""What several seeds say about the claims of the paper."""

import numpy as np
import pytest
import scipy.stats

from configs.ablation import get_config
from odvae_jax.ablate.verdicts import Claim, Spread, claims, verdict, verdicts

CLAIM = Claim("a is better than b", ("a", "whole"), ("b", "whole"), ("psnr", "lpips"))


@pytest.mark.parametrize("metric", ["psnr", "ssim", "lpips"])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_verdicts_are_those_of_the_paired_t_test(metric, count):
    rng, seen = np.random.default_rng(count), set()
    for shift in (-3, -1, -0.3, 0, 0.3, 1, 3):
        better, worse = rng.normal(size=(2, count))
        better = better + worse + shift  # the noise of a seed is in both
        found = verdict(CLAIM, metric, list(better), list(worse))
        gains = better - worse if metric != "lpips" else worse - better
        test = scipy.stats.ttest_rel(*((better, worse) if metric != "lpips" else (worse, better)))
        interval = test.confidence_interval(0.95)
        assert found.gain.mean == pytest.approx(gains.mean())
        assert (found.gain.low, found.gain.high) == pytest.approx(tuple(interval))
        if test.pvalue >= 0.05:
            assert found.word == f"not decidable with {count} seeds"
        else:
            assert found.word == ("confirmed" if gains.mean() > 0 else "contradicted")
        seen.add(found.word)
    assert count < 5 or len(seen) == 3


def test_a_spread_by_hand():
    """Of 1, 2, 3: t(0.975, 2) is 4.3027, and 4.3027 · 1 / √3 is 2.4842."""
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.seeds, spread.mean, spread.deviation) == (3, 2.0, 1.0)
    assert (spread.low, spread.high) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-4)


@pytest.mark.parametrize(
    "better, worse, metric, word",
    [
        # Gains 0.3, 0.4, 0.5: 0.4 ± 0.248. Unpaired, the seeds would hide it.
        ([20.3, 25.4, 30.5], [20.0, 25.0, 30.0], "psnr", "confirmed"),
        ([20.0, 25.0, 30.0], [20.3, 25.4, 30.5], "psnr", "contradicted"),
        ([0.20, 0.25, 0.30], [0.23, 0.29, 0.35], "lpips", "confirmed"),
        # Gains 0.1, 0.4, 0.7: 0.4 ± 0.745.
        ([20.1, 25.4, 30.7], [20.0, 25.0, 30.0], "psnr", "not decidable with 3 seeds"),
        # Gains 0.3, 0.5: t(0.975, 1) is 12.7, so 0.4 ± 1.27.
        ([20.3, 25.5], [20.0, 25.0], "psnr", "not decidable with 2 seeds"),
        ([30.0], [20.0], "psnr", "not decidable with one seed"),
        ([20.0, 20.0], [20.0, 20.0], "psnr", "not decidable with 2 seeds"),
    ],
)
def test_verdicts_by_hand(better, worse, metric, word):
    assert verdict(CLAIM, metric, better, worse).word == word


def test_the_claims_are_those_of_the_paper_about_what_is_trained():
    config = get_config()
    pairs = [(claim.better, claim.worse) for claim in claims(config)]
    assert pairs == [
        (("v1-tail", "whole"), ("v4-tail", "whole")),
        (("v4-tail", "whole"), ("v2-tail", "whole")),
        (("v4-tail", "whole"), ("v3-tail", "whole")),
        (("v4-tail", "whole"), ("v4-average", "whole")),
        (("v4-tail", "whole"), ("v4-random", "whole")),
        (("v4-tail", "whole"), ("v4-tail", "tiled")),
    ]
    config.ablation.variants, config.ablation.initialisations = (1, 2), ("average",)
    assert claims(config) == []


def test_a_seed_that_one_side_lacks_is_compared_with_none():
    config = get_config()
    config.ablation.variants, config.ablation.initialisations = (4,), ("average",)
    values = {
        ("v4-tail", "whole"): {"psnr": {0: 20.3, 1: 25.4, 2: 30.5, 3: 9.0}},
        ("v4-tail", "tiled"): {},
        ("v4-average", "whole"): {"psnr": {1: 25.0, 0: 20.0, 2: 30.0}},
    }
    (found,) = verdicts(config, values)
    assert (found.word, found.gain.seeds) == ("confirmed", 3)
    assert found.gain.mean == pytest.approx(0.4)
