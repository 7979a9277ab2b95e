"""Diagnoses and evidence of tasks whose similarities are known."""

from collections.abc import Sequence

import numpy as np

from coadapt.diagnosis import Diagnosis, PairMeasure, TaskMeasure
from coadapt.planners.evidence import Evidence, gather

LETTERS = "abcdefghijklmnop"


def families(sizes: Sequence[int], *, within: float = 0.6, between: float = 0.0) -> np.ndarray:
    """Return the similarities of tasks that come in families, one after the other."""
    family = np.repeat(np.arange(len(sizes)), sizes)
    similarity = np.where(family[:, None] == family, within, between)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def diagnosis_of(
    similarity: np.ndarray,
    *,
    tasks: Sequence[str] | None = None,
    noise: float = 0.02,
    reliability: float | Sequence[float] = 0.9,
    rows: int | Sequence[int] = 100,
    seed: int = 0,
) -> Diagnosis:
    """Return a diagnosis with these similarities and replicates that vary by ``noise``."""
    num = len(similarity)
    names = tuple(LETTERS[:num]) if tasks is None else tuple(tasks)
    errors = np.random.default_rng(seed).normal(scale=noise, size=(100, num, num))
    errors = np.tril(errors, -1)
    samples = np.clip(similarity + errors + errors.mT, -1.0, 1.0)
    counts = np.broadcast_to(np.asarray(rows, dtype=np.float64), num).copy()
    return Diagnosis(
        tasks=names,
        of="model toy, suite toy",
        rows={name: int(count) for name, count in zip(names, counts, strict=True)},
        pairs={
            "similarity": PairMeasure(
                title="gradient similarity", reading="", values=similarity, samples=samples
            )
        },
        by_task={
            "rows": TaskMeasure(title="rows", reading="", values=counts),
            "reliability": TaskMeasure(
                title="reliability",
                reading="",
                values=np.broadcast_to(np.asarray(reliability, dtype=np.float64), num).copy(),
            ),
        },
    )


def evidence_of(similarity: np.ndarray, **options) -> Evidence:
    """Return the evidence of :func:`diagnosis_of` on all of its tasks."""
    return gather(diagnosis_of(similarity, **options))
