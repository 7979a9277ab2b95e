"""What distances between tasks bound, and what of Align-LoRA's generalization bound is left."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coadapt._errors import InputError
from coadapt._linalg import Matrix, finite_matrix, symmetric
from coadapt.theory._checks import above_zero, at_least_zero, semidefinite, whole

Array = NDArray[np.float64]
Discrepancy = Literal["mmd2", "kl"]


def squared_mmd_to_mean(
    pairwise: ArrayLike,  # (M, M)
) -> Array:
    r"""Return the squared MMD of each task's law to the mean of all of them, (M,).

    .. math:: \Delta(D_i, \bar D) = \frac1M \sum_j \Delta_{ij} - \frac1{2M^2} \sum_{jk} \Delta_{jk},
        \qquad \sum_i \Delta(D_i, \bar D) = \frac1{2M} \sum_{ij} \Delta_{ij}

    Exact, for any squared distance of a Hilbert space: "Align, Don't Divide" (arXiv 2508.05078),
    equation (3) of appendix F, holds for MMD^2. In equation (4), over pairs i < j, the factor is
    Lambda / M^2 then, twice the paper's.

    Args:
        pairwise: MMD^2 between the tasks, not MMD; with several kernels their sum or mean.

    Raises:
        InputError: if it is not symmetric with a diagonal of 0, or not made of squared distances,
            which unbiased estimates need not be.

    Example:
        >>> squared_mmd_to_mean([[0.0, 1.0], [1.0, 0.0]])
        array([0.25, 0.25])
    """
    D = symmetric(pairwise, "pairwise")
    _check_distances(D)
    means = D.mean(axis=1)
    gram = -(D - means[:, None] - means[None, :] + D.mean()) / 2
    try:
        semidefinite(np.linalg.eigvalsh(gram), "pairwise")
    except InputError as error:
        raise InputError(
            "pairwise holds no squared distances of a Hilbert space; take MMD^2 (not its root), "
            "estimated with each sample's kernel with itself (biased)"
        ) from error
    return np.maximum(np.diag(gram), 0.0)  # below 0 by rounding alone


def kl_to_mean_bound(
    pairwise: ArrayLike,  # (M, M)
) -> Array:
    r"""Return upper bounds of the divergence of each task's law from the mean law, (M,), in nats.

    .. math:: KL(p_i \| \bar p) \le \min \Bigl( \frac1M \sum_j KL(p_i \| p_j),\; \log M \Bigr)

    By convexity, and since the mean has p_i with weight 1/M. The equality that "Align, Don't
    Divide" claims for their sum (appendix F, equation 3) is false: two unit Gaussians at +-3 have
    1.379 on its left and 9.0 on its right; the bound on the left's sum is 18, log M makes it 1.386.
    In terms of pairs: the sum is at most (2/M) times the sum over i < j of the symmetrised KL.

    Args:
        pairwise: KL(p_i || p_j) in row i and column j, in nats. For an infinite one any large
            number will do: the bound is log M then.

    Raises:
        InputError: if an entry is below 0 or not finite, or one of the diagonal not 0.

    Example:
        >>> kl_to_mean_bound([[0.0, 18.0], [0.2, 0.0]])
        array([0.69314718, 0.1       ])
    """
    K = _square(pairwise, "pairwise")
    _check_distances(K)
    return np.minimum(K.mean(axis=1), log(len(K)))


def confidence_term(sizes: Sequence[int], delta: float, *, loss_range: float = 1.0) -> float:
    r"""Return how far below their risks the tasks' mean training risk may be by chance.

    .. math:: \frac cM \sum_i \sqrt{\frac{\log(M / \delta)}{2 n_i}}
        \;\le\; c \sqrt{\frac{\log(M / \delta)}{2 \min_i n_i}},
        \quad\text{balanced: } c \sqrt{\frac{M \log(M / \delta)}{2 n_{total}}}

    Hoeffding's inequality for each task at confidence 1 - delta/M. "Align, Don't Divide" (appendix
    F, equation 5) puts sqrt(log(M / delta) / n_total) above the mean over tasks; by Jensen's
    inequality it is below, by a factor of sqrt(M) at least, and log M may not be dropped.

    It is about one predictor that was fixed before the rows were drawn. For one that was trained on
    them a term for the size of its class is to be added; held-out rows need none.

    Args:
        sizes: (M,) rows n_i, each at least 1.
        delta: probability in (0, 1) with which it may fail.
        loss_range: c, the losses lie in an interval of this length.

    Raises:
        InputError: if an argument is out of its range.

    Example:
        >>> round(confidence_term([100, 100], 0.05), 4)
        0.1358
    """
    if not len(sizes):
        raise InputError("sizes is empty; give the number of rows of each task")
    counts = [whole(n, f"sizes[{i}]", least=1) for i, n in enumerate(sizes)]
    if not 0 < delta < 1:
        raise InputError(f"delta must be above 0 and below 1, not {delta}")
    each = [sqrt(log(len(counts) / delta) / (2 * n)) for n in counts]
    return above_zero(loss_range, "loss_range") * sum(each) / len(counts)


def risk_gap(
    discrepancy: float, kind: Discrepancy, *, loss_norm: float = 1.0, loss_range: float = 1.0
) -> float:
    r"""Return how much a risk can differ between a task's law and the mean law.

    .. math:: |R_i - \bar R| \le b \sqrt{MMD^2(D_i, \bar D)}, \qquad
        |R_i - \bar R| \le c \sqrt{KL(D_i \| \bar D) / 2}

    The first for losses of norm at most b in the kernel's Hilbert space, the second (Pinsker) for
    losses in an interval of length c. The root is essential: a bound linear in MMD^2 or KL, as in
    "Align, Don't Divide" (appendix F, equation 1), needs an assumption of its own.

    The laws are those of inputs *and labels*. Distances between representations, which are what
    alignment lowers, say nothing of labels: with equal representations tasks may still disagree on
    every label. A bound from them needs a term for that (Ben-David et al. 2010, theorem 2).

    Args:
        discrepancy: MMD^2 or KL (in nats) of a task's law to the mean, at least 0.
        kind: which of them.
        loss_norm: b, for MMD^2.
        loss_range: c, for KL; no gap is larger, whatever the divergence.

    Raises:
        InputError: if an argument is out of its range.

    Example:
        >>> risk_gap(0.02, "kl")
        0.1
    """
    value = at_least_zero(discrepancy, "discrepancy")
    if kind == "mmd2":
        return above_zero(loss_norm, "loss_norm") * sqrt(value)
    if kind != "kl":
        raise InputError(f"kind must be 'mmd2' or 'kl', not '{kind}'")
    return above_zero(loss_range, "loss_range") * min(1.0, sqrt(value / 2))


@dataclass(frozen=True, kw_only=True)
class AlignmentBound:
    """The parts of :func:`alignment_bound`, in units of the loss.

    Attributes:
        training: mean training risk.
        discrepancy: the term of the distances between tasks.
        confidence: see :func:`confidence_term`.
    """

    training: float
    discrepancy: float
    confidence: float

    @property
    def without_discrepancy(self) -> float:
        """What bounds the mean risk already, without the assumption and the term."""
        return self.training + self.confidence

    @property
    def total(self) -> float:
        """The paper's bound, corrected."""
        return self.without_discrepancy + self.discrepancy


def alignment_bound(
    risks: Sequence[float],
    pairwise: ArrayLike,  # (M, M)
    sizes: Sequence[int],
    *,
    kind: Discrepancy,
    slope: float,
    delta: float,
    loss_range: float = 1.0,
) -> AlignmentBound:
    r"""Return "Align, Don't Divide"'s bound of the mean risk over tasks with its errors corrected.

    .. math:: R_{MTL} \le \frac1M \sum_i \hat R_i + \frac{\Lambda}{M} \sum_i \Delta(D_i, \bar D)
        + \frac cM \sum_i \sqrt{\frac{\log(M/\delta)}{2 n_i}}

    Appendix F. In terms of pairs i < j the middle is Lambda / M^2 times the sum of MMD^2, exactly,
    or at most 2 Lambda / M^2 times that of the symmetrised KL (and at most Lambda log M), in the
    place of Lambda / (2 M^2) in the paper's equation (4).

    Assumptions: the predictor is fixed before the rows are drawn (:func:`confidence_term`); losses
    lie in an interval of length c; and, as the paper takes from elsewhere, each task's risk exceeds
    its training risk by Lambda times its distance to the mean at most, which
    :func:`risk_gap` does not give. The laws are of inputs and labels.

    **What it does not say.** The mean of the tasks' risks *is* the risk under the mean law, so the
    bound without its middle term holds as well, and is the smaller one: no alignment tightens it.
    The paper's comparison of bounds with and without alignment compares upper bounds at equal
    training risk; it proves nothing about either method. Lambda is a constant of the loss, not the
    weight of a training term.

    Args:
        risks: (M,) training risks.
        pairwise: MMD^2 between tasks, or KL(p_i || p_j) in row i and column j.
        sizes: (M,) rows.
        kind: which of the two.
        slope: Lambda, at least 0, in units of the loss by MMD^2 or nat.
        delta: probability in (0, 1) with which it may fail.
        loss_range: c.

    Raises:
        InputError: if an argument is out of its range, or they are not about as many tasks.

    Example:
        >>> found = alignment_bound(
        ...     [0.2, 0.3], [[0.0, 0.1], [0.1, 0.0]], [100, 100], kind="mmd2", slope=1.0, delta=0.05
        ... )
        >>> round(found.total, 4), round(found.without_discrepancy, 4)
        (0.4108, 0.3858)
    """
    if kind == "mmd2":
        distances = squared_mmd_to_mean(pairwise)
    elif kind == "kl":
        distances = kl_to_mean_bound(pairwise)
    else:
        raise InputError(f"kind must be 'mmd2' or 'kl', not '{kind}'")
    if not len(risks) == len(sizes) == len(distances):
        raise InputError(
            f"risks, sizes and pairwise are about {len(risks)}, {len(sizes)} and {len(distances)} "
            "tasks; give them for the same ones"
        )
    found = finite_matrix([list(risks)], "risks", shape=(1, None))
    return AlignmentBound(
        training=float(found.mean()),
        discrepancy=at_least_zero(slope, "slope") * float(distances.mean()),
        confidence=confidence_term(sizes, delta, loss_range=loss_range),
    )


def _square(values: ArrayLike, name: str) -> Matrix:
    matrix = finite_matrix(values, name, shape=(None, None))
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{name} must be square, not of shape {matrix.shape}")
    return matrix


def _check_distances(pairwise: Matrix) -> None:
    if not len(pairwise):
        raise InputError("pairwise is empty; give the distances between the tasks")
    if np.diag(pairwise).any():
        index = int(np.flatnonzero(np.diag(pairwise))[0])
        raise InputError(
            f"pairwise[{index}, {index}] is {pairwise[index, index]:.6g}; a law is 0 from itself"
        )
    if pairwise.min() < 0:
        row, column = np.unravel_index(int(pairwise.argmin()), pairwise.shape)
        raise InputError(
            f"pairwise[{row}, {column}] is {pairwise[row, column]:.6g}; a distance is 0 or more"
        )
