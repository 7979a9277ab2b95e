"""Residual coupling where few or no rows have the labels of all tasks, and calibration."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from coadapt._errors import InputError
from coadapt._linalg import Matrix, finite_matrix, symmetric
from coadapt.diagnosis.coupling import (
    CouplingEstimate,
    ResamplingOptions,
    Residuals,
    Rows,
    _blocks,
    _class_ids,
    _columns,
    _covariance,
    _estimate,
    _probabilities,
    _slices,
    _whiten,
    delta_hat,
)

Mask = NDArray[np.bool_]  # which task a row has, (n, T)

_MAX_PROJECTIONS = 1000
_CONVERGED = 1e-10  # what a projection moves an entry of a correlation matrix by, at most

_AT_RANDOM = "Assumes that which tasks a row has labels for says nothing about its residuals."
_PROJECTED = (
    " The correlations of the pairs fit no common distribution (smallest eigenvalue {:.3g}) and "
    "were projected to the nearest that do, so the shrinkage sets the value: get more shared rows."
)
_TEACHER = (
    "Assumes that labels are independent given the input and teachers give their distributions; "
    "teachers extrapolate on foreign inputs, and those that share a backbone share errors."
)
_PLACEBO = "Compares teachers with teachers: what is not 0 here is error that teachers share."
_NULL = "Pairs unrelated rows: measures nothing but noise and the order of the rows."


def delta_partial(
    residuals: Residuals,  # T of (n, k_t), or (n, T)
    *,
    min_pairs: int = 50,
    **options: Unpack[ResamplingOptions],
) -> CouplingEstimate:
    r"""Estimate the residual coupling where each row has the labels of some tasks.

    .. math:: R_{ij} = C_{ii}^{-1/2} C_{ij} C_{jj}^{-1/2} \text{ on the rows with both},
              \qquad \hat\Delta = -\tfrac12 \log\det \operatorname{nearest}(R)

    As :func:`delta_hat`, which it equals where no label is missing, with pairwise correlations and
    :func:`nearest_correlation`. Rows with fewer than two labels are left out, and each task's rows
    are permuted among those that have its label. A projected matrix is singular: its coupling is
    set by ``shrinkage``, and ``assumption`` says so.

    Not for labels that are missing for a reason, such as those asked for where another is 1.

    Args:
        residuals: as for :func:`delta_hat`, NaN in all of a task's columns where it has no label.
        min_pairs: the fewest rows that each two tasks must share.
        **options: as for :func:`delta_hat`.

    Raises:
        InputError: if two tasks share fewer rows or no more than their columns, some columns of a
            task are NaN without the others, or as for :func:`delta_hat`.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> residuals = generator.normal(size=(300, 1)) + generator.normal(size=(300, 3))
        >>> residuals[:100, 0] = residuals[100:200, 1] = np.nan
        >>> found = delta_partial(residuals, num_permutations=99, generator=generator)
        >>> found.pair_counts.tolist()
        [[200, 100, 200], [100, 200, 200], [200, 200, 300]]
    """
    blocks, observed = _observed(residuals)
    sizes = [x.shape[1] for x in blocks]
    pair_counts = _pair_counts(blocks, observed, min_pairs)
    z = np.zeros((len(observed), sum(sizes)))
    for t, (x, block) in enumerate(zip(blocks, _slices(sizes), strict=True)):
        z[observed[:, t], block] = _whiten(x[observed[:, t]], f"residuals[{t}]")[0]

    def covariance(z: Matrix, rows: Rows) -> Matrix:
        R = _pairwise_correlations(z[rows], observed[rows], sizes)
        return nearest_correlation(R, sizes=sizes)

    found = _estimate("delta_partial", z, sizes, covariance, observed, **options)
    smallest = np.linalg.eigvalsh(_pairwise_correlations(z, observed, sizes)).min()
    assumption = _AT_RANDOM + (_PROJECTED.format(smallest) if smallest < -_CONVERGED else "")
    return replace(found, pair_counts=pair_counts, assumption=assumption)


def _observed(residuals: Residuals) -> tuple[list[Matrix], Mask]:
    """Return the blocks, 0 where missing, and which task a row has, of rows with two or more."""
    if isinstance(residuals, np.ndarray) and residuals.ndim == 2:
        residuals = list(residuals.T)
    arrays = [np.asarray(x, dtype=np.float64) for x in residuals]
    blocks = _blocks([np.where(np.isnan(x), 0, x) for x in arrays], "residuals")
    missing = [np.isnan(x).reshape(len(x), -1) for x in arrays]
    for t, lacks in enumerate(missing):
        if (lacks.any(axis=1) != lacks.all(axis=1)).any():
            raise InputError(f"residuals[{t}]: a row is NaN in some columns but not in all")
    observed = ~np.column_stack([lacks[:, 0] for lacks in missing])
    rows = observed.sum(axis=1) > 1
    return [x[rows] for x in blocks], observed[rows]


def nearest_correlation(matrix: ArrayLike, *, sizes: Sequence[int] | None = None) -> Matrix:
    r"""Return the correlation matrix nearest to a symmetric one, in the Frobenius norm.

    .. math:: \min_X \|A - X\|_F \quad\text{with}\quad X \succeq 0,\; X_{tt} = I

    Higham, "Computing the nearest correlation matrix", IMA J. Numer. Anal. 2002, algorithm 3.3:
    alternating projections with Dykstra's correction. In blocks, all of X_tt is held at I.

    Args:
        matrix: A, symmetric.
        sizes: columns of each block; by default 1 each.

    Raises:
        InputError: if it is not symmetric or not finite.

    Example:
        >>> nearest_correlation([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).round(4)[0]
        array([1.    , 0.7607, 0.1573])
    """
    A = symmetric(matrix, "matrix")
    blocks = _slices([1] * len(A) if sizes is None else sizes)
    Y, correction = _with_unit_blocks(A, blocks), np.zeros_like(A)
    if (Y == A).all() and np.linalg.eigvalsh(A).min() >= 0:
        return A
    Y = A
    for _ in range(_MAX_PROJECTIONS):
        values, vectors = np.linalg.eigh(Y - correction)
        X = (vectors * values.clip(min=0)) @ vectors.T
        correction += X - Y
        before, Y = Y, _with_unit_blocks(X, blocks)
        if np.abs(Y - before).max() <= _CONVERGED:
            break
    smallest = min(0.0, float(np.linalg.eigvalsh(Y).min()))  # what convergence has left
    return _with_unit_blocks((Y - smallest * np.eye(len(Y))) / (1 - smallest), blocks)


def _with_unit_blocks(matrix: Matrix, blocks: list[slice]) -> Matrix:
    unit = (matrix + matrix.T) / 2
    for block in blocks:
        unit[block, block] = np.eye(block.stop - block.start)
    return unit


def _pair_counts(blocks: list[Matrix], observed: Mask, min_pairs: int) -> NDArray[np.int64]:
    counts = observed.T.astype(np.int64) @ observed
    for i, j in permutations(range(len(blocks)), 2):
        n, needed = counts[i, j], max(min_pairs, blocks[i].shape[1] + blocks[j].shape[1] + 1)
        if n < needed:
            raise InputError(f"tasks {i} and {j} share {n} rows, below {needed}: leave one out")
        _whiten(blocks[i][observed[:, i] & observed[:, j]], f"residuals[{i}] where {j} is known")
    return counts


def _pairwise_correlations(z: Matrix, observed: Mask, sizes: list[int]) -> Matrix:
    """Return R with R_ij from the rows that have i and j, and R_tt = I; z is 0 where missing."""
    m, blocks = observed.astype(np.float64), _slices(sizes)
    n = np.maximum(m.T @ m, 1)
    means = [z[:, block].T @ m / n[i] for i, block in enumerate(blocks)]  # (k_i, T)
    roots = []  # of the inverse covariances of task i on the rows shared with each j, (T, k_i, k_i)
    for i, (block, mean) in enumerate(zip(blocks, means, strict=True)):
        x, k = z[:, block], sizes[i]
        squares = (x[:, :, None] * x[:, None]).reshape(-1, k * k).T @ m / n[i]
        cov = squares.T.reshape(-1, k, k) - mean.T[:, :, None] * mean.T[:, None]
        values, vectors = np.linalg.eigh(cov)
        scaled = vectors / np.sqrt(values.clip(min=np.finfo(np.float64).eps))[:, None]
        roots.append(scaled @ vectors.transpose(0, 2, 1))
    R = np.eye(z.shape[1])
    products = z.T @ z
    for i, j in combinations(range(len(sizes)), 2):
        cov = products[blocks[i], blocks[j]] / n[i, j] - np.outer(means[i][:, j], means[j][:, i])
        R[blocks[i], blocks[j]] = roots[i][j] @ cov @ roots[j][i]
        R[blocks[j], blocks[i]] = R[blocks[i], blocks[j]].T
    return R


def delta_teacher(
    teacher: Sequence[ArrayLike],  # T of (n, C_t)
    student: Sequence[ArrayLike],  # T of (n, C_t)
    *,
    residual_variances: Sequence[float | None] | None = None,  # (T,)
    **options: Unpack[ResamplingOptions],
) -> CouplingEstimate:
    r"""Estimate the residual coupling on any inputs, with a teacher a task in place of labels.

    .. math:: r_t = q_t - p_t - \overline{(q_t - p_t)}, \quad C_{ij} = E[r_i r_j'], \quad
              C_{tt} = E[r_t r_t'] + E[\operatorname{diag}(q_t) - q_t q_t'], \quad
              \Delta = \tfrac12\Bigl[\sum_t \log\det C_{tt} - \log\det C\Bigr]

    The covariance of y - p for labels drawn from q, without drawing them (Rao-Blackwell); one class
    is dropped. For tasks that share no rows: their joint law is then not in the data, and the
    number rests on what ``assumption`` says. Report it for each source of inputs too, and beside
    :func:`teacher_placebo`.

    Not a Delta of the labels: where these depend on each other given the input, it does not see it.

    Args:
        teacher: q, the probabilities that a single-task model gives, calibrated; for a regression
            its means, (n,) or (n, 1).
        student: p, those of the model in question, on the same inputs.
        residual_variances: of the label around the teacher's mean for a regression, in the label's
            unit squared, > 0; None for a classification. By default all are classifications.
        **options: as for :func:`delta_hat`; rows are permuted and resampled over the pool.

    Raises:
        InputError: if numbers of tasks or shapes differ, probabilities are none or are all 0 or 1,
            student and teacher are the same, or as for :func:`delta_hat`.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> x = generator.uniform(0.1, 0.9, size=500)
        >>> teacher, student = np.column_stack([x, 1 - x]), np.full((500, 2), 0.5)
        >>> found = delta_teacher([teacher] * 2, [student] * 2, generator=generator)
        >>> found.low < 0.0232 < found.high  # correlation 4 Var(x) = 0.2133
        True
    """
    variances = [None] * len(teacher) if residual_variances is None else list(residual_variances)
    if len({len(teacher), len(student), len(variances)}) > 1:
        raise InputError("teacher, student and residual_variances must have as many tasks each")
    q = [_outputs(x, f"teacher[{t}]", variances[t]) for t, x in enumerate(teacher)]
    p = [_outputs(x, f"student[{t}]", variances[t]) for t, x in enumerate(student)]
    for t, (x, y) in enumerate(zip(q, p, strict=True)):
        if x.shape != y.shape:
            raise InputError(f"task {t}: teacher has shape {x.shape}, student has {y.shape}")
    blocks = _blocks([x - y for x, y in zip(q, p, strict=True)], "teacher - student")

    def noise(t: int, rows: Rows) -> Matrix:
        if (variance := variances[t]) is not None:
            return np.array([[variance]])
        x = q[t][rows]
        return np.diag(x.mean(axis=0)) - x.T @ x / len(x)

    name, everything = "teacher - student of task", slice(None)
    whitened = [_whiten(x, f"{name} {t}", noise(t, everything)) for t, x in enumerate(blocks)]
    z, W = np.hstack([z_t for z_t, _ in whitened]), [W_t for _, W_t in whitened]
    sizes = [x.shape[1] for x in blocks]

    def covariance(z: Matrix, rows: Rows) -> Matrix:
        C = _covariance(z, rows)
        for t, block in enumerate(_slices(sizes)):
            C[block, block] += W[t] @ noise(t, rows) @ W[t].T
        return C

    found = _estimate("delta_teacher", z, sizes, covariance, **options)
    return replace(found, assumption=_TEACHER)


def _outputs(values: ArrayLike, name: str, variance: float | None) -> Matrix:
    """Return probabilities without the last class, or means as one column."""
    if variance is None:
        return _probabilities(values, name)[:, :-1]
    if not 0 < variance < np.inf:
        raise InputError(f"residual_variances must be > 0 and finite, not {variance}")
    return finite_matrix(_columns(values, name), name, shape=(None, 1))


def teacher_placebo(
    teacher_a: Sequence[ArrayLike],  # T of (n, C_t)
    teacher_b: Sequence[ArrayLike],  # T of (n, C_t)
    *,
    residual_variances: Sequence[float | None] | None = None,  # (T,)
    **options: Unpack[ResamplingOptions],
) -> CouplingEstimate:
    """Return :func:`delta_teacher` of one set of teachers against another, which should be 0.

    Fit the two with different seeds on disjoint folds. What they share across tasks is error of
    the teachers, not coupling, and :func:`delta_teacher` holds error like it.

    Arguments and errors are those of :func:`delta_teacher`, with ``teacher_b`` as the student.
    """
    found = delta_teacher(teacher_a, teacher_b, residual_variances=residual_variances, **options)
    return replace(found, estimator="placebo", assumption=_PLACEBO)


def null_alignment(
    residuals: Sequence[ArrayLike],  # T of (n_t, k_t)
    **options: Unpack[ResamplingOptions],
) -> CouplingEstimate:
    """Return :func:`delta_hat` with row i of one data set beside row i of another: a null control.

    All are cut to the shortest. The rows are unrelated, so this is near 0 whatever the coupling,
    and anything else comes from the order of the rows, such as sorted labels. Arguments and errors
    are those of :func:`delta_hat`, except that each task has rows of its own.
    """
    blocks = [_columns(x, f"residuals[{t}]") for t, x in enumerate(residuals)]
    shortest = min((len(x) for x in blocks), default=0)
    found = delta_hat([x[:shortest] for x in blocks], **options)
    return replace(found, estimator="null_alignment", assumption=_NULL)


def temperature(
    logits: ArrayLike,  # (n, C)
    labels: ArrayLike,  # (n,)
    *,
    bounds: tuple[float, float] = (0.05, 20.0),
) -> float:
    r"""Return the temperature that makes logits best calibrated, to divide them by.

    .. math:: \min_\tau -\tfrac1n \sum_i \log \operatorname{softmax}(z_i / \tau)_{y_i}

    Guo et al., "On calibration of modern neural networks", ICML 2017, equation 9. Fit it on rows
    that the head was not trained on and the coupling is not measured on, such as half of the
    validation rows. Where all rows are right the minimum is at 0: the lower bound is returned.

    Args:
        logits: a column a class; for one binary logit z, the columns 0 and z.
        labels: class ids, 0 to C - 1.
        bounds: the range searched, 0 < low < high.

    Returns:
        tau, without unit; above 1 for a head that is too sure.

    Raises:
        InputError: if shapes, labels or bounds do not fit, or each row's logits are all equal.

    Example:
        >>> logits = np.log([[0.9, 0.1]] * 4)
        >>> round(temperature(logits, [0, 0, 0, 1]), 4)  # log 9 / log 3
        2.0
    """
    z = finite_matrix(logits, "logits", shape=(None, None))
    y = _class_ids(labels, z.shape)
    if not 0 < bounds[0] < bounds[1] < np.inf:
        raise InputError(f"bounds must be 0 < low < high, not {bounds}")
    if (z == z[:, :1]).all():
        raise InputError(f"logits {z.shape} are equal in each row: give 2 or more columns")
    above = z - z[np.arange(len(y)), y][:, None]  # the true class's at 0: no cancellation

    def loss(log_tau: float) -> float:
        return float(np.mean(logsumexp(above / np.exp(log_tau), axis=1)))

    low, high = np.log(bounds)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    best = min([low, float(found.x), high], key=loss)  # low where all losses underflow to 0
    return float(np.exp(best))
