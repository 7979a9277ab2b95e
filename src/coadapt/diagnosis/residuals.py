"""What a trained run's errors on different tasks have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError
from coadapt.diagnosis.coupling import CouplingEstimate, class_residuals, delta_hat
from coadapt.diagnosis.coupling import regression_residuals as value_residuals
from coadapt.diagnosis.measures import PairMeasure, TableMeasure
from coadapt.diagnosis.teacher import (
    delta_partial,
    delta_teacher,
    null_alignment,
    teacher_placebo,
    temperature,
)
from coadapt.tasks import Task
from coadapt.tasks.rows import Rows
from coadapt.tasks.split import text_key

Array = NDArray[np.float64]

MIN_PAIRS = 50  # rows that two tasks must share
_MIN_HALF = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What a run makes of the rows of one task.

    Attributes:
        task: the task.
        rows: its rows.
        outputs: (n, C) logits, or (n, 1) values.
    """

    task: Task
    rows: Rows
    outputs: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """A task's head after temperature scaling.

    Attributes:
        task: the task.
        temperature: that its logits are divided by; 1 for a regression.
        rows: places of the rows that it was not fitted on.
        variance: of the residuals of a regression; None for classes.
    """

    task: Task
    temperature: float
    rows: NDArray[np.int64]
    variance: float | None

    def predicted(self, outputs: Array) -> Array:
        """Return (n, C) probabilities, or (n, 1) values."""
        if self.variance is not None:
            return outputs
        scores = outputs / self.temperature
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


def calibrate(judged: Judged) -> Calibrated:
    """Fit a temperature on about half of a task's rows, chosen by a hash of their texts.

    A head that is too sure makes errors that look like coupling with other such heads. By the hash,
    tasks that share texts keep the same ones.

    Raises:
        InputError: if either half has fewer than 10 rows.
    """
    odd = np.array([key[-1] % 2 for key in _keys(judged.rows)], dtype=bool)
    fitted, kept = np.flatnonzero(odd), np.flatnonzero(~odd)
    if min(len(fitted), len(kept)) < _MIN_HALF:
        raise InputError(
            f"task '{judged.task.name}' has {len(odd)} rows to judge residuals by, cut into "
            f"{len(fitted)} and {len(kept)}; {_MIN_HALF} each are needed, so give some more rows"
        )
    labels = judged.rows.labels
    if judged.task.kind == "regression":
        variance = float(np.var(labels[fitted] - judged.outputs[fitted, 0]))
        return Calibrated(task=judged.task, temperature=1.0, rows=kept, variance=variance)
    found = temperature(judged.outputs[fitted], labels[fitted])
    return Calibrated(task=judged.task, temperature=found, rows=kept, variance=None)


def residuals_of(judged: Judged, calibrated: Calibrated) -> Array:
    """Return (n, k) residuals on the rows that the temperature was not fitted on."""
    rows = calibrated.rows
    predicted, labels = calibrated.predicted(judged.outputs[rows]), judged.rows.labels[rows]
    if calibrated.variance is not None:
        return value_residuals(predicted, labels[:, None])
    return class_residuals(predicted, labels)


def shared_coupling(
    judged: Sequence[Judged], calibrated: Sequence[Calibrated], generator: np.random.Generator
) -> tuple[dict[tuple[str, ...], CouplingEstimate], list[str]]:
    """Return the residual coupling of each group of tasks that label the same texts.

    Tasks belong to a group if every two of them share enough texts; every such pair is in a group,
    and a task may be in several. Groups whose residuals cannot be used are told in the notes, with
    the reason.

    Args:
        judged: all tasks of a run.
        calibrated: the same tasks.
        generator: of permutations and resamples.
    """
    keys = _kept_keys(judged, calibrated)
    values = [residuals_of(task, found) for task, found in zip(judged, calibrated, strict=True)]
    estimates: dict[tuple[str, ...], CouplingEstimate] = {}
    notes: list[str] = []
    for group in _groups(keys):
        names = tuple(judged[t].task.name for t in group)
        texts = list(dict.fromkeys(key for t in group for key in keys[t]))
        place = {key: row for row, key in enumerate(texts)}
        table = [np.full((len(texts), values[t].shape[1]), np.nan) for t in group]
        for block, t in zip(table, group, strict=True):
            # A text that a task has twice counts once, with its first label.
            for key, row in reversed(list(zip(keys[t], values[t], strict=True))):
                block[place[key]] = row
        complete = ~np.isnan(np.hstack(table)).any(axis=1)
        try:
            if complete.all():
                found = delta_hat(table, generator=generator)
            else:
                found = delta_partial(table, min_pairs=MIN_PAIRS, generator=generator)
        except InputError as error:
            notes.append(f"no residual coupling of {', '.join(names)}: {error}")
            continue
        estimates[names] = found
    if not estimates and not notes:
        notes.append(
            f"no two tasks share {MIN_PAIRS} texts besides those that temperatures are fitted on "
            "(about half of all), so their residual coupling cannot be told from these data; a "
            "teacher would give one under an assumption (--teacher)"
        )
    return estimates, notes


def control(
    judged: Sequence[Judged], calibrated: Sequence[Calibrated], generator: np.random.Generator
) -> tuple[CouplingEstimate | None, list[str]]:
    """Return what pairing unrelated rows gives, a negative control.

    Rows are paired in the order in which they lie, as an order may pass for coupling; those of a
    task that shares texts with an earlier one are shuffled, or the same texts would meet.
    """
    values = [residuals_of(task, found) for task, found in zip(judged, calibrated, strict=True)]
    seen: set[bytes] = set()
    for t, keys in enumerate(_kept_keys(judged, calibrated)):
        if not seen.isdisjoint(keys):
            values[t] = generator.permutation(values[t])
        seen.update(keys)
    try:
        return null_alignment(values, generator=generator), []
    except InputError as error:
        return None, [f"no null control: {error}"]


def teacher_coupling(
    student: Mapping[str, Array],
    teachers: Sequence[Mapping[str, Array]],
    calibrated: Sequence[Calibrated],
    calibrated_teachers: Sequence[Sequence[Calibrated]],
    generator: np.random.Generator,
) -> tuple[CouplingEstimate, CouplingEstimate | None]:
    """Return the coupling with a teacher's labels on a pool, and the placebo of two teachers.

    Args:
        student: for each task (n, C_t) outputs on the pool.
        teachers: one or two, the same.
        calibrated: the student's heads.
        calibrated_teachers: each teacher's.
        generator: of permutations and resamples.
    """

    def predicted(outputs: Mapping[str, Array], heads: Sequence[Calibrated]) -> list[Array]:
        return [head.predicted(outputs[head.task.name]) for head in heads]

    q = [
        predicted(outputs, heads)
        for outputs, heads in zip(teachers, calibrated_teachers, strict=True)
    ]
    variances = [head.variance for head in calibrated_teachers[0]]
    found = delta_teacher(
        q[0], predicted(student, calibrated), residual_variances=variances, generator=generator
    )
    if len(q) < 2:
        return found, None
    placebo = teacher_placebo(q[0], q[1], residual_variances=variances, generator=generator)
    return found, placebo


def coupling_by_pair(
    names: Sequence[str], group: Sequence[str], found: CouplingEstimate
) -> PairMeasure:
    """Return an estimate's coupling of each two tasks of its group, among all tasks."""
    values = np.full((len(names), len(names)), np.nan)
    places = [names.index(task) for task in group]
    values[np.ix_(places, places)] = found.pairs
    return PairMeasure(
        title=f"{found.estimator} of each two of {', '.join(group)} alone, less its bias, nats",
        reading=_reading(found),
        values=values,
    )


def coupling_table(rows: Mapping[str, CouplingEstimate]) -> dict[str, TableMeasure]:
    """Return estimates by name as a table, or no table of none."""
    if not rows:
        return {}
    return {
        "coupling": TableMeasure(
            title="residual coupling of errors across tasks, nats",
            reading="value: less its bias by permutation; 95 % interval; p by permutation",
            rows=tuple(rows),
            columns=("value", "low", "high", "p", "bias", "rows"),
            # No digits beyond what is known: they would not fit a terminal.
            values=np.array(
                [[r.value, r.low, r.high, r.p_value, r.bias, r.num_rows] for r in rows.values()]
            ).round(4),
        )
    }


def assumptions(rows: Mapping[str, CouplingEstimate]) -> list[str]:
    """Return each assumption once, with what rests on it."""
    found: dict[str, list[str]] = {}
    for name, estimate in rows.items():
        if estimate.assumption:
            found.setdefault(estimate.assumption, []).append(name)
    return [
        f"{names[0] if len(names) == 1 else rows[names[0]].estimator}: {assumption}"
        for assumption, names in found.items()
    ]


def _reading(found: CouplingEstimate) -> str:
    sure = "more than chance gives" if found.p_value < 0.05 else "no more than chance gives"
    return (
        f"together {found.value:.3f} nats ({found.low:.3f} to {found.high:.3f}), "
        f"p = {found.p_value:.3f}: {sure}"
    )


def _keys(rows: Rows) -> list[bytes]:
    pairs = rows.pairs or (None,) * len(rows)
    return [
        text_key((text,) if pair is None else (text, pair))
        for text, pair in zip(rows.texts, pairs, strict=True)
    ]


def _kept_keys(judged: Sequence[Judged], calibrated: Sequence[Calibrated]) -> list[list[bytes]]:
    """Return each task's texts, as keys, of the rows that its temperature was not fitted on."""
    return [
        [every[row] for row in found.rows]
        for every, found in zip((_keys(task.rows) for task in judged), calibrated, strict=True)
    ]


def _groups(keys: Sequence[list[bytes]]) -> list[list[int]]:
    """Return groups of tasks, each two of which share enough texts; greedy, all pairs are in."""
    sets = [set(found) for found in keys]

    def shares(a: int, b: int) -> bool:
        return len(sets[a] & sets[b]) >= MIN_PAIRS

    groups: list[list[int]] = []
    for pair in combinations(range(len(keys)), 2):
        if not shares(*pair) or any(set(pair) <= set(group) for group in groups):
            continue
        group = list(pair)
        for t in range(len(keys)):
            if t not in group and all(shares(t, member) for member in group):
                group.append(t)
        groups.append(sorted(group))
    return groups
