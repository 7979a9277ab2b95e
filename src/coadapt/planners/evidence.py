"""What a diagnosis says that bears on who should share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError, nearest
from coadapt.diagnosis import Diagnosis

Array = NDArray[np.float64]

MEASURE = "similarity"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Similarities of the tasks to plan for, and how well they are known.

    Attributes:
        tasks: the tasks' names, (T,).
        similarity: (T, T) cosines.
        samples: (N, T, T) bootstrap replicates of them.
        reliability: (T,) of the tasks' gradients.
        rows: (T,) training rows they were judged by.
    """

    tasks: tuple[str, ...]
    similarity: Array
    samples: Array
    reliability: Array
    rows: Array


def gather(found: Diagnosis, tasks: Sequence[str] | None = None) -> Evidence:
    """Return the evidence on some of a diagnosis's tasks, in its order; on all if None.

    Raises:
        InputError: if a task was not diagnosed, fewer than two are asked for, or the diagnosis is
            one of a run or of adapters, without similarities of gradients.
    """
    for task in tasks or ():
        if task not in found.tasks:
            hint = nearest(task, found.tasks)
            raise InputError(f"the diagnosis is not about task '{task}'{hint}")
    kept = [i for i, task in enumerate(found.tasks) if tasks is None or task in tasks]
    if len(kept) < 2:
        raise InputError("a plan needs two tasks or more: there is nothing to share among one")
    pair = found.pairs.get(MEASURE)
    known = {"reliability", "rows"} <= set(found.by_task)
    if pair is None or pair.samples is None or not known:
        raise InputError(
            f"the diagnosis of {found.of} does not say how well its similarities are known; plan "
            "by one that 'coadapt diagnose suite.yaml' made"
        )
    square = np.ix_(kept, kept)
    return Evidence(
        tasks=tuple(found.tasks[i] for i in kept),
        similarity=pair.values[square],
        samples=pair.samples[:, *square],
        reliability=found.by_task["reliability"].values[kept],
        rows=found.by_task["rows"].values[kept],
    )
