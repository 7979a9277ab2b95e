"""Paired comparisons against SciPy, published values, loops, integrals and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coadapt._stats import (
    bootstrap,
    holm,
    interval,
    outcome,
    paired_bootstrap,
    paired_bootstrap_mean,
    paired_difference,
    seeds_needed,
)
from coadapt._stats.paired import _power
from tests.reference.slow_stats import (
    holm_rejects,
    holm_smallest_alphas,
    paired_bootstrap_by_loops,
    power_by_quadrature,
)


def accuracy(y_true, y_pred):
    return float((y_true == y_pred).mean())


def pearson(y_true, y_pred):
    return float(np.corrcoef(y_true, y_pred)[0, 1])


@pytest.fixture
def predictions():
    """True labels (n,), three seeds of one side and two of the other, wrong on the same rows."""
    rng = np.random.default_rng(3)
    y_true = rng.integers(0, 5, size=120)
    hard = rng.random(120)
    y_pred = np.where(hard + 0.1 * rng.random((3, 120)) < 0.8, y_true, 0)
    y_base = np.where(hard + 0.1 * rng.random((2, 120)) < 0.7, y_true, 4)
    return y_true, y_pred, y_base


# --- paired_difference


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("num", [2, 3, 10])
def test_difference_agrees_with_scipy(num, level):
    rng = np.random.default_rng(num)
    seeds = rng.normal(0.8, 0.05, size=num)
    values, baseline = seeds + rng.normal(0.01, 0.02, num), seeds + rng.normal(0, 0.02, num)
    ours, theirs = paired_difference(values, baseline, level), stats.ttest_rel(values, baseline)
    ends = theirs.confidence_interval(level)
    assert (ours.low, ours.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.num == num
    standard_error = np.std(values - baseline, ddof=1) / np.sqrt(num)
    assert ours.mean / standard_error == pytest.approx(theirs.statistic, rel=1e-9)


def test_difference_on_students_own_example():
    """Hours of sleep gained by ten patients; values as R's ``t.test(paired = TRUE)`` gives them."""
    dextro = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    laevo = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(laevo, dextro)
    assert found.mean == pytest.approx(1.58, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert found.p_value == pytest.approx(0.002833, abs=5e-7)


@given(
    pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8),
    level=st.floats(0.5, 0.99),
)
def test_difference_swaps_sign_with_the_sides_and_p_agrees_with_the_interval(pairs, level):
    values, baseline = zip(*pairs, strict=True)
    one, other = paired_difference(values, baseline, level), paired_difference(baseline, values)
    assert (one.mean, one.p_value) == (-other.mean, other.p_value)
    assert one.low <= one.mean <= one.high
    assert 0 <= one.p_value <= 1
    if abs(one.p_value - (1 - level)) > 1e-9:
        assert (one.p_value < 1 - level) == (one.low > 0 or one.high < 0)


@pytest.mark.parametrize(
    ("values", "baseline", "mean", "p_value"),
    [
        ([0.5, 0.75], [0.25, 0.5], 0.25, 0.0),
        ([0.1, 0.2, 0.3], [0.0, 0.1, 0.2], 0.1, 0.0),  # equal up to rounding only
        ([0.8, 0.9], [0.8, 0.9], 0.0, 1.0),
        ([0.1 + 0.2, 0.1 + 0.2], [0.3, 0.3], 0.0, 1.0),
        ([0.1 + 0.2, 0.3], [0.3, 0.3], 0.0, 1.0),
    ],
    ids=["shifted", "shifted and rounded", "same", "same but rounded", "one rounded"],
)
def test_equal_differences_have_no_width(values, baseline, mean, p_value):
    found = paired_difference(values, baseline)
    assert found.low == found.mean == found.high == pytest.approx(mean, abs=1e-15)
    assert found.p_value == p_value
    assert outcome((found.low, found.high)) == ("win" if mean else "tie")


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_pairs_bound_nothing(num):
    found = paired_difference([0.75] * num, [0.5] * num)
    assert found.num == num
    assert np.isnan([found.low, found.high, found.p_value]).all()
    assert found.mean == 0.25 if num else math.isnan(found.mean)


def test_a_failed_seed_is_seen():
    found = paired_difference([0.8, np.nan, 0.7], [0.7, 0.7, 0.7])
    assert np.isnan([found.mean, found.low, found.high, found.p_value]).all()


# --- paired bootstrap


@pytest.mark.parametrize("metric", [accuracy, pearson], ids=lambda metric: metric.__name__)
def test_paired_bootstrap_agrees_with_loops(predictions, metric):
    y_true, y_pred, y_base = predictions
    generator = np.random.default_rng(1)
    ours = paired_bootstrap(metric, y_true, y_pred, y_base, num_resamples=20, generator=generator)
    resamples = np.random.default_rng(1).integers(0, 120, size=(20, 120))
    slow = paired_bootstrap_by_loops(metric, y_true, y_pred, y_base, resamples)
    np.testing.assert_allclose(ours, slow, rtol=1e-12, atol=1e-15)


def test_paired_bootstrap_draws_the_resamples_of_bootstrap(predictions):
    y_true, y_pred, y_base = predictions[0], predictions[1][0], predictions[2][0]
    sides = [
        bootstrap(accuracy, y_true, y, num_resamples=50, generator=np.random.default_rng(1))
        for y in (y_pred, y_base)
    ]
    ours = paired_bootstrap(
        accuracy, y_true, y_pred, y_base, num_resamples=50, generator=np.random.default_rng(1)
    )
    np.testing.assert_array_equal(ours, sides[0] - sides[1])


def test_rows_and_callable_give_the_same_values(predictions):
    y_true, y_pred, y_base = predictions
    by_metric = paired_bootstrap(
        accuracy, y_true, y_pred, y_base, generator=np.random.default_rng(1)
    )
    by_rows = paired_bootstrap_mean(
        y_pred == y_true, y_base == y_true, generator=np.random.default_rng(1)
    )
    np.testing.assert_allclose(by_rows, by_metric, rtol=1e-12, atol=1e-15)
    by_metric = paired_bootstrap(
        accuracy, y_true, y_pred[0], y_base, generator=np.random.default_rng(1)
    )
    of_one_seed = paired_bootstrap_mean(
        y_pred[0] == y_true, y_base == y_true, generator=np.random.default_rng(1)
    )
    np.testing.assert_allclose(of_one_seed, by_metric, rtol=1e-12, atol=1e-15)


def test_paired_bootstrap_agrees_with_scipy(predictions):
    y_true, y_pred, y_base = predictions[0], predictions[1][0], predictions[2][0]
    samples = paired_bootstrap(
        pearson, y_true, y_pred, y_base, num_resamples=2000, generator=np.random.default_rng(5)
    )
    theirs = stats.bootstrap(
        (y_true, y_pred, y_base),
        lambda true, pred, base: pearson(true, pred) - pearson(true, base),
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(6),
    ).confidence_interval
    # The ends of 2000 samples have a standard error of some 6 % of the samples' spread.
    width = theirs.high - theirs.low
    assert interval(samples) == pytest.approx(tuple(theirs), abs=0.06 * width)


def test_a_metric_undefined_for_one_seed_leaves_the_resample_out():
    def share_of_ones(y_true, y_pred):
        return float(y_pred.mean()) if y_pred.any() else float("nan")

    rows = np.array([[1, 0, 0], [1, 1, 1]])
    samples = paired_bootstrap(
        share_of_ones, rows[1], rows, rows, generator=np.random.default_rng()
    )
    undefined = np.isnan(samples).mean()  # 1000 draws, each so with probability (2/3)^3 = 0.296
    assert undefined == pytest.approx(8 / 27, abs=4 * math.sqrt(0.21 / 1000))


# --- holm


def test_holm_on_published_values():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    ours = holm([0.01, 0.02, 0.03, 0.04, 0.05])
    np.testing.assert_allclose(ours, [0.05, 0.08, 0.09, 0.09, 0.09], rtol=1e-12)


p_value_lists = st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.02, np.nan]), max_size=8)


@given(p_values=p_value_lists, alpha=st.floats(0, 0.999))
def test_holm_rejects_what_the_steps_reject(p_values, alpha):
    adjusted = holm(p_values)
    np.testing.assert_allclose(adjusted, holm_smallest_alphas(p_values), rtol=1e-12)
    assert set(np.flatnonzero(adjusted <= alpha).tolist()) == holm_rejects(p_values, alpha)


@given(p_values=p_value_lists, seed=st.integers(0, 99))
def test_holm_keeps_the_order_and_only_raises(p_values, seed):
    adjusted, raw = holm(p_values), np.array(p_values)
    tested = ~np.isnan(raw)
    np.testing.assert_array_equal(np.isnan(adjusted), ~tested)
    assert ((adjusted >= raw) & (adjusted <= 1))[tested].all()
    assert (np.diff(adjusted[tested][np.argsort(raw[tested])]) >= 0).all()
    np.testing.assert_array_equal(adjusted[tested], holm(raw[tested]))
    order = np.random.default_rng(seed).permutation(len(raw))
    np.testing.assert_array_equal(holm(raw[order]), adjusted[order])


# --- outcome


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(0.1, 0.2)], "win"),
        ([(0.1, 0.2), (0.1, 0.3)], "win"),
        ([(0.1, 0.2), (0.0, 0.3)], "tie"),  # an end on 0 is not wholly above
        ([(0.1, 0.2), (-0.2, -0.1)], "tie"),
        ([(-0.3, -0.2), (-0.2, -0.1)], "loss"),
        ([(0.1, 0.2), (np.nan, np.nan)], "tie"),
        ([(0.1, np.nan)], "tie"),
        ([(np.nan, -0.1)], "tie"),
    ],
    ids=str,
)
def test_outcome(intervals, verdict):
    assert outcome(*intervals) == verdict


ends = st.floats(-1, 1) | st.just(np.nan)


@given(st.lists(st.tuples(ends, ends).map(lambda pair: tuple(sorted(pair))), min_size=1))
def test_outcome_turns_round_with_the_sides(intervals):
    turned = outcome(*((-high, -low) for low, high in intervals))
    assert turned == {"win": "loss", "tie": "tie", "loss": "win"}[outcome(*intervals)]


# --- seeds_needed


@pytest.mark.parametrize(
    ("effect", "num"), [(0.2, 199), (0.5, 34), (0.8, 15), (-0.5, 34)], ids=lambda value: str(value)
)
def test_seeds_needed_as_in_the_power_tables(effect, num):
    """Cohen's small, medium and large effect; G*Power and R's power.t.test give the same."""
    assert seeds_needed(effect, 1.0) == num


@pytest.mark.parametrize("level", [0.9, 0.999])
@pytest.mark.parametrize("num", [2, 3, 10, 1000])
@pytest.mark.parametrize("shift", [0.01, 1, 4, 5, 8, 15, 37, 38, 100])
def test_power_agrees_with_an_integral(shift, num, level):
    ratio = shift / math.sqrt(num)
    slow = power_by_quadrature(ratio, num, level)
    assert _power(ratio, num, (1 - level) / 2) == pytest.approx(slow, abs=1e-8)


@given(
    ratio=st.floats(0.05, 50),
    power=st.floats(0.06, 0.999),
    level=st.floats(0.8, 0.99),
)
def test_seeds_needed_is_the_smallest(ratio, power, level):
    num = seeds_needed(ratio, 1.0, power=power, level=level, most=100_000)
    tail = (1 - level) / 2
    assert _power(ratio, num, tail) >= power
    assert num == 2 or _power(ratio, num - 1, tail) < power


@pytest.mark.parametrize(("effect", "num"), [(2.0, 5), (1.0, 10), (0.6, 24)])
def test_seeds_needed_detect_what_they_promise(effect, num):
    num_trials = 40_000
    assert seeds_needed(effect, 1.0) == num
    rng = np.random.default_rng(11)
    rates = []
    for n in (num - 1, num):
        differences = rng.normal(effect, 1.0, size=(num_trials, n))
        t = differences.mean(axis=1) * math.sqrt(n) / differences.std(axis=1, ddof=1)
        rates.append((np.abs(t) > stats.t.ppf(0.975, n - 1)).mean())
    error = math.sqrt(0.8 * 0.2 / num_trials)
    assert rates[0] < 0.8 + 3 * error
    assert rates[1] > 0.8 - 3 * error
    assert rates[1] == pytest.approx(power_by_quadrature(effect, num, 0.95), abs=3 * error)


def test_seeds_needed_at_the_edges():
    assert seeds_needed(0.1, 0.0) == 2
    assert seeds_needed(1.0, 1e-300) == 2
    assert seeds_needed(0.01, 1.0, power=0.01) == 2  # less than the false alarms of any test
    assert seeds_needed(0.5, 1.0, most=34) == 34


def test_bad_arguments_are_named():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="values has 2 seeds and baseline 1"):
        paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match=r"values has shape \(1, 2\)"):
        paired_difference([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match="level must lie between 0 and 1, not 95"):
        paired_difference([1.0], [1.0], level=95)
    with pytest.raises(ValueError, match=r"y_pred has shape \(3,\): give \(seeds, 2\)"):
        paired_bootstrap(accuracy, [1, 2], [1, 2, 3], [1, 2], generator=generator)
    with pytest.raises(ValueError, match=r"y_base has shape \(0, 2\)"):
        paired_bootstrap(accuracy, [1, 2], [1, 2], np.zeros((0, 2)), generator=generator)
    with pytest.raises(ValueError, match=r"baseline has shape \(2, 1\)"):
        paired_bootstrap_mean([[1, 2]], [[1], [2]], generator=generator)
    with pytest.raises(ValueError, match="scores has shape"):
        paired_bootstrap_mean(1.0, 1.0, generator=generator)
    with pytest.raises(ValueError, match="nothing to resample"):
        paired_bootstrap_mean([], [], generator=generator)
    with pytest.raises(ValueError, match=r"p_values must lie between 0 and 1, not 1\.5"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match="needs at least one"):
        outcome()
    with pytest.raises(ValueError, match=r"effect must be a number other than 0, not 0\.0"):
        seeds_needed(0.0, 1.0)
    with pytest.raises(ValueError, match="sd must be a number, 0 or more, not -1"):
        seeds_needed(1.0, -1)
    with pytest.raises(ValueError, match="power must lie between 0 and 1, not 80"):
        seeds_needed(1.0, 1.0, power=80)
    with pytest.raises(ValueError, match="most must be at least 2, not 1"):
        seeds_needed(1.0, 1.0, most=1)
    with pytest.raises(
        ValueError, match=r"more than 33 seeds are needed to detect 0\.5 at sd 1\.0"
    ):
        seeds_needed(0.5, 1.0, most=33)
