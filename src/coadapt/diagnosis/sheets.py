"""A diagnosis as tables."""

from collections.abc import Sequence

import numpy as np

from coadapt._sheet import WHOLE, Sheet, missing
from coadapt.diagnosis.measures import Diagnosis, PairMeasure, TableMeasure

_TERMINAL = 80  # columns, in which numbers are to stay whole
_LISTED = 10  # pairs at either end
_SHORT = (
    "absolute",
    "corrected",
    "fisher",
    "together",
)  # said by their readings; whole in the file


def sheets(found: Diagnosis) -> list[Sheet]:
    """Return what a reader needs first: by task, then by pair; below the last one the remarks."""
    tables = sheets_alone(found)
    last = tables[-1]
    notes = (*last.notes, *remarks(found))
    tables[-1] = Sheet(title=last.title, columns=last.columns, rows=last.rows, notes=notes)
    return tables


def remarks(found: Diagnosis) -> list[str]:
    """Return the readings of what no table shows, and what has to be known to read the whole."""
    rest = [f"{pair.title}: {pair.reading}" for name, pair in found.pairs.items() if name in _SHORT]
    return [*rest, *found.notes]


def sheets_alone(found: Diagnosis) -> list[Sheet]:
    """Return the tables without the remarks."""
    tables = [_by_task(found)]
    for name, pair in found.pairs.items():
        if name not in _SHORT:
            tables.append(_by_pair(found.tasks, pair))
    for table in found.tables.values():
        tables += _table(table)
    return tables


def _by_task(found: Diagnosis) -> Sheet:
    measures = found.by_task
    rows = [
        (task, *(_number(measure.values[index], name) for name, measure in measures.items()))
        for index, task in enumerate(found.tasks)
    ]
    return Sheet(
        title=f"{found.of}: by task",
        columns=("task", *measures),
        rows=tuple(rows),
        notes=tuple(f"{measure.title}: {measure.reading}" for measure in measures.values()),
    )


def pair_sheet(found: Diagnosis, name: str) -> Sheet:
    """Return one measure by pair as a table."""
    return _by_pair(found.tasks, found.pair(name))


def _by_pair(tasks: Sequence[str], pair: PairMeasure) -> Sheet:
    rows = [
        (task, *(_cell(pair, i, j) if i != j else "" for j in range(len(tasks))))
        for i, task in enumerate(tasks)
    ]
    if len(tasks) > _room(rows):
        return _ends(tasks, pair)
    return Sheet(
        title=pair.title,
        columns=("", *tasks),
        rows=tuple(rows),
        notes=(f"{pair.reading}; {_kind(pair)}",),
    )


def _ends(tasks: Sequence[str], pair: PairMeasure) -> Sheet:
    """Return the pairs of the largest and the smallest values."""
    upper = np.triu_indices(len(tasks), k=1)
    values = pair.values[upper]
    order = [int(k) for k in np.argsort(-values, kind="stable") if not np.isnan(values[k])]
    shown = order if len(order) <= 2 * _LISTED else order[:_LISTED] + order[-_LISTED:]
    rows = []
    for k in shown:
        i, j = int(upper[0][k]), int(upper[1][k])
        rows.append((f"{tasks[i]}, {tasks[j]}", _cell(pair, i, j)))
    return Sheet(
        title=pair.title,
        columns=("pair", "value"),
        rows=tuple(rows),
        notes=(f"{pair.reading}; {len(shown)} of {len(order)} pairs; {_kind(pair)}",),
    )


def _table(table: TableMeasure) -> list[Sheet]:
    """Return the table, or its columns in turn where they do not fit beside each other."""
    rows = [
        (name, *("-" if missing(value) else f"{value:.3g}" for value in values))
        for name, values in zip(_without_common_parts(table.rows), table.values, strict=True)
    ]
    num, at_once = len(table.columns), _room(rows)
    spans = [slice(start, start + at_once) for start in range(0, num, at_once)]
    return [
        Sheet(
            title=table.title + (f" ({part} of {len(spans)})" if len(spans) > 1 else ""),
            columns=("", *table.columns[span]),
            rows=tuple((row[0], *row[1:][span]) for row in rows),
            notes=(table.reading,) if part == len(spans) else (),
        )
        for part, span in enumerate(spans, start=1)
    ]


def _room(rows: Sequence[tuple[str, ...]]) -> int:
    """Return how many columns a terminal has room for beside the first, without breaking words."""
    first = min(WHOLE, max((len(row[0]) for row in rows), default=0))
    words = [len(word) for row in rows for cell in row[1:] for word in cell.split()]
    return max(1, (_TERMINAL - first) // (max(words, default=0) + 2))


def _without_common_parts(names: Sequence[str]) -> list[str]:
    """Drop the parts of dotted names that all have in common: 'encoder.layer.', '.attention.'."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) != 1:
        return list(names)
    differing = [k for k in range(len(parts[0])) if len({part[k] for part in parts}) > 1]
    return [".".join(part[k] for k in differing) or names[0] for part in parts]


def _cell(pair: PairMeasure, i: int, j: int) -> str:
    value = pair.values[i, j]
    if missing(value):
        return "-"
    if pair.p_value is not None:
        return f"{_two_digits(value)} p={pair.p_value[i, j]:.2f}"
    if pair.low is None or pair.high is None or missing(pair.low[i, j]):
        return _two_digits(value)
    return f"{_two_digits(value)} ±{(pair.high[i, j] - pair.low[i, j]) / 2:.2f}"


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no "-0.00"


def _kind(pair: PairMeasure) -> str:
    if pair.p_value is not None:
        return "p by permutation"
    return "± half of the 95 % bootstrap interval" if pair.low is not None else "without interval"


def _number(value: float, name: str) -> str:
    if missing(value):
        return "-"
    return f"{value:.0f}" if name in ("rows", "rank") else _two_digits(value)
