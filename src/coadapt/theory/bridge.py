"""From the cosine of two tasks' gradients to the redundancy of their labels."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coadapt._errors import InputError
from coadapt._linalg import Matrix, finite_matrix, log_det, symmetric
from coadapt.theory._checks import psd_root

_ROUNDING = 1e-8  # of a cosine that should be 1


def natural_gradient_cosine(U: ArrayLike, cov_x: ArrayLike) -> Matrix:
    r"""Return the cosines of the tasks' natural gradients, which are their signals' correlations.

    .. math:: c_{ij} = \frac{g_i^\top S_x^{-1} g_j}{\sqrt{g_i^\top S_x^{-1} g_i\; g_j^\top S_x^{-1}
        g_j}} = \frac{u_i^\top S_x u_j}{\sqrt{u_i^\top S_x u_i\; u_j^\top S_x u_j}},
        \qquad g_t = -S_x u_t

    g_t is the gradient of task t's squared loss for a shared linear predictor at 0, or at any other
    point once that is subtracted. The abstract of Khan, "Capacity and redundancy trade-offs in
    multi-task learning", promises the bridge and the paper has none; this is derived from its
    linear-Gaussian model.

    The plain cosine of g_i and g_j is another number, unless S_x is a multiple of I on the tasks'
    span.

    Args:
        U: (d, T) a column for each task.
        cov_x: (d, d) covariance S_x, symmetric positive semi-definite.

    Returns:
        (T, T), symmetric, 1 on the diagonal, in [-1, 1].

    Raises:
        InputError: if a shape does not fit, ``cov_x`` is no covariance, or a task has no signal.

    Example:
        >>> natural_gradient_cosine([[1.0, 1.0], [0.0, 1.0]], np.diag([9.0, 16.0]))
        array([[1. , 0.6],
               [0.6, 1. ]])
    """
    S = symmetric(cov_x, "cov_x")
    U = finite_matrix(U, "U", shape=(len(S), None))
    signals = psd_root(S, "cov_x").T @ U
    lengths = np.linalg.norm(signals, axis=0)
    if (lengths == 0).any():
        raise InputError(f"column {int(lengths.argmin())} of U has no signal: u' cov_x u is 0")
    signals = signals / lengths
    cosine = np.clip(signals.T @ signals, -1.0, 1.0)
    np.fill_diagonal(cosine, 1.0)
    return (cosine + cosine.T) / 2


def gradient_tc(cosine: ArrayLike, r2: ArrayLike) -> float:
    r"""Return the total correlation of labels with these natural-gradient cosines, in nats.

    .. math:: TC(Y) = -\tfrac12 \log\det\bigl(I + \operatorname{offdiag}(c_{ij} R_i R_j)\bigr)

    exact in the model of :func:`natural_gradient_cosine`, where R_t^2 is the share of task t's
    label variance that is signal. Hence with equal R, pairs are ordered by ``|c|`` as by
    redundancy.
    Limits:

    1. c must be the natural-gradient cosine. The Euclidean one can be far off: in
       ``tests/theory/test_claims.py`` it gives 0.004 nats where 0.045 is true.
    2. The size of c carries redundancy, not its sign; the sign is about conflicting updates.
    3. With unequal R the order of ``|c|`` is not that of redundancy.
    4. For three tasks and more, cosines order pairs, not sets, beyond second order.

    Not for gradients of a trained network without saying so: there it is an analogy.

    Args:
        cosine: (T, T) with ones on the diagonal; or one number, for a pair.
        r2: (T,) R_t^2 in [0, 1].

    Raises:
        InputError: if a shape or range does not fit, or these are no correlations of any labels, or
            of labels that determine each other (TC is infinite).

    Example:
        >>> round(gradient_tc(0.6, [0.5, 0.5]), 4)
        0.0472
    """
    return max(0.0, -0.5 * log_det(_label_correlation(cosine, r2), "the labels' correlation"))


def gradient_tc_second_order(cosine: ArrayLike, r2: ArrayLike) -> float:
    r"""Return the leading term of :func:`gradient_tc` for weakly related tasks, in nats.

    .. math:: TC(Y) \approx \tfrac12 \sum_{i<j} c_{ij}^2 R_i^2 R_j^2

    The next term is -sum_{i<j<k} of products of three correlations, which may have either sign; for
    a pair it is 1/4 c^4 R_i^4 R_j^4. So for a pair this is a lower bound, for more it is not.

    Args:
        cosine: as for :func:`gradient_tc`.
        r2: (T,) R_t^2 in [0, 1].

    Raises:
        InputError: if a shape or range does not fit.

    Example:
        >>> round(gradient_tc_second_order(0.6, [0.5, 0.5]), 4)
        0.045
    """
    return float(0.5 * np.square(np.triu(_label_correlation(cosine, r2), 1)).sum())


def pairwise_gradient_tc(cosine: ArrayLike, r2: ArrayLike) -> Matrix:
    r"""Return the redundancy of each pair of tasks, in nats.

    .. math:: TC(Y_i, Y_j) = -\tfrac12 \log(1 - c_{ij}^2 R_i^2 R_j^2)

    Its sum over pairs is not TC(Y).

    Args:
        cosine: as for :func:`gradient_tc`.
        r2: (T,) R_t^2 in [0, 1].

    Returns:
        (T, T), symmetric; 0 on the diagonal, where there is no pair.

    Raises:
        InputError: if a shape or range does not fit, or two labels determine each other.

    Example:
        >>> pairwise_gradient_tc(0.6, [0.5, 0.5]).round(4)
        array([[0.    , 0.0472],
               [0.0472, 0.    ]])
    """
    off = _label_correlation(cosine, r2)
    np.fill_diagonal(off, 0.0)
    if np.abs(off).max(initial=0.0) >= 1:
        i, j = np.argwhere(np.abs(off) >= 1)[0].tolist()
        raise InputError(f"labels {i} and {j} determine each other: their redundancy is infinite")
    return -0.5 * np.log1p(-np.square(off))


def _label_correlation(cosine: ArrayLike, r2: ArrayLike) -> Matrix:
    """Return I + offdiag(c_ij R_i R_j), from checked arguments."""
    shares = np.asarray(r2, dtype=np.float64)
    if shares.ndim != 1 or not ((shares >= 0) & (shares <= 1)).all():
        raise InputError(f"r2 must be shares in [0, 1], one a task, not {r2}")
    T = len(shares)
    if np.ndim(cosine) == 0:
        if T != 2:
            raise InputError(f"one cosine is of a pair of tasks, but r2 has {T} shares")
        cosine = [[1.0, cosine], [cosine, 1.0]]  # pyright: ignore[reportAssignmentType]
    c = finite_matrix(symmetric(cosine, "cosine"), "cosine", shape=(T, T))
    if np.abs(c).max(initial=0.0) > 1 + _ROUNDING or np.abs(np.diag(c) - 1).max() > _ROUNDING:
        raise InputError("cosine must be in [-1, 1] with ones on the diagonal")
    deviations: NDArray[np.float64] = np.sqrt(shares)
    labels = np.clip(c, -1.0, 1.0) * np.outer(deviations, deviations)
    np.fill_diagonal(labels, 1.0)
    return labels
