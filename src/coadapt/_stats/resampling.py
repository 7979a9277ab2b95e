"""Resampling and intervals: how far a score could have fallen otherwise."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_CHUNK = 2**20  # indices drawn at a time: 8 MB, whatever the number of rows


def _resamples(
    num_rows: int, num_resamples: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield blocks of resampled row numbers, (resamples in the block, num_rows)."""
    if num_rows < 1:
        raise ValueError("num_rows = 0: there is nothing to resample, give at least one row")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, not {num_resamples}")
    step = max(1, _CHUNK // num_rows)
    for start in range(0, num_resamples, step):
        size = (min(step, num_resamples - start), num_rows)
        yield generator.integers(0, num_rows, size=size)


def bootstrap(
    metric: Callable[[NDArray, NDArray], float],
    y_true: ArrayLike,  # (n,)
    y_pred: ArrayLike,  # (n,) or (n, ...)
    *,
    num_resamples: int = 1000,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the metric on resamples of the rows, drawn with replacement.

        t*_b = metric(y_true[i_b], y_pred[i_b]),   i_b ~ Uniform{0..n-1}^n,   b = 1..B

    Efron, "Bootstrap methods: another look at the jackknife", 1979, section 2. A metric that is a
    mean over rows (accuracy, squared error) may be given by its rows to :func:`bootstrap_mean`,
    which draws the same resamples, hence gives the same values, without a call for each.

    Not for a handful of rows, nor for rows that depend on each other (several of one document): the
    samples then spread too little.

    Args:
        metric: takes the true and the predicted values of a resample, in that order.
        y_true: true values, one a row.
        y_pred: predictions, as many rows.
        num_resamples: B.
        generator: the source of the resamples; the same state gives the same values.

    Returns:
        The B values, in the metric's unit; NaN where the metric is not defined on a resample.

    Raises:
        ValueError: if there are no rows, or the lengths differ.

    Example:
        >>> hits = lambda y_true, y_pred: float((y_true == y_pred).mean())
        >>> generator = np.random.default_rng(0)
        >>> samples = bootstrap(hits, [0, 1, 1, 0], [0, 1, 0, 0], generator=generator)
        >>> samples.shape
        (1000,)
    """
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if len(y_true) != len(y_pred):
        raise ValueError(
            f"y_true has {len(y_true)} rows and y_pred {len(y_pred)}: give a prediction a row"
        )
    blocks = _resamples(len(y_true), num_resamples, generator)
    values = [metric(y_true[i_b], y_pred[i_b]) for block in blocks for i_b in block]
    return np.array(values, dtype=np.float64)


def bootstrap_mean(
    scores: ArrayLike,  # (n,)
    *,
    num_resamples: int = 1000,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the mean of the scores on resamples of the rows: :func:`bootstrap` for a mean.

        t*_b = 1/n sum_i scores[i_b],   i_b ~ Uniform{0..n-1}^n,   b = 1..B

    Args:
        scores: one a row; for accuracy 1 where the prediction is right, else 0.
        num_resamples: B.
        generator: the source of the resamples; the same state gives the same values.

    Returns:
        The B means, in the unit of the scores.

    Raises:
        ValueError: if there are no rows, or more than one score a row.

    Example:
        >>> samples = bootstrap_mean([1, 1, 0, 1], generator=np.random.default_rng(0))
        >>> bool(0.7 < samples.mean() < 0.8)
        True
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"scores has shape {scores.shape}: give one score a row")
    blocks = _resamples(len(scores), num_resamples, generator)
    return np.concatenate([scores[block].mean(axis=1) for block in blocks])


def interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap samples.

        (q_{alpha/2}(t*), q_{1-alpha/2}(t*)),   alpha = 1 - level

    Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3. Resamples on which
    the metric is not defined (NaN) are left out. It has no width where all samples are equal, so a
    score of 1 on few rows looks surer than it is; close to 1 it covers less than it says.

    Args:
        samples: values of a metric on resamples, (B,).
        level: the nominal coverage, between 0 and 1.

    Returns:
        Low and high end, in the unit of the samples; both NaN where no sample is a number.

    Raises:
        ValueError: if the level lies outside (0, 1).

    Example:
        >>> interval(np.arange(101), level=0.5)
        (25.0, 75.0)
    """
    tail = _tail(level)
    samples = np.asarray(samples, dtype=np.float64)
    samples = samples[~np.isnan(samples)]
    if samples.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: Sequence[float] | NDArray, level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval for the mean of values that are independent, as over seeds.

        mean +- t_{n-1, 1-alpha/2} * s / sqrt(n),   s^2 = sum_i (v_i - mean)^2 / (n - 1)

    "Student", "The probable error of a mean", Biometrika 1908. It tells where the mean over *other
    seeds* would fall on the same rows; :func:`bootstrap` tells what other rows would do.

    Args:
        values: one a seed, (n,).
        level: the nominal coverage, between 0 and 1.

    Returns:
        Low and high end, in the unit of the values; both NaN for fewer than two values, which bound
        nothing.

    Raises:
        ValueError: if the level lies outside (0, 1).

    Example:
        >>> low, high = mean_interval([0.80, 0.82, 0.84])
        >>> round(low, 3), round(high, 3)
        (0.77, 0.87)
    """
    tail = _tail(level)
    values = np.asarray(values, dtype=np.float64)
    n = values.size
    if n < 2:
        return float("nan"), float("nan")
    mean = float(values.mean())
    half = float(stats.t.ppf(1 - tail, df=n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean - half, mean + half


def _tail(level: float) -> float:
    """Return alpha / 2, the share of the samples beyond each end."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}; 0.95 is usual")
    return (1 - level) / 2
