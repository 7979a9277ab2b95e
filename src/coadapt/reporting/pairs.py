"""A diagnosis's measures by pair of tasks."""

import math
from collections.abc import Sequence

import numpy as np

from coadapt.diagnosis.measures import Diagnosis
from coadapt.reporting import parts
from coadapt.reporting.parts import Part


def heat(found: Diagnosis, name: str, *, tree: bool = True) -> Part:
    """Return a measure by pair as a heat map, of a similarity with its dendrogram."""
    pair = found.pairs[name]
    off = ~np.eye(len(found.tasks), dtype=bool) & ~np.isnan(pair.values)
    # A task in no pair that has a value would be an empty row and column.
    kept = np.flatnonzero(off.any(axis=0)) if off.any() else np.arange(len(found.tasks))
    tasks = [found.tasks[index] for index in kept]
    values = [
        [None if math.isnan(v) else float(v) for v in row]
        for row in pair.values[np.ix_(kept, kept)]
    ]
    return parts.chart(
        "heat",
        pair.title,
        f"{pair.title}. {pair.reading.rstrip('.')}. {_extremes(tasks, values)}",
        names=tasks,
        values=values,
        tree=tree,
        caption=pair.reading,
    )


def _extremes(tasks: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    told = [
        (value, f"{tasks[i]} and {tasks[j]}")
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if i < j and value is not None
    ]
    if not told:
        return ""
    (low, least), (high, most) = min(told), max(told)
    digits = 2 if max(-low, high) >= parts.SMALL else 3
    return f"Highest: {most}, {high:.{digits}f}; lowest: {least}, {low:.{digits}f}."
