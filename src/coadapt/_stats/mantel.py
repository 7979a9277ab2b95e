"""Do two matrices over pairs of tasks agree, and does it help a pair to be together?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from coadapt._errors import InputError
from coadapt._linalg import symmetric

Array = NDArray[np.float64]
Method = Literal["pearson", "spearman"]
Alternative = Literal["two-sided", "greater"]

_FEW_TASKS = 6  # whose 720 orders are always listed
_ROUNDING = 1e-10  # correlations this far apart are equal: sums in another order
_AT_ONCE = 500  # permutations, to bound the memory


@dataclass(frozen=True, kw_only=True)
class MantelResult:
    """A correlation over pairs of tasks and how easily chance gives one as large.

    Args:
        correlation: over the pairs with a value in both matrices.
        p_value: against tasks that are exchangeable in one of them.
        num_pairs: pairs i < j that the correlation rests on.
        num_excluded: pairs left out, for NaN in one matrix or both.
        num_permutations: orders of the tasks that the p-value rests on.
        exact: whether these are all there are, the observed among them.
    """

    correlation: float
    p_value: float
    num_pairs: int
    num_excluded: int
    num_permutations: int
    exact: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBenefit:
    """What being together did to the scores, by pair of tasks.

    Args:
        benefit: (T, T), in the unit of the scores; NaN on the diagonal and for a pair that is never
            together or never apart.
        together: (T, T) partitions with a score that hold the pair together.
        apart: (T, T) partitions with a score that hold it apart.
    """

    benefit: Array
    together: NDArray[np.int64]
    apart: NDArray[np.int64]


def mantel(
    x: ArrayLike,  # (T, T)
    y: ArrayLike,  # (T, T)
    *,
    method: Method = "pearson",
    num_permutations: int = 9999,
    generator: np.random.Generator,
    alternative: Alternative = "two-sided",
) -> MantelResult:
    """Test whether two symmetric matrices over the same tasks agree, by permuting the tasks of one.

        r = corr_{i<j}(x_ij, y_ij),   p = #{pi: r_pi >= r} / T!,   r_pi = corr(x_ij, y_pi(i)pi(j))

    or p = (1 + #) / (1 + N) over N random orders pi where T! exceeds 6! and ``num_permutations``;
    with absolute values if two-sided. Mantel, "The detection of disease clustering and a
    generalized regression approach", Cancer Research 1967; the p of samples from Phipson and Smyth,
    "Permutation p-values should never be zero", 2010. Pairs share tasks, so the p-value of a plain
    correlation over pairs is too small.

    A pair without a value in either matrix is left out, under each order anew; an order for which
    there is then no correlation counts as at least as large. Ties count against the observed. Of
    three tasks there are 6 orders, so p is at least 1/6, of four at least 1/24.

    Not for matrices that were computed from one another, nor for the effect of a third one.

    Args:
        x: symmetric; NaN for a pair without a value; its diagonal has no effect.
        y: likewise, for the same tasks in the same order.
        method: of the values, or of their ranks.
        num_permutations: N.
        generator: the source of the orders; not used where all are listed.
        alternative: "greater" if only agreement counts, not opposition.

    Raises:
        InputError: if the matrices are not symmetric, not of one shape or infinite, fewer than 3
            pairs have both values, or either's values on these are all equal.

    Example:
        >>> x = [[0, 3, 2], [3, 0, 1], [2, 1, 0]]
        >>> found = mantel(x, x, generator=np.random.default_rng(0), alternative="greater")
        >>> round(found.correlation, 4), round(found.p_value, 4), found.exact
        (1.0, 0.1667, True)
    """
    if method not in ("pearson", "spearman") or alternative not in ("two-sided", "greater"):
        raise InputError(
            f"method must be pearson or spearman and alternative two-sided or greater, "
            f"not {method} and {alternative}"
        )
    if num_permutations < 1:
        raise InputError(f"num_permutations must be at least 1, not {num_permutations}")
    x_values, y_values = _with_gaps(x, "x"), _with_gaps(y, "y")
    if x_values.shape != y_values.shape:
        raise InputError(f"x is of shape {x_values.shape}, but y of {y_values.shape}")
    num_tasks = len(x_values)
    pairs = np.triu_indices(num_tasks, k=1)
    first = np.arange(num_tasks)[None]
    observed = float(_correlations(x_values, y_values, pairs, first, method)[0])
    known = ~np.isnan(x_values[pairs] + y_values[pairs])
    if math.isnan(observed):
        _refuse(x_values[pairs][known], y_values[pairs][known])
    # Not by its factorial, which is huge: exact up to the largest T with T! orders or fewer.
    exact = num_tasks <= _FEW_TASKS or math.factorial(min(num_tasks, 20)) <= num_permutations
    num, at_least = 0, 0
    for orders in _orders(num_tasks, None if exact else num_permutations, generator):
        r = _correlations(x_values, y_values, pairs, orders, method)
        sizes, bound = (r, observed) if alternative == "greater" else (abs(r), abs(observed))
        at_least += int((np.isnan(sizes) | (sizes >= bound - _ROUNDING)).sum())
        num += len(orders)
    return MantelResult(
        correlation=observed,
        p_value=at_least / num if exact else (1 + at_least) / (1 + num),
        num_pairs=int(known.sum()),
        num_excluded=int((~known).sum()),
        num_permutations=num,
        exact=exact,
    )


def pair_benefit(
    partitions: Sequence[Sequence[Sequence[str]]],
    scores: ArrayLike,  # (P,) or (P, T)
    names: Sequence[str],
    *,
    local: bool = False,
) -> PairBenefit:
    r"""Return by how much scores are higher where a pair of tasks is together than where apart.

    .. math:: \Delta_{ij} = \bar a^{ij}_{\text{together}} - \bar a^{ij}_{\text{apart}}

    over partitions p of the score a_p, the mean over all tasks, or if ``local`` over tasks i and j
    alone. Khan, "Capacity and redundancy trade-offs in multi-task learning", section S4.1, has the
    mean over all tasks, in which other pairs' fortunes are noise.

    Not for partitions of different sizes of groups: a pair is together more often where groups are
    large, and the difference is then theirs too. Nor a cause of its own: who else is in the group
    is averaged over as it occurred.

    Args:
        partitions: P of them, each with every task in one group; one that was trained with several
            seeds may occur as often.
        scores: of each partition, (P,), or by task, (P, T); NaN, a run that failed, is left out
            with all pairs whose mean it enters.
        names: of the T tasks, in the order of rows and columns of the result.
        local: whether to score a pair by its own two tasks.

    Raises:
        InputError: if a partition does not hold each task once, the scores do not fit, are
            infinite, or are not by task for ``local``.

    Example:
        >>> partitions = [[["a", "b"], ["c"]], [["a"], ["b", "c"]], [["a", "c"], ["b"]]]
        >>> pair_benefit(partitions, [0.75, 0.5, 0.25], ["a", "b", "c"]).benefit[0]
        array([   nan,  0.375, -0.375])
    """
    labels = _labels(partitions, names)  # (P, T)
    values = _scores(scores, labels.shape, local=local)
    num_tasks = len(names)
    if local:
        of_pair = (values[:, :, None] + values[:, None, :]) / 2  # (P, T, T)
    else:
        means = values if values.ndim == 1 else values.mean(axis=1)
        of_pair = np.broadcast_to(means[:, None, None], (len(means), num_tasks, num_tasks))
    known = ~np.isnan(of_pair)
    is_together = labels[:, :, None] == labels[:, None, :]
    masks = (known & is_together, known & ~is_together)
    together, apart = (mask.sum(axis=0) for mask in masks)
    with np.errstate(invalid="ignore"):
        sums = [np.where(mask, of_pair, 0.0).sum(axis=0) for mask in masks]
        benefit = np.divide(sums[0], together) - np.divide(sums[1], apart)
    np.fill_diagonal(benefit, np.nan)
    return PairBenefit(benefit=benefit, together=together, apart=apart)


def _correlations(
    x: Array,
    y: Array,
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]],
    orders: NDArray[np.int64],  # (N, T)
    method: Method,
) -> Array:
    """Return r under each order of y's tasks, (N,); NaN without 3 pairs or without spread."""
    rows, columns = pairs
    a, b = np.broadcast_arrays(x[pairs], y[orders[:, rows], orders[:, columns]])  # (N, pairs)
    known = ~np.isnan(a + b)
    if method == "spearman":
        a = stats.rankdata(np.where(known, a, np.nan), axis=1, nan_policy="omit")
        b = stats.rankdata(np.where(known, b, np.nan), axis=1, nan_policy="omit")
    num = known.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (_standardized(side, known, num) for side in (a, b))
        return np.where(num[:, 0] >= 3, np.clip((a * b).sum(axis=1), -1.0, 1.0), np.nan)


def _standardized(values: Array, known: NDArray[np.bool_], num: NDArray[np.int64]) -> Array:
    """Return the known values centered, of length 1 in each row; NaN if they are all equal."""
    low = np.where(known, values, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(known, values, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    scale = np.where(high > low, high - low, np.nan)  # no spread by value, not by rounding
    shifted = np.where(known, (values - low) / scale, 0.0)
    centered = np.where(known, shifted - shifted.sum(axis=1, keepdims=True) / num, 0.0)
    return centered / np.sqrt((centered**2).sum(axis=1, keepdims=True))


def _orders(
    num_tasks: int, num: int | None, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield all orders of the tasks, or ``num`` random ones, some at once."""
    if num is None:
        everything = permutations(range(num_tasks))
        while chunk := list(islice(everything, _AT_ONCE)):
            yield np.array(chunk)
        return
    for start in range(0, num, _AT_ONCE):
        rows = np.tile(np.arange(num_tasks), (min(_AT_ONCE, num - start), 1))
        yield generator.permuted(rows, axis=1)


def _with_gaps(values: ArrayLike, name: str) -> Array:
    """Return a symmetric matrix in which NaN stands for no value; the diagonal is zero."""
    matrix = np.array(values, dtype=np.float64)
    gaps = np.isnan(matrix)
    if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]:  # else the check below refuses it
        np.fill_diagonal(matrix, 0.0)
        np.fill_diagonal(gaps, False)
        if (gaps != gaps.T).any():
            row, column = np.argwhere(gaps & ~gaps.T)[0].tolist()
            raise InputError(f"{name}[{row}, {column}] is NaN but [{column}, {row}] is not")
    return np.where(gaps, np.nan, symmetric(np.where(gaps, 0.0, matrix), name))


def _refuse(x: Array, y: Array) -> None:
    """Say why there is no correlation of these."""
    if len(x) < 3:
        raise InputError(f"x and y have both values for {len(x)} pairs; a correlation takes 3")
    name, values = ("x", x) if np.ptp(x) == 0 else ("y", y)
    raise InputError(f"{name} is {values[0]:.6g} for each of the {len(x)} pairs: it has no spread")


def _labels(
    partitions: Sequence[Sequence[Sequence[str]]], names: Sequence[str]
) -> NDArray[np.int64]:
    """Return the number of each task's group in each partition, (P, T)."""
    if len(partitions) == 0 or len(set(names)) != len(names):
        raise InputError(
            f"there must be partitions, and names must be distinct; found {len(partitions)} "
            f"partitions of {list(names)}"
        )
    labels = np.empty((len(partitions), len(names)), dtype=np.int64)
    for p, groups in enumerate(partitions):
        if sorted(name for group in groups for name in group) != sorted(names):
            raise InputError(f"partitions[{p}] is {groups}: no partition of {list(names)}")
        group_of = {name: index for index, group in enumerate(groups) for name in group}
        labels[p] = [group_of[name] for name in names]
    return labels


def _scores(scores: ArrayLike, shape: tuple[int, ...], *, local: bool) -> Array:
    """Return the scores as (P,) or (P, T), which they have to be if ``local``."""
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != shape and (local or values.shape != shape[:1]):
        wanted = f"{shape}, by task" if local else f"{shape[:1]} or {shape}"
        raise InputError(f"scores must be of shape {wanted}, not {values.shape}")
    if np.isinf(values).any():
        raise InputError("scores has an infinite one; a failed run's score is NaN")
    return values
