"""Overlaps of the blocks of one module."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from coadapt.analysis.alignment import effective_rank

Array = NDArray[np.float64]
Factors = tuple[Array, Array]  # A (r, in) and B (out, r) of a block

_ZERO = 1e-6  # of the largest: what float32 leaves of a direction that is none


def measure(
    blocks: Sequence[Factors], own: Sequence[int], start: Sequence[Factors] | None
) -> dict[str, Array]:
    """Return what one module contributes to a :class:`SubspaceOverlap` at one step.

    Args:
        blocks: all of the module.
        own: which of them are compared.
        start: the same blocks before the first step, if known.
    """
    mine = [blocks[index] for index in own]
    up, down = [basis(B) for _, B in mine], [basis(A.T) for A, _ in mine]
    added = float("nan")
    if start is not None:
        added = rank_of_sum([*blocks, *((A, -B) for A, B in start)])
    return {
        "columns": _cosines(up),
        "rows": _cosines(down),
        "column_share": _shares(mine, up),
        "row_share": _shares([(B.T, A.T) for A, B in mine], down),
        "effective_rank": np.array(rank_of_sum(blocks)),
        "added_rank": np.array(added),
    }


def basis(X: Array) -> Array:
    """Return an orthonormal basis of the column space, of no column if it is 0."""
    U, sigma, _ = np.linalg.svd(X, full_matrices=False)
    return U[:, sigma > _ZERO * sigma.max()]


def rank_of_sum(blocks: Sequence[Factors]) -> float:
    """Return the effective rank of the sum of B A; NaN if it is 0 up to rounding."""
    R_A = _triangle(np.concatenate([A for A, _ in blocks]).T)
    R_B = _triangle(np.concatenate([B for _, B in blocks], axis=1))
    whole = R_B @ R_A.T  # the same singular values as the sum has
    size = max(np.linalg.norm(A) * np.linalg.norm(B) for A, B in blocks)
    if np.linalg.norm(whole) <= _ZERO * size:
        return float("nan")
    return effective_rank(whole)


def _cosines(bases: Sequence[Array]) -> Array:
    """Return (P,) mean squared cosines of the principal angles."""
    found = []
    for Q, P in combinations(bases, 2):
        small = min(Q.shape[1], P.shape[1])
        found.append(np.square(Q.T @ P).sum() / small if small else np.nan)
    return np.array(found)


def _shares(blocks: Sequence[Factors], bases: Sequence[Array]) -> Array:
    """Return (T, T) shares of the energy of B_t A_t in the column space of B_u."""
    found = np.full((len(blocks), len(blocks)), np.nan)
    for t, (A, B) in enumerate(blocks):
        scaled = B @ _triangle(A.T).T  # (out, r), of the norm of B A
        total = np.square(scaled).sum()
        for u, Q in enumerate(bases):
            if total and Q.shape[1]:
                found[t, u] = np.square(Q.T @ scaled).sum() / total
    return found


def _triangle(X: Array) -> Array:
    return np.asarray(np.linalg.qr(X, mode="r"))
