"""Names and readings of what a diagnosis measured."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coadapt.diagnosis.measures import PairMeasure, TableMeasure, TaskMeasure
from coadapt.diagnosis.redundancy import MIN_SHARED, Redundancy
from coadapt.diagnosis.similarity import Similarity
from coadapt.planning import choose_num_clusters, co_clustering

Array = NDArray[np.float64]

STABLE = 0.6  # adjusted Rand index under resampling of clusters that can be believed
RELIABLE = 0.5  # of a gradient: at least half of its squared length is no noise


def pairs(
    tasks: Sequence[str],
    similarity: Similarity,
    fisher: Similarity,
    representation: Similarity,
    redundancy: Redundancy,
    pool: bool,
) -> dict[str, PairMeasure]:
    """Return the measures by pair of tasks."""
    where = "on the same rows" if pool else "each on its own rows"
    found = {
        "similarity": PairMeasure(
            title=f"gradient similarity: cosine of rank-1 probes' gradients, {where}",
            reading=extremes(tasks, similarity.cosine),
            values=similarity.cosine,
            low=similarity.low,
            high=similarity.high,
            samples=similarity.samples,
        ),
        "absolute": PairMeasure(
            title="absolute gradient similarity: what bears on redundancy, conflict or not",
            reading=extremes(tasks, abs(similarity.cosine)),
            values=abs(similarity.cosine),
        ),
        "corrected": PairMeasure(
            title="gradient similarity corrected for noise (above 1: by chance)",
            reading=_corrected(tasks, similarity),
            values=similarity.corrected,
            low=similarity.corrected_low,
            high=similarity.corrected_high,
        ),
        "fisher": PairMeasure(
            title="gradient similarity in the metric of the inverse Fisher information",
            reading=extremes(tasks, fisher.cosine),
            values=fisher.cosine,
            low=fisher.low,
            high=fisher.high,
        ),
        "representation": PairMeasure(
            title="CKA of the frozen features' covariances, corrected for noise: are texts alike?",
            reading=extremes(tasks, representation.corrected),
            values=representation.corrected,
            low=representation.corrected_low,
            high=representation.corrected_high,
        ),
    }
    if len(tasks) > 2:
        found["together"] = _together(tasks, similarity)
    if np.isfinite(redundancy.values).any():
        found["redundancy"] = PairMeasure(
            title="redundancy of labels on shared texts: mutual information less its bias, nats",
            reading=_redundancy(tasks, redundancy),
            values=redundancy.values,
            p_value=redundancy.p_value,
        )
    return found


def by_task(
    tasks: Sequence[str],
    rows: dict[str, int],
    judged: dict[str, int],
    similarity: Similarity,
    entropy: Sequence[dict[str, float]],
) -> dict[str, TaskMeasure]:
    """Return the measures by task."""
    means = np.array([sum(modules.values()) / len(modules) for modules in entropy])
    low, high = tasks[int(means.argmin())], tasks[int(means.argmax())]
    return {
        "rows": TaskMeasure(
            title="training rows",
            reading=f"{_range(rows)} a task; judged by {_range(judged)} of them",
            values=np.array([float(rows[task]) for task in tasks]),
        ),
        "reliability": TaskMeasure(
            title="reliability of the gradient: share of its squared length that is no noise",
            reading=_reliability(tasks, similarity.reliability),
            values=similarity.reliability,
        ),
        "entropy": TaskMeasure(
            title="complexity: normalised spectral entropy of W C, mean over modules",
            reading=f"lowest for {low} ({means.min():.2f}), highest for {high} ({means.max():.2f})",
            values=means,
        ),
    }


def entropies(
    tasks: Sequence[str], entropy: Sequence[dict[str, float]], rank: int
) -> dict[str, TableMeasure]:
    """Return the spectral entropy by module and task."""
    modules = tuple(entropy[0])
    values = np.array([[task[name] for task in entropy] for name in modules])
    means = values.mean(axis=1)
    low, high = modules[int(means.argmin())], modules[int(means.argmax())]
    return {
        "entropy": TableMeasure(
            title=f"normalised spectral entropy of W C, first {rank} singular values",
            reading=f"lowest in {low} ({means.min():.2f}), highest in {high} ({means.max():.2f})",
            rows=modules,
            columns=tuple(tasks),
            values=values,
        )
    }


def notes(
    tasks: Sequence[str], similarity: Similarity, redundancy: Redundancy, pool: bool
) -> tuple[str, ...]:
    """Return what has to be known to read the whole."""
    found = [
        "all gradients were taken on the same rows, drawn from all tasks; their labels are those "
        "of a teacher for each task, which may be wrong on the texts of others"
        if pool
        else "heads were fitted on other rows than those whose gradients were taken; the cosine "
        "mixes how tasks relate with how their texts differ"
    ]
    if not pool and np.isfinite(redundancy.values).any():
        found.append(
            "tasks that share texts share noise: what is corrected for noise is too high for them"
        )
    noisy = [
        task
        for task, value in zip(tasks, similarity.reliability, strict=True)
        if not value >= RELIABLE
    ]
    if noisy:
        found.append(
            f"the gradients of {', '.join(noisy)} are half noise or more: give more rows, or take "
            "similarities with them as weak evidence"
        )
    return tuple(found)


def extremes(tasks: Sequence[str], values: Array) -> str:
    """Return a sentence that names the largest and smallest entry off the diagonal."""
    upper = np.triu_indices(len(tasks), k=1)
    off = values[upper]
    if not np.isfinite(off).any():
        return "no pair has a value"
    most, least = int(np.nanargmax(off)), int(np.nanargmin(off))
    named = [f"{tasks[upper[0][k]]} and {tasks[upper[1][k]]} ({off[k]:.2f})" for k in (most, least)]
    return f"most alike: {named[0]}" + (f"; least: {named[1]}" if most != least else "")


def _corrected(tasks: Sequence[str], similarity: Similarity) -> str:
    lost = [t for t, v in zip(tasks, np.diagonal(similarity.corrected), strict=True) if np.isnan(v)]
    told = extremes(tasks, similarity.corrected)
    return f"{told}; none for {', '.join(lost)}: nearly all noise" if lost else told


def _range(counts: dict[str, int]) -> str:
    low, high = min(counts.values()), max(counts.values())
    return str(low) if low == high else f"{low} to {high}"


def _together(tasks: Sequence[str], similarity: Similarity) -> PairMeasure:
    choice = choose_num_clusters(similarity.cosine, similarity.samples, tasks)
    cut = choice.fewest(STABLE, len(tasks))
    values = co_clustering(similarity.samples, tasks, cut.num_clusters)
    clusters = "; ".join(", ".join(cluster) for cluster in cut.clusters)
    return PairMeasure(
        title=f"how often resampling puts two tasks together, cut into {cut.num_clusters} clusters",
        reading=f"{clusters}: drawn again with an adjusted Rand index of {cut.stability:.2f}",
        values=values,
    )


def _redundancy(tasks: Sequence[str], redundancy: Redundancy) -> str:
    upper = np.triu_indices(len(tasks), k=1)
    values, shared = redundancy.values[upper], redundancy.num_shared[upper]
    best = int(np.nanargmax(values))
    i, j = upper[0][best], upper[1][best]
    return (
        f"{np.isfinite(values).sum()} of {len(values)} pairs share {MIN_SHARED} texts or more; "
        f"most redundant: {tasks[i]} and {tasks[j]} ({values[best]:.2f} nats on {shared[best]:.0f} "
        f"texts, p = {redundancy.p_value[i, j]:.3f})"
    )


def _reliability(tasks: Sequence[str], values: Array) -> str:
    if not np.isfinite(values).all():
        return "too few rows to tell signal from noise"
    worst = int(values.argmin())
    told = f"between {values.min():.2f} ({tasks[worst]}) and {values.max():.2f}"
    return f"{told}; {(values >= RELIABLE).sum()} of {len(tasks)} are at {RELIABLE} or above"
