"""Bootstrap and t-intervals against simulation, SciPy and closed forms."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coadapt._stats import bootstrap, bootstrap_mean, interval, mean_interval


def accuracy(y_true, y_pred):
    return float((y_true == y_pred).mean())


def pearson(y_true, y_pred):
    return float(np.corrcoef(y_true, y_pred)[0, 1])


@pytest.fixture
def labels():
    rng = np.random.default_rng(3)
    y_true = rng.integers(0, 3, size=300)
    y_pred = np.where(rng.random(300) < 0.8, y_true, rng.integers(0, 3, size=300))
    return y_true, y_pred


def test_rows_and_callable_draw_the_same_resamples(labels):
    y_true, y_pred = labels
    by_metric = bootstrap(accuracy, y_true, y_pred, generator=np.random.default_rng(1))
    by_rows = bootstrap_mean(y_true == y_pred, generator=np.random.default_rng(1))
    np.testing.assert_allclose(by_rows, by_metric, rtol=1e-12)


def test_drawing_in_blocks_changes_nothing(labels, monkeypatch):
    y_true, y_pred = labels
    whole = bootstrap_mean(y_true == y_pred, generator=np.random.default_rng(1))
    monkeypatch.setattr("coadapt._stats.resampling._CHUNK", 7 * 300)
    parts = bootstrap_mean(y_true == y_pred, generator=np.random.default_rng(1))
    np.testing.assert_array_equal(parts, whole)


def test_spread_of_a_mean_is_its_standard_error():
    scores = np.random.default_rng(0).normal(size=500)
    samples = bootstrap_mean(scores, num_resamples=20_000, generator=np.random.default_rng(1))
    # The spread of B samples has a relative standard error of 1 / sqrt(2 B) = 0.5 %.
    assert samples.std() == pytest.approx(scores.std() / np.sqrt(500), rel=0.02)
    assert samples.mean() == pytest.approx(scores.mean(), abs=4 * samples.std() / np.sqrt(20_000))


@pytest.mark.parametrize("rate", [0.6, 0.85])
def test_coverage_on_bernoulli_scores(rate):
    rng = np.random.default_rng(20)
    num_trials = 2000
    covered = 0
    for _ in range(num_trials):
        hits = rng.random(300) < rate
        low, high = interval(bootstrap_mean(hits, num_resamples=400, generator=rng))
        covered += low <= rate <= high
    assert 0.93 <= covered / num_trials <= 0.97


@pytest.mark.parametrize("metric", [accuracy, pearson], ids=lambda metric: metric.__name__)
def test_agrees_with_scipy(labels, metric):
    y_true, y_pred = (column.astype(float) for column in labels)
    ours = interval(
        bootstrap(metric, y_true, y_pred, num_resamples=2000, generator=np.random.default_rng(5))
    )
    theirs = stats.bootstrap(
        (y_true, y_pred),
        metric,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(6),
    ).confidence_interval
    # Other draws: the ends of 2000 samples differ by a few of their standard errors at most.
    assert ours == pytest.approx(tuple(theirs), abs=0.01)


def test_undefined_resamples_are_left_out():
    assert interval([np.nan, 1.0, 3.0, np.nan], level=0.5) == (1.5, 2.5)
    assert np.isnan(interval([np.nan, np.nan])).all()


@given(
    samples=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    levels=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
)
def test_interval_grows_with_the_level_and_stays_within_the_samples(samples, levels):
    narrow, wide = interval(samples, min(levels)), interval(samples, max(levels))
    assert min(samples) <= wide[0] <= narrow[0] <= narrow[1] <= wide[1] <= max(samples)


def test_mean_interval_against_scipy_and_the_table():
    values = np.random.default_rng(2).normal(loc=0.8, scale=0.02, size=5)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (high - low) / 2 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)  # t_{2, .975}


@pytest.mark.parametrize("values", [[], [0.8]], ids=["none", "one"])
def test_mean_interval_of_too_few_is_nan(values):
    assert np.isnan(mean_interval(values)).all()


def test_bad_arguments_are_named():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="y_true has 2 rows and y_pred 3"):
        bootstrap(accuracy, [1, 2], [1, 2, 3], generator=generator)
    with pytest.raises(ValueError, match="nothing to resample"):
        bootstrap_mean([], generator=generator)
    with pytest.raises(ValueError, match="one score a row"):
        bootstrap_mean([[1.0, 2.0]], generator=generator)
    with pytest.raises(ValueError, match="num_resamples must be at least 1"):
        bootstrap_mean([1.0], num_resamples=0, generator=generator)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, not 95"):
        interval([1.0], level=95)


def test_means_are_fast_enough_for_every_task_of_every_run():
    scores = np.random.default_rng(0).random(300)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        interval(bootstrap_mean(scores, generator=np.random.default_rng(0)))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # some 4 ms on one core; the best of five, as the machine is shared
