"""What the intervals and p-values promise, on simulated scores with a known truth.

The bounds are three standard errors of the simulation where the promise is exact, else those of the
requirement: 93 to 97 % at nominal 95 %.
"""

import math

import numpy as np
import pytest
from scipy import stats

from coadapt._stats import (
    bootstrap_mean,
    holm,
    interval,
    mean_interval,
    paired_bootstrap_mean,
    paired_difference,
    rank_p_value,
)


def error(rate, num_trials):
    """Return the standard error of a simulated rate."""
    return math.sqrt(rate * (1 - rate) / num_trials)


# --- over seeds: exact for normal scores


@pytest.mark.parametrize(("num_seeds", "num_trials"), [(3, 8000), (5, 8000), (10, 20_000)])
def test_mean_interval_over_seeds(num_seeds, num_trials):
    scores = np.random.default_rng(num_seeds).normal(0.8, 0.02, size=(num_trials, num_seeds))
    ends = np.array([mean_interval(row) for row in scores])
    covered = ((ends[:, 0] <= 0.8) & (ends[:, 1] >= 0.8)).mean()
    assert covered == pytest.approx(0.95, abs=3 * error(0.95, num_trials))


@pytest.mark.parametrize(("num_seeds", "num_trials"), [(3, 8000), (5, 8000), (10, 20_000)])
def test_paired_difference_over_seeds_that_share_noise(num_seeds, num_trials):
    rng = np.random.default_rng(100 + num_seeds)
    size = (num_trials, num_seeds)
    shared = rng.normal(0.8, 0.05, size=size)
    values, baseline = shared + rng.normal(0.01, 0.01, size), shared + rng.normal(0, 0.01, size)
    found = [paired_difference(*pair) for pair in zip(values, baseline, strict=True)]
    covered = np.mean([one.low <= 0.01 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=3 * error(0.95, num_trials))
    # The spread of a pair's difference is 0.014; unpaired, the shared 0.05 would hide the effect.
    width = np.mean([one.high - one.low for one in found])
    t, n = stats.t.ppf(0.975, num_seeds - 1), num_seeds
    mean_s = 0.01 * math.sqrt(2) * float(stats.chi(n - 1).mean()) / math.sqrt(n - 1)
    assert width == pytest.approx(2 * t * mean_s / math.sqrt(n), rel=0.03)


@pytest.mark.parametrize(("num_seeds", "num_trials"), [(3, 4000), (10, 12_000)])
def test_p_value_of_no_difference_is_uniform(num_seeds, num_trials):
    rng = np.random.default_rng(200 + num_seeds)
    shared = rng.normal(0.8, 0.05, size=(num_trials, num_seeds))
    values, baseline = rng.normal(shared, 0.01), rng.normal(shared, 0.01)
    p_values = [paired_difference(*pair).p_value for pair in zip(values, baseline, strict=True)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


# --- over rows: the percentile bootstrap, whose coverage is near nominal only


def test_bootstrap_over_rows_of_one_accuracy():
    """Without simulation noise, 200 rows and an accuracy of 0.8 give 95.6 %."""
    rng = np.random.default_rng(20)
    num_trials, covered = 2000, 0
    for hits in rng.random((num_trials, 200)) < 0.8:
        low, high = interval(bootstrap_mean(hits, num_resamples=500, generator=rng))
        covered += low <= 0.8 <= high
    assert 0.93 <= covered / num_trials <= 0.97


def test_bootstrap_over_rows_of_a_paired_difference():
    """A row is hard for all (0.6 of the variance), for a side (0.3), and for a seed (0.1)."""
    rng = np.random.default_rng(21)
    num_trials, covered = 2000, 0
    thresholds = np.array([[1.1, 1.0, 0.9], [0.6, 0.7, 0.8]])  # (sides, seeds)
    rates = stats.norm.cdf(thresholds).mean(axis=1)
    truth = rates[0] - rates[1]
    for _ in range(num_trials):
        row, side, seed = rng.normal(size=200), rng.normal(size=(2, 1, 200)), (2, 3, 200)
        hardness = np.sqrt(0.6) * row + np.sqrt(0.3) * side + np.sqrt(0.1) * rng.normal(size=seed)
        hits = hardness < thresholds[:, :, None]
        samples = paired_bootstrap_mean(*hits, num_resamples=500, generator=rng)
        low, high = interval(samples)
        covered += low <= truth <= high
    assert 0.93 <= covered / num_trials <= 0.97


# --- ranks among partitions


@pytest.mark.parametrize("includes_observed", [False, True], ids=["sampled", "enumerated"])
def test_rank_p_value_is_uniform_under_the_null(includes_observed):
    num_trials = 4000
    scores = np.random.default_rng(30).normal(size=(num_trials, 20))  # the observed one first
    null = scores if includes_observed else scores[:, 1:]
    p_values = [
        rank_p_value(row[0], others, includes_observed=includes_observed)
        for row, others in zip(scores, null, strict=True)
    ]
    steps = np.round(np.array(p_values) * 20).astype(int)
    np.testing.assert_allclose(p_values, steps / 20)  # 1/20, 2/20, ..., 1 and nothing else
    counts = np.bincount(steps, minlength=21)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3
    for k in range(1, 20):  # P(p <= k/20) = k/20
        rate = counts[: k + 1].sum() / num_trials
        assert rate == pytest.approx(k / 20, abs=3.5 * error(k / 20, num_trials))


@pytest.mark.parametrize("includes_observed", [False, True], ids=["sampled", "enumerated"])
def test_rank_p_value_stays_valid_with_ties(includes_observed):
    num_trials = 4000
    scores = np.random.default_rng(31).integers(0, 5, size=(num_trials, 20)) / 5
    null = scores if includes_observed else scores[:, 1:]
    p_values = np.array(
        [
            rank_p_value(row[0], others, includes_observed=includes_observed)
            for row, others in zip(scores, null, strict=True)
        ]
    )
    for k in range(1, 20):
        limit = k / 20 + 3.5 * error(k / 20, num_trials)
        assert (p_values <= k / 20 + 1e-9).mean() <= limit


# --- several tests at once


@pytest.mark.parametrize(
    ("num_true", "correlation", "expected"),
    [
        (5, 0.0, 1 - 0.99**5),  # the first step is at alpha / 5
        (2, 0.0, 1 - 0.975**2),  # after three true finds, at alpha / 2
        (1, 0.0, 0.05),
        (5, 0.8, None),
        (2, 0.8, None),
    ],
    ids=["all null", "two null", "one null", "all null, correlated", "two null, correlated"],
)
def test_holm_holds_the_family_wise_error(num_true, correlation, expected):
    num_trials = 20_000
    rng = np.random.default_rng(40)
    common = rng.normal(size=(num_trials, 1))
    noise = rng.normal(size=(num_trials, 5))
    z = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * noise
    z[:, num_true:] += 20  # differences so large that every test finds them
    adjusted = np.array([holm(row) for row in 2 * stats.norm.sf(np.abs(z))])
    false_finds = (adjusted[:, :num_true] <= 0.05).any(axis=1).mean()
    assert (adjusted[:, num_true:] <= 0.05).all()
    assert false_finds <= 0.05 + 3 * error(0.05, num_trials)
    if expected is not None:
        assert false_finds == pytest.approx(expected, abs=3 * error(expected, num_trials))
