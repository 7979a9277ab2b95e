"""Total correlation of discrete labels, from how often they occur together."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from coadapt._errors import InputError
from coadapt.theory._checks import whole

Method = Literal["plugin", "miller_madow"]

_ROWS_PER_CELL = 5
_MAX_CELLS = 10_000_000  # of a table, 80 MB
_TIE = 1e-12  # nats; two values that differ by rounding alone


@dataclass(frozen=True, kw_only=True)
class CountedCorrelation:
    """A total correlation from counts.

    Attributes:
        value: in nats.
        n: how many rows were counted.
        p_value: probability of as large a value among permutations; None without any.
        null_mean: mean over permutations, in nats: the bias where labels are independent.
        null_std: standard deviation over permutations, in nats.
    """

    value: float
    n: int
    p_value: float | None = None
    null_mean: float | None = None
    null_std: float | None = None


def contingency_table(labels: ArrayLike) -> NDArray[np.int64]:
    """Return how often each combination of labels occurs, an axis a label.

    Args:
        labels: (n, T) whole numbers, a row for each observation of all T labels; n, T >= 1.

    Returns:
        A cell for each combination of the values that occur in the columns, these in ascending
        order.

    Raises:
        InputError: if the labels are not whole numbers, or there are more than 10 million cells.

    Example:
        >>> contingency_table([[0, 5], [0, 7], [1, 7], [1, 7]])
        array([[1, 1],
               [0, 2]])
    """
    values = np.asarray(labels)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iub":
        raise InputError(
            f"labels must be (n, T) whole numbers, not {values.dtype} of shape {values.shape}"
        )
    found = [np.unique(column, return_inverse=True) for column in values.T]
    sizes = [len(levels) for levels, _ in found]
    cells = float(np.prod(np.array(sizes, dtype=np.float64)))
    if cells > _MAX_CELLS:
        raise InputError(f"labels with {sizes} values make {cells:.3g} cells: take fewer labels")
    return _tabulate([codes.ravel() for _, codes in found], tuple(sizes))


def total_correlation_counts(
    counts: ArrayLike,
    *,
    method: Method = "plugin",
    num_permutations: int = 0,
    generator: np.random.Generator | None = None,
    force: bool = False,
) -> CountedCorrelation:
    r"""Return the total correlation of discrete labels from their joint counts, in nats.

    .. math:: TC = \sum_t H(Y_t) - H(Y_1, \dots, Y_T)

    Watanabe 1960; Khan, equation S1.15. "plugin" puts shares in place of probabilities; where the
    labels are independent it is too large by about [(prod_t m_t - 1) - sum_t (m_t - 1)] / (2n).
    "miller_madow" adds (occupied cells - 1) / (2n) to each entropy (Miller 1955), which removes
    most of that and may give a value below 0. The null distribution shuffles the columns of all
    labels but the first, each on its own, so that their marginals stay.

    Not for labels of different inputs, put side by side: that says nothing of their dependence.

    Args:
        counts: joint table with an axis for each of T >= 1 labels, whole numbers of at least 0;
            :func:`contingency_table` makes one.
        method: the estimator of the entropies, also under the null.
        num_permutations: N, 0 or at least 2. The p-value is (1 + #{null >= value}) / (1 + N).
        generator: source of the permutations; needed if there are any.
        force: accept fewer than 5 rows a cell, where the value is mostly bias.

    Raises:
        InputError: if the counts are no counts, too few, or an argument is out of its range.

    Example:
        >>> found = total_correlation_counts([[40, 10], [10, 40]])
        >>> round(found.value, 4), found.n
        (0.1927, 100)
    """
    table = _checked(counts, force=force)
    if method not in get_args(Method):
        raise InputError(f"method must be one of {get_args(Method)}, not {method!r}")
    if whole(num_permutations, "num_permutations", least=0) == 1:
        raise InputError("num_permutations must be 0 or at least 2, not 1")
    value, n = _total_correlation(table, method), int(table.sum())
    if num_permutations == 0:
        return CountedCorrelation(value=value, n=n)
    if generator is None:
        raise InputError("generator must be given where there are permutations")
    rows = np.repeat(np.argwhere(table), table[table > 0], axis=0)
    null = np.array(
        [
            _total_correlation(_shuffled(rows, table.shape, generator), method)
            for _ in range(num_permutations)
        ]
    )
    as_large = int((null >= value - _TIE).sum())
    return CountedCorrelation(
        value=value,
        n=n,
        p_value=(1 + as_large) / (1 + num_permutations),
        null_mean=float(null.mean()),
        null_std=float(null.std(ddof=1)),
    )


def _total_correlation(table: NDArray[np.int64], method: Method) -> float:
    axes = range(table.ndim)
    marginals = [table.sum(axis=tuple(a for a in axes if a != t)) for t in axes]
    return sum(_entropy(marginal, method) for marginal in marginals) - _entropy(table, method)


def _entropy(counts: NDArray[np.int64], method: Method) -> float:
    """Return the entropy in nats."""
    n = counts.sum()
    plugin = float(entr(counts / n).sum())
    return plugin if method == "plugin" else plugin + (np.count_nonzero(counts) - 1) / (2 * int(n))


def _shuffled(
    rows: NDArray[np.int64], sizes: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return the table of the rows with each column but the first in an order of its own."""
    others = [generator.permutation(column) for column in rows.T[1:]]
    return _tabulate([rows[:, 0], *others], sizes)


def _tabulate(codes: list[NDArray[np.int64]], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    flat = np.ravel_multi_index(tuple(codes), sizes)
    return np.bincount(flat, minlength=int(np.prod(sizes))).reshape(sizes)


def _checked(counts: ArrayLike, *, force: bool) -> NDArray[np.int64]:
    """Return the counts as whole numbers.

    Raises:
        InputError: if they are none, or too few for the table's size.
    """
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim == 0 or not np.isfinite(values).all():
        raise InputError("counts must be a table of finite numbers with an axis a label")
    if (values < 0).any() or (values != np.floor(values)).any():
        raise InputError("counts must be whole numbers of at least 0, not shares")
    n = int(values.sum())
    if n == 0:
        raise InputError("counts are all 0: there is nothing to estimate from")
    if n < _ROWS_PER_CELL * values.size and not force:
        raise InputError(
            f"{n} rows in {values.size} cells are too few, {_ROWS_PER_CELL} a cell are the least: "
            "merge classes, take fewer labels, or pass force=True"
        )
    return values.astype(np.int64)
