"""Paired comparisons: one recipe against another on the same seeds and the same rows."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from coadapt._stats.resampling import _resamples, _tail, bootstrap_mean, mean_interval

Outcome = Literal["win", "tie", "loss"]

_ROUNDING = 8 * np.finfo(np.float64).eps  # differences this far apart, relatively, are equal


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean paired difference, what bounds it, and how easily chance gives one as far from 0.

    Args:
        mean: of the differences, in their unit; above 0 where the values exceed the baseline.
        low: lower end of the interval for the mean.
        high: upper end.
        p_value: two-sided, against a mean difference of 0.
        num: pairs that it rests on.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num: int


def paired_difference(
    values: ArrayLike,  # (n,)
    baseline: ArrayLike,  # (n,)
    level: float = 0.95,
) -> Difference:
    """Return the mean paired difference with Student's interval and two-sided p-value.

        d_i = values_i - baseline_i,   t = mean(d) sqrt(n) / s,   p = 2 P(T_{n-1} > |t|)

    "Student", "The probable error of a mean", Biometrika 1908, section IX, illustration I. The
    interval is :func:`mean_interval` of the differences. Noise that both sides of a pair share,
    such as the order of the data, cancels.

    Where all differences are equal up to rounding, s = 0: the interval has no width, and p is 0, or
    1 if the mean is 0 too. Distrust it. Coarse scores repeat by chance (accuracy on 100 rows moves
    in steps of 0.01), or the seed changed nothing; neither says that other seeds would agree.

    Not for values whose pairs share nothing, and no remedy for rows: other rows may turn it round,
    see :func:`paired_bootstrap`.

    Args:
        values: one a seed.
        baseline: the same seeds in the same order.
        level: the nominal coverage of the interval, between 0 and 1.

    Returns:
        The mean, interval and p-value; for fewer than two pairs the last two are NaN.

    Raises:
        ValueError: if the lengths differ, or the level lies outside (0, 1).

    Example:
        >>> found = paired_difference([0.82, 0.85, 0.84], [0.80, 0.81, 0.81])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), round(found.p_value, 3)
        (0.03, 0.005, 0.055, 0.035)
    """
    values, baseline = _as_row("values", values), _as_row("baseline", baseline)
    if len(values) != len(baseline):
        raise ValueError(
            f"values has {len(values)} seeds and baseline {len(baseline)}: give the same seeds"
        )
    differences = values - baseline
    n = len(differences)
    low, high = mean_interval(differences, level)
    if n < 2:
        mean = float(differences[0]) if n else float("nan")
        return Difference(mean=mean, low=low, high=high, p_value=float("nan"), num=n)
    mean, s = float(differences.mean()), float(differences.std(ddof=1))
    rounding = _ROUNDING * max(np.abs(values).max(), np.abs(baseline).max())
    if s <= rounding:
        mean = mean if abs(mean) > rounding else 0.0
        return Difference(mean=mean, low=mean, high=mean, p_value=float(mean == 0), num=n)
    p_value = float(2 * special.stdtr(n - 1, -abs(mean) * math.sqrt(n) / s))
    return Difference(mean=mean, low=low, high=high, p_value=p_value, num=n)


def paired_bootstrap(
    metric: Callable[[NDArray, NDArray], float],
    y_true: ArrayLike,  # (n,)
    y_pred: ArrayLike,  # (S_a, n), or (n,) for one seed
    y_base: ArrayLike,  # (S_b, n), or (n,) for one seed
    *,
    num_resamples: int = 1000,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the difference of two sides in a metric, on resamples of the rows that they share.

        m_b(y) = 1/S sum_s metric(y_true[i_b], y[s, i_b]),   i_b ~ Uniform{0..n-1}^n
        t*_b = m_b(y_pred) - m_b(y_base),   b = 1..B

    Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004, "paired
    bootstrap resampling". The resamples are those of :func:`bootstrap` for the same state of the
    generator. A metric that is a mean over rows may be given by its rows to
    :func:`paired_bootstrap_mean`, which is faster.

    It tells what *other rows* would do to the mean of these seeds; :func:`paired_difference` tells
    what other seeds would do. Not for a handful of rows, nor for rows that depend on each other.

    Args:
        metric: takes the true and the predicted values of a resample, in that order.
        y_true: true values, one a row.
        y_pred: predictions of one side, a row of them a seed.
        y_base: predictions of the other side; the number of seeds may differ.
        num_resamples: B.
        generator: the source of the resamples; the same state gives the same values.

    Returns:
        The B values, in the metric's unit; NaN where the metric of a seed is not defined.

    Raises:
        ValueError: if there are no rows or no seeds, or the numbers of rows differ.

    Example:
        >>> hits = lambda y_true, y_pred: float((y_true == y_pred).mean())
        >>> right, half = [0, 1, 1, 0], [[0, 1, 0, 1], [1, 0, 1, 0]]
        >>> generator = np.random.default_rng(0)
        >>> samples = paired_bootstrap(hits, right, right, half, generator=generator)
        >>> samples.shape, float(samples.min())
        ((1000,), 0.5)
    """
    y_true = np.asarray(y_true)
    n = len(y_true)
    y_pred, y_base = _by_seed("y_pred", y_pred, n), _by_seed("y_base", y_base, n)

    def mean_over_seeds(y: NDArray, i_b: NDArray[np.int64]) -> float:
        true_b = y_true[i_b]
        return sum(metric(true_b, y_s[i_b]) for y_s in y) / len(y)

    values = [
        mean_over_seeds(y_pred, i_b) - mean_over_seeds(y_base, i_b)
        for block in _resamples(n, num_resamples, generator)
        for i_b in block
    ]
    return np.array(values, dtype=np.float64)


def paired_bootstrap_mean(
    scores: ArrayLike,  # (S_a, n), or (n,) for one seed
    baseline: ArrayLike,  # (S_b, n), or (n,) for one seed
    *,
    num_resamples: int = 1000,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return :func:`paired_bootstrap` for a metric that is a mean over rows.

        d_i = 1/S_a sum_s scores[s, i] - 1/S_b sum_s baseline[s, i],   t*_b = 1/n sum_i d[i_b]

    It is :func:`bootstrap_mean` of the d_i, and equals :func:`paired_bootstrap` up to rounding.

    Args:
        scores: one a seed and row; for accuracy 1 where the prediction is right, else 0.
        baseline: those of the other side on the same rows; the number of seeds may differ.
        num_resamples: B.
        generator: the source of the resamples; the same state gives the same values.

    Returns:
        The B mean differences, in the unit of the scores.

    Raises:
        ValueError: if there are no rows or no seeds, or the numbers of rows differ.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> samples = paired_bootstrap_mean([[1, 1, 0], [1, 0, 1]], [1, 0, 0], generator=generator)
        >>> round(float(np.abs(samples).max()), 6)  # the rows' differences are 0, 0.5 and 0.5
        0.5
    """
    scores = np.asarray(scores)
    n = scores.shape[-1] if scores.ndim else 0
    of_seeds, base = _by_seed("scores", scores, n), _by_seed("baseline", baseline, n)
    d = of_seeds.mean(axis=0, dtype=np.float64) - base.mean(axis=0, dtype=np.float64)
    return bootstrap_mean(d, num_resamples=num_resamples, generator=generator)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's adjusted p-values, which hold the family-wise error under any dependence.

        adj_(j) = max_{i <= j} min(1, (m - i + 1) p_(i)),   p_(1) <= ... <= p_(m)

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 1979.
    Rejecting where adj <= alpha makes one false rejection or more with probability alpha at most.

    Not for tests that were chosen by their p-values: m counts all that were looked at.

    Args:
        p_values: one a test, (m,), between 0 and 1; NaN, a test that could not be made, stays NaN
            and is not counted in m.

    Returns:
        Adjusted p-values in the same places, (m,).

    Raises:
        ValueError: if a p-value lies outside [0, 1].

    Example:
        >>> holm([0.04, 0.01, 0.03]).tolist()
        [0.06, 0.03, 0.06]
    """
    p = _as_row("p_values", p_values)
    tested = np.flatnonzero(~np.isnan(p))
    outside = p[tested][(p[tested] < 0) | (p[tested] > 1)]
    if outside.size:
        raise ValueError(f"p_values must lie between 0 and 1, not {outside[0]}")
    order = tested[np.argsort(p[tested], kind="stable")]
    m = len(order)
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate((m - np.arange(m)) * p[order]))
    return adjusted


def outcome(*intervals: tuple[float, float]) -> Outcome:
    """Return the verdict of intervals for one difference, such as that over seeds and over rows.

        win: low > 0 for every interval;   loss: high < 0 for every one;   tie: otherwise

    Not a proof of equality: a tie says only that these seeds and rows cannot tell.

    Args:
        intervals: low and high end of each; a NaN end makes a tie.

    Raises:
        ValueError: if there is no interval.

    Example:
        >>> outcome((0.01, 0.03), (0.002, 0.05)), outcome((0.01, 0.03), (-0.01, 0.05))
        ('win', 'tie')
    """
    if not intervals:
        raise ValueError("no interval given: an outcome needs at least one")
    if all(low > 0 and high > 0 for low, high in intervals):
        return "win"
    if all(low < 0 and high < 0 for low, high in intervals):
        return "loss"
    return "tie"


def seeds_needed(
    effect: float,
    sd: float,
    *,
    power: float = 0.8,
    level: float = 0.95,
    most: int = 10_000,
) -> int:
    """Return the smallest number of paired seeds with which a t-test detects a mean difference.

        min {n >= 2 : P(|T'| > t_{n-1, 1-alpha/2}) >= power},   T' ~ t_{n-1}(sqrt(n) effect / sd)

    with the noncentral t distribution, alpha = 1 - level. Johnson and Welch, "Applications of the
    non-central t-distribution", Biometrika 1940.

    Not for a standard deviation known from three seeds: the 95 % interval for it spans a factor of
    12, and n grows with its square.

    Args:
        effect: the mean difference worth detecting, of either sign, in the unit of the scores.
        sd: standard deviation of the paired difference of a single seed, at least 0.
        power: probability of detecting it, between 0 and 1.
        level: of the interval that is to exclude 0, between 0 and 1.
        most: the largest number to consider, at least 2.

    Raises:
        ValueError: if the effect is 0, which no number detects, or more than ``most`` are needed.

    Example:
        >>> seeds_needed(0.01, 0.01), seeds_needed(0.005, 0.01)
        (10, 34)
    """
    tail = _tail(level)
    if effect == 0 or not math.isfinite(effect):
        raise ValueError(f"effect must be a number other than 0, not {effect}")
    if not 0 <= sd < math.inf:
        raise ValueError(f"sd must be a number, 0 or more, not {sd}")
    if not 0 < power < 1:
        raise ValueError(f"power must lie between 0 and 1, not {power}; 0.8 is usual")
    if most < 2:
        raise ValueError(f"most must be at least 2, not {most}: one pair has no spread")
    if sd == 0:
        return 2
    ratio = abs(effect) / sd
    numbers = range(2, most + 1)
    # Power grows with n, so a bisection finds the first that is enough.
    first = bisect.bisect_left(numbers, True, key=lambda n: _power(ratio, n, tail) >= power)
    if first == len(numbers):
        raise ValueError(
            f"more than {most} seeds are needed to detect {effect} at sd {sd}: "
            f"look for a larger effect, or raise most"
        )
    return numbers[first]


def _power(ratio: float, n: int, tail: float) -> float:
    """Return the power of the two-sided t-test with n pairs for a mean ``ratio`` sd's from 0."""
    critical = stats.t.ppf(1 - tail, df=n - 1)
    shift = min(ratio * math.sqrt(n), 1e8)  # beyond it nct gives NaN for what is 1
    # The lower tail mirrored: nct.cdf(-critical, n - 1, shift) is often NaN from shift = 5 on.
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, df=n - 1, nc=-shift))


def _as_row(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return the values as floats, (n,)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}: give one value after the other, (n,)")
    return values


def _by_seed(name: str, values: ArrayLike, num_rows: int) -> NDArray:
    """Return the values of each seed and row, (S, n); those of one seed may come as (n,)."""
    given = np.asarray(values)
    values = given[None] if given.ndim == 1 else given
    if values.ndim != 2 or len(values) == 0 or values.shape[1] != num_rows:
        raise ValueError(
            f"{name} has shape {given.shape}: give (seeds, {num_rows}), one value a seed and row"
        )
    return values
