"""Slow and plain versions of the statistics: loops, sets, integrals, none of our own code."""

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations

import numpy as np
from scipy import integrate, stats


def holm_rejects(p_values: Sequence[float], alpha: float) -> set[int]:
    """Return the places that Holm's procedure rejects at alpha, one step after the other.

    Of the m hypotheses left, look at the one with the smallest p-value: if m times it is at most
    alpha, reject it and go on with the rest, else stop.
    """
    left = [place for place, p in enumerate(p_values) if not np.isnan(p)]
    rejected: set[int] = set()
    while left:
        place = min(left, key=lambda place: p_values[place])
        if len(left) * p_values[place] > alpha:
            break
        rejected.add(place)
        left.remove(place)
    return rejected


def holm_smallest_alphas(p_values: Sequence[float]) -> list[float]:
    """Return the smallest alpha at which each is rejected; nan or 1 if it never is below 1."""
    numbers = [p for p in p_values if not np.isnan(p)]
    candidates = sorted({k * p for p in numbers for k in range(1, len(numbers) + 1)} | {1.0})
    smallest = []
    for place, p in enumerate(p_values):
        enough = [a for a in candidates if a < 1 and place in holm_rejects(p_values, a)]
        smallest.append(float("nan") if np.isnan(p) else min(enough, default=1.0))
    return smallest


def power_by_quadrature(ratio: float, num: int, level: float) -> float:
    """Return the power of the paired t-test: the normal's two tails, over the law of s / sigma."""
    df = num - 1
    critical = float(stats.t.ppf((1 + level) / 2, df))
    shift = ratio * np.sqrt(num)

    def tails(u: float) -> float:  # at s = u sigma, times the density of u
        z = critical * u
        density = stats.chi.pdf(u * np.sqrt(df), df) * np.sqrt(df)
        return (stats.norm.sf(z - shift) + stats.norm.cdf(-z - shift)) * density

    spread = 12 / np.sqrt(2 * df)
    low, high = max(0.0, 1 - spread), 1 + spread
    turns = [(shift + z) / critical for z in (-10, 0, 10)] + [10 / critical]
    cuts = np.unique(np.clip([low, *turns, high], low, high)).tolist()
    return float(sum(integrate.quad(tails, *ends, limit=500)[0] for ends in pairwise(cuts)))


def paired_bootstrap_by_loops(
    metric: Callable[[np.ndarray, np.ndarray], float],
    y_true: np.ndarray,  # (n,)
    y_pred: np.ndarray,  # (S_a, n)
    y_base: np.ndarray,  # (S_b, n)
    resamples: np.ndarray,  # (B, n) row numbers
) -> list[float]:
    """Return the difference of the two sides' means over seeds on each resample."""
    values = []
    for rows in resamples:
        sides = []
        for side in (y_pred, y_base):
            by_seed = []
            for predictions in side:
                pairs = [(y_true[row], predictions[row]) for row in rows]
                true_b, pred_b = zip(*pairs, strict=True)
                by_seed.append(metric(np.array(true_b), np.array(pred_b)))
            sides.append(sum(by_seed) / len(by_seed))
        values.append(sides[0] - sides[1])
    return values


def partitions_by_permutations(
    items: Sequence[str], sizes: Sequence[int]
) -> set[frozenset[frozenset[str]]]:
    """Return all partitions into groups of these sizes: every order of the items, cut in pieces."""
    found = set()
    for order in permutations(items):
        rest, groups = list(order), []
        for size in sizes:
            groups.append(frozenset(rest[:size]))
            rest = rest[size:]
        found.add(frozenset(groups))
    return found
