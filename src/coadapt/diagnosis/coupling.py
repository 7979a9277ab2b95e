"""Residual coupling: what the labels of several tasks still share once the model has predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NotRequired, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.linalg import cholesky, solve_triangular

from coadapt._errors import InputError
from coadapt._linalg import Matrix, finite_matrix
from coadapt._stats import interval
from coadapt.theory.correlation import total_correlation

Residuals = Sequence[ArrayLike] | NDArray  # T of (n, k_t), or (n, T)
Rows = NDArray[np.intp] | slice
Covariance = Callable[[Matrix, Rows], Matrix]  # of some rows of whitened residuals, (D, D)

_FLOATS_HELD = 2**22  # of resampled covariances at a time: 32 MB
_MIN_SHRINKAGE = 1e-12  # resamples may be singular; with so much added they have a determinant
_DEPENDENT = 1e-10  # an eigenvalue of a correlation matrix this small is rounding
_ROUNDING = 1e-12  # in nats, and relative to the largest residual
_SUM_OFF = 1e-3  # probabilities in half precision sum to 1 within this


@dataclass(frozen=True, kw_only=True, eq=False)
class CouplingEstimate:
    """An estimate of residual coupling, in nats, with what bounds it and what it rests on.

    Args:
        estimator: its name, such as ``"delta_hat"``.
        raw: what the formula gives, at least 0; too large by about ``bias``.
        value: raw - bias; below 0 where chance alone would have given more.
        low: lower end of the interval for ``value``.
        high: upper end.
        p_value: of a raw value as large where tasks are independent, by permutation.
        p_bartlett: the same for Gaussian residuals, by Bartlett's approximation; None where labels
            are missing or teachers', or a task has several columns.
        bias: mean of the raw values of the permutations.
        num_rows: rows that it rests on.
        num_tasks: T.
        pair_counts: rows that have both tasks, (T, T); None where that is all of them.
        assumption: a sentence to print beside the number; empty if there is nothing to assume.
        pairs: the coupling of each two tasks alone, raw - bias, (T, T); 0 on the diagonal.
    """

    estimator: str
    raw: float
    value: float
    low: float
    high: float
    p_value: float
    p_bartlett: float | None
    bias: float
    num_rows: int
    num_tasks: int
    pair_counts: NDArray[np.int64] | None
    assumption: str
    pairs: Matrix


class ResamplingOptions(TypedDict):
    """The keyword arguments that all estimators share, see :func:`delta_hat`."""

    generator: np.random.Generator
    shrinkage: NotRequired[float]
    num_permutations: NotRequired[int]
    num_bootstrap: NotRequired[int]
    level: NotRequired[float]


def class_residuals(
    probabilities: ArrayLike,  # (n, C)
    labels: ArrayLike,  # (n,)
    *,
    pearson: bool = False,
) -> Matrix:
    r"""Return what predicted probabilities leave of the labels, the last class dropped.

    .. math:: e_{ic} = [y_i = c] - p_{ic}, \qquad c = 0 \dots C-2

    Khan, "Capacity and redundancy trade-offs in multi-task learning", "Estimating residual
    coupling", y - y_hat. With the predicted class as y_hat, right predictions would leave nothing;
    hence probabilities. The columns of all classes sum to 0, so one is dropped; :func:`delta_hat`
    does not depend on which.

    Not for a miscalibrated head: where several are too sure on the same rows, that error passes for
    coupling. See :func:`coadapt.diagnosis.teacher.temperature`.

    Args:
        probabilities: of each class, in [0, 1], each row summing to 1.
        labels: class ids, 0 to C - 1.
        pearson: divide by sqrt(p (1 - p)), so that sure rows weigh as much as others. From three
            classes on, the coupling then depends on which class is last.

    Returns:
        (n, C - 1), without unit.

    Raises:
        InputError: if shapes, range or labels do not fit, or all probabilities are 0 or 1.

    Example:
        >>> class_residuals([[0.75, 0.25], [0.5, 0.5]], [0, 1])
        array([[ 0.25],
               [-0.5 ]])
    """
    p = _probabilities(probabilities, "probabilities")
    e = np.eye(p.shape[1])[_class_ids(labels, p.shape)] - p
    spread = np.sqrt(p * (1 - p)) if pearson else np.ones_like(p)
    if spread.min() == 0:
        row = int(spread.min(axis=1).argmin())
        raise InputError(
            f"probabilities[{row}] is {p[row]}: pearson=True divides by sqrt(p (1 - p))"
        )
    return (e / spread)[:, :-1]


def regression_residuals(
    predictions: ArrayLike,  # (n,) or (n, k)
    labels: ArrayLike,  # as predictions
) -> Matrix:
    """Return y - y_hat, in the labels' unit, as a block (n, k) for :func:`delta_hat`.

    An InputError is raised where the shapes differ or a value is not finite.

    Example:
        >>> regression_residuals([0.5, 1.0], [1.0, 1.0])
        array([[0.5],
               [0. ]])
    """
    y_hat, y = _columns(predictions, "predictions"), _columns(labels, "labels")
    if y_hat.shape != y.shape:
        raise InputError(f"predictions have shape {y_hat.shape} and labels {y.shape}")
    return y - y_hat


def delta_hat(
    residuals: Residuals,  # T of (n, k_t), or (n, T)
    **options: Unpack[ResamplingOptions],
) -> CouplingEstimate:
    r"""Estimate the residual coupling of tasks whose labels are known on the same rows.

    .. math:: \hat\Delta = \tfrac12\Bigl[\sum_t \log\det R_{tt} - \log\det R\Bigr], \qquad
              R = \frac{R_e + \epsilon I}{1 + \epsilon}

    Khan, "Capacity and redundancy trade-offs in multi-task learning", "Estimating residual
    coupling": with one column a task it is -1/2 log det of the correlation matrix R_e. Deviations:
    the paper's R_e + eps I gives -(T/2) log(1 + eps) for independent tasks, so the diagonal is put
    back to 1; blocks are whitened first, so that recoding a task changes nothing.

    Independent tasks give about T(T - 1) / (4(n - 1)). ``bias`` is that number, by permuting the
    rows of each task; for Gaussians it is the bias whatever the coupling. The interval lays the
    spread of bootstrap replicates around their own mean, which is too large twice, around
    ``value``. It covers ``level`` where the coupling is well above the bias, and near 0 almost
    always, being up to 1.7 times as wide as it need be: for a test there is ``p_value``.

    It sees linear dependence alone: TC(Y | Z) for Gaussians, no bound of it for other labels. Not
    for tasks on different inputs, see :mod:`coadapt.diagnosis.teacher`.

    Args:
        residuals: a block of columns a task, from :func:`class_residuals` or
            :func:`regression_residuals`, or a matrix with one column a task; row i is input i.
        **options: ``generator``, the source of permutations and resamples; ``shrinkage``, eps, from
            1e-12 to 1, by default 1e-6, with which two equal columns give 6.6 nats;
            ``num_permutations``, at least 19, and ``num_bootstrap``, at least 2 / (1 - level) - 1,
            by default 999; ``level``, the interval's nominal coverage, by default 0.95.

    Raises:
        InputError: if there are fewer than two tasks, rows differ or do not exceed the columns, a
            value is not finite, a column is constant, or a task's columns depend on each other.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> residuals = generator.normal(size=(500, 1)) + generator.normal(size=(500, 3))
        >>> found = delta_hat(residuals, num_permutations=99, generator=generator)
        >>> found.low < 0.3466 < found.high, found.p_value  # -1/2 log det: correlations of 1/2
        (True, 0.01)
    """
    blocks = _blocks(residuals, "residuals")
    z = np.hstack([_whiten(x, f"residuals[{t}]")[0] for t, x in enumerate(blocks)])
    sizes = [x.shape[1] for x in blocks]
    return _estimate("delta_hat", z, sizes, **options)


def _covariance(z: Matrix, rows: Rows) -> Matrix:
    x = z[rows]
    x = x - x.mean(axis=0)
    return x.T @ x / len(x)


def _estimate(
    estimator: str,
    z: Matrix,  # (n, D): the covariance of each task is I
    sizes: list[int],
    covariance: Covariance = _covariance,
    observed: NDArray[np.bool_] | None = None,  # (n, T): only these rows of a task are permuted
    *,
    shrinkage: float = 1e-6,
    num_permutations: int = 999,
    num_bootstrap: int = 999,
    level: float = 0.95,
    generator: np.random.Generator,
) -> CouplingEstimate:
    """Return the coupling, its bias and p-value by permutation, and its bootstrap interval."""
    _check_options(shrinkage, num_permutations, num_bootstrap, level)
    n, T = len(z), len(sizes)
    rows = [np.arange(n) if observed is None else observed[:, t].nonzero()[0] for t in range(T)]

    def permuted() -> Matrix:
        shuffled = np.zeros_like(z)
        for block, own in zip(_slices(sizes), rows, strict=True):
            shuffled[own, block] = z[generator.permutation(own), block]
        return covariance(shuffled, slice(None))

    def resampled() -> Matrix:
        return covariance(z, generator.integers(0, n, size=n))

    R = covariance(z, slice(None))
    raw = total_correlation((R + shrinkage * np.eye(len(R))) / (1 + shrinkage), sizes=sizes)
    null, null_pairs = _drawn(permuted, num_permutations, sizes, shrinkage)
    boot, _ = _drawn(resampled, num_bootstrap, sizes, shrinkage)
    bias = float(null.mean())
    low, high = interval(raw - bias + boot - boot.mean(), level)
    bartlett = covariance is _covariance and max(sizes) == 1
    chi2 = 2 * (n - 1 - (2 * T + 5) / 6) * raw
    return CouplingEstimate(
        estimator=estimator,
        raw=raw,
        value=raw - bias,
        low=low,
        high=high,
        p_value=float((1 + (null >= raw - _ROUNDING).sum()) / (1 + num_permutations)),
        p_bartlett=float(stats.chi2.sf(chi2, T * (T - 1) / 2)) if bartlett else None,
        bias=bias,
        num_rows=n,
        num_tasks=T,
        pair_counts=None,
        assumption="",
        pairs=_pairs(R[None], sizes, shrinkage)[0] - null_pairs,
    )


def _drawn(
    draw: Callable[[], Matrix], num: int, sizes: list[int], shrinkage: float
) -> tuple[NDArray[np.float64], Matrix]:
    """Return the couplings of ``num`` drawn covariances and the mean ones of each two tasks."""
    values, pairs, step = [], np.zeros((len(sizes), len(sizes))), _FLOATS_HELD // sum(sizes) ** 2
    for start in range(0, num, max(1, step)):
        stack = np.stack([draw() for _ in range(min(max(1, step), num - start))])
        values.append(_couplings(stack, sizes, shrinkage))
        pairs += _pairs(stack, sizes, shrinkage).sum(axis=0) / num
    return np.concatenate(values), pairs


def _couplings(S: NDArray[np.float64], sizes: list[int], shrinkage: float) -> NDArray[np.float64]:
    """Return the coupling of each covariance of a stack, (B, D, D); 1 / (1 + eps) cancels."""
    S = S + shrinkage * np.eye(S.shape[-1])
    within = sum(np.linalg.slogdet(S[:, block, block])[1] for block in _slices(sizes))
    return (within - np.linalg.slogdet(S)[1]) / 2


def _pairs(S: NDArray[np.float64], sizes: list[int], shrinkage: float) -> NDArray[np.float64]:
    """Return the coupling of each two tasks alone, (B, T, T)."""
    pairs = np.zeros((len(S), len(sizes), len(sizes)))
    for i, j in combinations(range(len(sizes)), 2):
        both = np.r_[_slices(sizes)[i], _slices(sizes)[j]]
        pair = _couplings(S[:, both[:, None], both], [sizes[i], sizes[j]], shrinkage)
        pairs[:, i, j] = pairs[:, j, i] = pair
    return pairs


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _check_options(eps: float, num_permutations: int, num_bootstrap: int, level: float) -> None:
    if not _MIN_SHRINKAGE <= eps <= 1:
        raise InputError(f"shrinkage must lie in [{_MIN_SHRINKAGE}, 1], not {eps}")
    if num_permutations < 19:
        raise InputError(f"num_permutations must be at least 19, not {num_permutations}: p >= 0.05")
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, not {level}; 0.95 is usual")
    if num_bootstrap < 2 / (1 - level) - 1 - _ROUNDING / (1 - level):
        raise InputError(f"num_bootstrap is {num_bootstrap}, too few for an interval of {level}")


def _columns(values: ArrayLike, name: str) -> Matrix:
    x = np.asarray(values, dtype=np.float64)
    return finite_matrix(x[:, None] if x.ndim == 1 else x, name, shape=(None, None))


def _probabilities(values: ArrayLike, name: str) -> Matrix:
    """Return checked probabilities (n, C) that are not all 0 or 1."""
    p = finite_matrix(values, name, shape=(None, None))
    if p.shape[0] < 1 or p.shape[1] < 2:
        raise InputError(
            f"{name} has shape {p.shape}: give rows, and a column a class, two or more"
        )
    wrong = (np.abs(p.sum(axis=1) - 1) > _SUM_OFF) | (p < 0).any(axis=1) | (p > 1).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(f"{name}[{row}] is {p[row]}: each must lie in [0, 1] and their sum be 1")
    if np.isin(p, (0, 1)).all():
        raise InputError(f"{name} are all 0 or 1: give the softmax, not the predicted class")
    return p


def _class_ids(labels: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the labels as indices, one a row, into the columns."""
    y = np.asarray(labels)
    if y.shape != shape[:1]:
        raise InputError(f"labels have shape {y.shape}, not {shape[:1]}: give one a row")
    if (wrong := ~np.isin(y, np.arange(shape[1]))).any():
        row = int(wrong.argmax())
        raise InputError(f"labels[{row}] is {y[row]}: class ids 0 to {shape[1] - 1} are needed")
    return y.astype(np.intp)


def _blocks(residuals: Residuals, name: str) -> list[Matrix]:
    """Return the residuals as a checked block (n, k_t) a task, on the same n rows."""
    if isinstance(residuals, np.ndarray) and residuals.ndim == 2:
        residuals = list(residuals.T)
    blocks = [_columns(x, f"{name}[{t}]") for t, x in enumerate(residuals)]
    if len(blocks) < 2:
        raise InputError(f"{name}: {len(blocks)} task, but coupling is between two or more")
    if len({len(x) for x in blocks}) > 1:
        raise InputError(f"{name} have {[len(x) for x in blocks]} rows: give the same rows of all")
    n, D = len(blocks[0]), sum(x.shape[1] for x in blocks)
    if n <= D:
        raise InputError(f"{name} have {n} rows and {D} columns: at least {D + 1} rows are needed")
    return blocks


def _whiten(x: Matrix, name: str, noise: Matrix | float = 0.0) -> tuple[Matrix, Matrix]:
    """Return the centered rows times W', and W (k, k), where W (cov(x) + noise) W' = I."""
    centered = x - x.mean(axis=0)
    constant = np.abs(centered).max(axis=0) <= _ROUNDING * np.abs(x).max(axis=0)
    if constant.any():
        raise InputError(f"{name}: column {constant.argmax()} is the same in all rows")
    cov = centered.T @ centered / len(x) + noise
    deviations = np.sqrt(np.diag(cov))
    R = cov / np.outer(deviations, deviations)
    if np.linalg.eigvalsh(R).min() <= _DEPENDENT:
        raise InputError(f"{name}: a column depends on the others; drop one, as one class is")
    W = solve_triangular(cholesky(R, lower=True), np.diag(1 / deviations), lower=True)
    return centered @ W.T, W
