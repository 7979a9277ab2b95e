"""Total correlation of Gaussians, and conditioning."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from coadapt._errors import InputError
from coadapt._linalg import Matrix, log_det, symmetric


def total_correlation(
    cov: ArrayLike,  # (D, D)
    *,
    sizes: Sequence[int] | None = None,
) -> float:
    r"""Return the total correlation of a Gaussian vector, in nats.

    .. math:: TC = \tfrac12 \Bigl[\sum_t \log\det S_{tt} - \log\det S\Bigr] \ge 0

    With blocks of size 1 this is -1/2 log det of the correlation matrix (Watanabe 1960; Khan,
    equation S2.22). It does not change when a variable is rescaled.

    For other distributions with this covariance it is neither an upper nor a lower bound.

    Args:
        cov: covariance S, symmetric positive definite.
        sizes: how many consecutive variables make up each label, as for one-hot labels with one
            class dropped; by default 1 each.

    Raises:
        InputError: if ``cov`` is not symmetric, not finite or singular, or the sizes do not fit.

    Example:
        >>> round(total_correlation([[1.0, 0.5], [0.5, 1.0]]), 4)
        0.1438
    """
    S = symmetric(cov, "cov")
    sizes = [1] * len(S) if sizes is None else list(sizes)
    if any(size < 1 for size in sizes) or sum(sizes) != len(S):
        raise InputError(f"sizes {sizes} must be at least 1 each and sum to {len(S)}")
    ends = np.cumsum(sizes).tolist()
    blocks = [S[end - size : end, end - size : end] for size, end in zip(sizes, ends, strict=True)]
    within = sum(log_det(block, f"block {t} of cov") for t, block in enumerate(blocks))
    return max(0.0, 0.5 * (within - log_det(S, "cov")))  # below 0 by rounding alone


def conditional_covariance(
    cov: ArrayLike,  # (D, D)
    given: Sequence[int],
) -> Matrix:
    r"""Return the covariance of a Gaussian's other variables once some are known.

    .. math:: S_{a|b} = S_{aa} - S_{ab} S_{bb}^{-1} S_{ba}

    Args:
        cov: covariance S, symmetric positive semi-definite, with S_bb positive definite.
        given: indices b of the known variables; none gives ``cov`` back.

    Returns:
        ``(D - |b|, D - |b|)``, the remaining variables in their order.

    Raises:
        InputError: if ``cov`` is not symmetric or not finite, an index does not fit, or S_bb is
            singular.

    Example:
        >>> conditional_covariance([[1.0, 0.6], [0.6, 1.0]], given=[1])
        array([[0.64]])
    """
    S = symmetric(cov, "cov")
    b = list(given)
    if len(set(b)) < len(b) or not all(0 <= index < len(S) for index in b):
        raise InputError(f"given must be distinct indices below {len(S)}, not {b}")
    a = [index for index in range(len(S)) if index not in set(b)]
    if not b:
        return S
    log_det(S[np.ix_(b, b)], "the covariance of the given variables")  # refuses a singular one
    left = S[np.ix_(a, a)] - S[np.ix_(a, b)] @ np.linalg.solve(S[np.ix_(b, b)], S[np.ix_(b, a)])
    return (left + left.T) / 2
