"""What the frozen backbone makes of each task's rows: how alike, and how much of it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svdvals

from coadapt._errors import InputError

Array = NDArray[np.float64]


def covariance_gram(pooled: Sequence[Array], chunk_of: Sequence[NDArray[np.int64]]) -> Array:
    r"""Return inner products of the covariances of all chunks of rows, (1, N, N).

    .. math:: \langle C_b, C_c \rangle_F = \frac{1}{n_b n_c} \sum_{i \in b, j \in c} (x_i' x_j)^2

    with features x centred on their task's mean. The cosine of two tasks' covariances is linear
    CKA (Kornblith et al. 2019, arXiv 1905.00414, equation 5) with the features in the place of the
    examples: the tasks have different rows, but the same features.

    Args:
        pooled: of each task, (n_t, d).
        chunk_of: of each task, (n_t,) the chunk that each row belongs to, 0 to C_t - 1.

    Returns:
        What :func:`coadapt.diagnosis.similarity.cosines` takes.
    """
    centred = [x - x.mean(axis=0) for x in pooled]
    groups = [_averaging(chunks) for chunks in chunk_of]  # (C_t, n_t)
    starts = np.cumsum([0, *(len(group) for group in groups)])
    gram = np.zeros((1, starts[-1], starts[-1]))
    for i in range(len(pooled)):
        for j in range(i + 1):
            block = groups[i] @ (centred[i] @ centred[j].T) ** 2 @ groups[j].T
            gram[0, starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = block
            gram[0, starts[j] : starts[j + 1], starts[i] : starts[i + 1]] = block.T
    return gram


def _averaging(chunk_of: NDArray[np.int64]) -> Array:
    """Return the (C, n) matrix that averages over each chunk."""
    member = np.eye(int(chunk_of.max()) + 1)[chunk_of].T
    return member / member.sum(axis=1, keepdims=True)


def spectral_entropy(
    weight: Array,  # (out, in)
    second: Array,  # (in, in)
    *,
    rank: int,
    normalised: bool = True,
) -> float:
    r"""Return the entropy of the leading singular values of a map on a task's inputs.

    .. math:: H = -\sum_{i \le R} p_i \log p_i, \quad p_i = \sigma_i / \sum_{j \le R} \sigma_j,
        \quad \sigma = \operatorname{sv}(W C)

    ThanoRA (arXiv 2505.18640), equation 5, with C the second moment E x x' of the map's input over
    the task's valid tokens; its scale cancels. High where the map spreads the task over many
    directions, which is read as complexity. Not a measure of how hard the task is to learn: labels
    do not enter.

    Args:
        weight: W.
        second: C.
        rank: R, how many singular values are counted, at least 2; all where there are fewer.
        normalised: divided by log R, so that it lies in [0, 1]; else in nats.

    Raises:
        InputError: if fewer than two singular values are asked for, or all are 0.
    """
    if min(rank, *weight.shape) < 2:
        raise InputError(
            f"the entropy of one singular value says nothing: rank is {rank}, the map's shape "
            f"{weight.shape}; both must be 2 or more"
        )
    values: Array = svdvals(weight @ second)[:rank]  # pyright: ignore[reportAssignmentType]
    if not values.sum() > 0:
        raise InputError("the map is zero on these inputs: its singular values have no entropy")
    p = values / values.sum()
    entropy = float(-(p[p > 0] * np.log(p[p > 0])).sum())
    return entropy / float(np.log(len(values))) if normalised else entropy
