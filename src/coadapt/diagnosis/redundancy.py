"""How much the labels of tasks on the same texts say about each other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coadapt.tasks import TaskSuite
from coadapt.tasks.rows import Rows
from coadapt.tasks.split import text_key
from coadapt.theory import contingency_table, total_correlation_counts

Array = NDArray[np.float64]

MIN_SHARED = 20  # texts that two tasks must share; fewer say nothing about their labels


@dataclass(frozen=True, kw_only=True, eq=False)
class Redundancy:
    """Mutual information of the labels of pairs of classification tasks, in nats.

    Attributes:
        values: (T, T) less the mean over permutations; NaN for a pair that shares too few texts,
            and on the diagonal.
        p_value: (T, T) by permutation.
        num_shared: (T, T) texts in common.
    """

    values: Array
    p_value: Array
    num_shared: Array


def label_redundancy(
    suite: TaskSuite, *, num_permutations: int, generator: np.random.Generator
) -> Redundancy:
    """Return how much two tasks' labels say about each other where they label the same text.

    The plug-in mutual information less its mean over permutations of one task's labels, which is
    its bias where there is no relation. Training rows only; a text that a task has twice counts
    once, with the first label.

    Args:
        suite: the tasks; regressions take no part.
        num_permutations: for bias and p-value.
        generator: of the permutations.
    """
    labels = [
        _by_text(suite.rows(task.name, "train")) if task.kind == "classification" else {}
        for task in suite.tasks
    ]
    num = len(labels)
    values, p_value = np.full((num, num), np.nan), np.full((num, num), np.nan)
    num_shared = np.zeros((num, num))
    for i in range(num):
        for j in range(i):
            shared = [key for key in labels[i] if key in labels[j]]
            num_shared[i, j] = num_shared[j, i] = len(shared)
            if len(shared) < MIN_SHARED:
                continue
            columns = np.array([[labels[i][key], labels[j][key]] for key in shared])
            found = total_correlation_counts(
                contingency_table(columns),
                num_permutations=num_permutations,
                generator=generator,
                force=True,  # the permutations have the same bias
            )
            assert found.null_mean is not None
            assert found.p_value is not None
            values[i, j] = values[j, i] = found.value - found.null_mean
            p_value[i, j] = p_value[j, i] = found.p_value
    return Redundancy(values=values, p_value=p_value, num_shared=num_shared)


def _by_text(rows: Rows) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    pairs = rows.pairs or (None,) * len(rows)
    for text, pair, label in zip(rows.texts, pairs, rows.labels, strict=True):
        key = text_key((text,) if pair is None else (text, pair))
        found.setdefault(key, int(label))
    return found
