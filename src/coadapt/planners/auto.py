"""The choice among sharing, clusters and private adapters, with its reasons."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from coadapt.diagnosis.describe import RELIABLE, STABLE
from coadapt.planners.evidence import Evidence
from coadapt.planning import ClusterCandidate, Distance, choose_num_clusters

MIN_STABILITY = STABLE

Choice = Literal["shared", "private", "clustered"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where the evidence turns; docs/planning.md says how they were set and tested.

    Args:
        reliability: median over the tasks: below, similarities are mostly noise.
        stability: of the clusters under resampling, adjusted Rand index.
        separation: mean similarity within clusters less that between.
        plenty: training rows a task from which on little is to be gained by a plan.
    """

    reliability: float = RELIABLE
    stability: float = MIN_STABILITY
    separation: float = 0.1
    plenty: int = 600


DEFAULT = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do and why.

    Attributes:
        sharing: who shares.
        clusters: the tasks of each block; one block of all for ``shared``.
        reasons: sentences with the numbers that decided.
    """

    sharing: Choice
    clusters: tuple[tuple[str, ...], ...]
    reasons: tuple[str, ...]


def advise(
    evidence: Evidence,
    budget: int,
    *,
    distance: Distance = "1-s",
    limits: Thresholds = DEFAULT,
) -> Advice:
    """Weigh the evidence on who should share.

    Sharing is the default, which evidence has to overcome: similarities must be no noise, the
    clusters they show must survive resampling and stand apart, data must be scarce enough for it to
    matter, and the budget must give each cluster a rank.

    Args:
        evidence: of a diagnosis.
        budget: the summed rank.
        distance: what is close, see :func:`coadapt.planning.agglomerate`.
        limits: where the evidence turns.
    """
    tasks, num = evidence.tasks, len(evidence.tasks)
    reasons = [_told_reliability(evidence, limits.reliability)]
    if not np.median(evidence.reliability) >= limits.reliability:
        reasons.append("not enough evidence: share")
        return _shared(tasks, reasons)
    smallest = int(evidence.rows.min())
    if smallest >= limits.plenty:
        reasons.append(
            f"every task has {smallest} rows or more: in our study of seven tasks the ways of "
            "sharing differed by about 0.01 at most at 300 rows, and one adapter is the simplest "
            "to ship"
        )
        return _shared(tasks, reasons)
    if budget < 2:
        reasons.append("a rank budget of 1 makes one adapter: share")
        return _shared(tasks, reasons)
    if num == 2:
        return _two(evidence, reasons, distance, limits.separation)
    best, told = fewest_stable(evidence, budget, distance=distance)
    reasons.append(told)
    if best.stability < limits.stability:
        reasons.append(f"that is below {limits.stability}: noise draws the clusters, so share")
        return _shared(tasks, reasons)
    reasons.append(
        f"similarity within them exceeds that between them by {best.separation:.2f} on average"
    )
    if best.separation < limits.separation:
        reasons.append(f"that is below {limits.separation}: no clusters to speak of, so share")
        return _shared(tasks, reasons)
    reasons.append(f"data are scarce ({smallest} rows in the smallest task): share within clusters")
    return Advice(sharing="clustered", clusters=best.clusters, reasons=tuple(reasons))


def fewest_stable(
    evidence: Evidence, budget: int, *, distance: Distance = "1-s"
) -> tuple[ClusterCandidate, str]:
    """Return the cut with the fewest clusters that resampling draws again, and a sentence on it.

    The fewest, since each cluster takes rank and rows from the others. If none is stable enough,
    the most stable one; with at least three tasks and a budget of two.

    Args:
        evidence: of a diagnosis.
        budget: no more clusters than that.
        distance: what is close.
    """
    choice = choose_num_clusters(
        evidence.similarity, evidence.samples, evidence.tasks, distance=distance
    )
    best = choice.fewest(MIN_STABILITY, budget)
    told = (
        f"{best.num_clusters} clusters ({'; '.join(', '.join(c) for c in best.clusters)}): "
        f"resampling draws them again with an adjusted Rand index of {best.stability:.2f}"
    )
    return best, told


def _two(evidence: Evidence, reasons: list[str], distance: Distance, separation: float) -> Advice:
    """Decide on two tasks, which have no clusters but to share or not."""
    value, samples = evidence.similarity[0, 1], evidence.samples[:, 0, 1]
    what = "similarity"
    if distance == "1-s^2":
        value, samples, what = value**2, samples**2, "squared similarity"
    high = np.quantile(samples, 0.975)
    reasons.append(f"the two tasks' {what} is {value:.2f}, at most {high:.2f}")
    if high >= separation:
        reasons.append("nothing speaks against sharing")
        return _shared(evidence.tasks, reasons)
    reasons.append(f"that is below {separation}: they have little to give each other")
    clusters = tuple((task,) for task in evidence.tasks)
    return Advice(sharing="private", clusters=clusters, reasons=tuple(reasons))


def _shared(tasks: tuple[str, ...], reasons: list[str]) -> Advice:
    return Advice(sharing="shared", clusters=(tasks,), reasons=tuple(reasons))


def _told_reliability(evidence: Evidence, wanted: float) -> str:
    values = evidence.reliability
    if np.isnan(values).any():
        return "some tasks have too few rows to tell how reliable their gradients are"
    return (
        f"the tasks' gradients have a median reliability of {np.median(values):.2f} "
        f"({values.min():.2f} to {values.max():.2f}; {wanted} or more is wanted)"
    )
