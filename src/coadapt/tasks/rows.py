"""From tables to what a task trains and is scored on: checks, splits, leaks, classes, limits."""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from coadapt._errors import InputError, nearest
from coadapt.tasks.read import Table, read_tables
from coadapt.tasks.split import SPLITS, Split, SplitFractions, generator, split_of, text_key
from coadapt.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The rows of one task and split.

    Args:
        texts: the (first) text of each row.
        pairs: the second text of each row, or None if the task has one text.
        labels: class ids as int64, or values as float64; shape (N,).
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


class _Row(NamedTuple):
    """A checked row on its way into a split."""

    texts: tuple[str, ...]
    key: bytes
    label: str | int | float
    table: Table
    position: int

    @property
    def place(self) -> str:
        return self.table.place(self.position)


Splits = dict[Split, list[_Row]]


def load_rows(
    tasks: Sequence[Task], *, fractions: SplitFractions, seed: int, draw: int = 0
) -> tuple[tuple[Task, ...], dict[tuple[str, str], Rows]]:
    """Read the data of a whole suite; leaks can only be decided for all of its tasks at once.

    A text in the test split of any task is removed from the training and validation splits of
    every task, one in validation from training; sources that are split by the hash never need it
    among themselves.

    Args:
        tasks: the tasks, with row limits.
        fractions: the shares of the hash split.
        seed: decides the hash split and which rows a limit keeps.
        draw: another draw of the training rows that a limit keeps.

    Returns:
        The tasks with their labels filled in, and the rows by task name and split.

    Raises:
        InputError: for data that cannot be used, naming task, file and line or row.
    """
    splits = {task.name: _read_splits(task, fractions, seed) for task in tasks}
    _remove_leaks(splits)
    resolved: list[Task] = []
    rows: dict[tuple[str, str], Rows] = {}
    for task in tasks:
        mine = splits[task.name]
        task = _with_labels(task, mine)
        resolved.append(task)
        limited = {split: _limit(task, split, mine[split], seed, draw) for split in SPLITS}
        for split in SPLITS:
            rows[task.name, split] = _to_rows(task, limited[split])
    return tuple(resolved), rows


def _read_splits(task: Task, fractions: SplitFractions, seed: int) -> Splits:
    """Read a task's rows into splits; the ones a source does not give are made by the hash."""
    found = read_tables(task)
    result: Splits = {split: [] for split in SPLITS}
    if isinstance(found, Table) or set(found) == {"train"}:
        table = found if isinstance(found, Table) else found["train"]
        for row in _without_duplicates(_check_rows(task, table)):
            result[split_of(row.key, fractions, seed)].append(row)
        return result
    for split, table in found.items():
        result[split] = list(_check_rows(task, table))
    if "test" not in found:
        logger.warning("%s: no test split given: validation serves as test", task)
        result["test"], result["validation"] = result["validation"], []
    if not {"validation", "test"} <= set(found):
        logger.warning("%s: validation is taken out of training by the hash of the text", task)
        rows, result["train"] = result["train"], []
        for row in rows:
            held_out = split_of(row.key, fractions, seed) == "validation"
            result["validation" if held_out else "train"].append(row)
    return result


def _check_rows(task: Task, table: Table) -> Iterable[_Row]:
    for index, values in enumerate(table.rows):
        texts = tuple(values[column] for column in task.columns)
        for column, text in zip(task.columns, texts, strict=True):
            if not isinstance(text, str):
                raise InputError(
                    f"{table.place(index)}: {task}: column '{column}' holds {text!r}; give a text"
                )
        try:
            key = text_key(texts)
        except UnicodeEncodeError as error:
            # JSON can write half of a surrogate pair; no tokenizer takes it.
            raise InputError(
                f"{table.place(index)}: {task}: the text holds an unpaired surrogate; remove it"
            ) from error
        check = _check_value if task.kind == "regression" else _check_class
        yield _Row(texts, key, check(task, table, index), table, index)


def _check_value(task: Task, table: Table, index: int) -> float:
    value = table.rows[index][task.label]
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and table.textual:
        with suppress(ValueError):
            number = float(value)
    if not math.isfinite(number):
        raise InputError(
            f"{table.place(index)}: {task}: column '{task.label}' holds {value!r}; "
            f"give a finite number"
        )
    return number


def _check_class(task: Task, table: Table, index: int) -> str | int:
    value = table.rows[index][task.label]
    if isinstance(value, bool):
        # As JSON and YAML spell it.
        value = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        # A column of integers with a gap somewhere arrives as floats.
        value = int(value)
    if not isinstance(value, (str, int)) or value == "":
        raise InputError(
            f"{table.place(index)}: {task}: column '{task.label}' holds {value!r}; "
            f"give a label, a text or a whole number"
        )
    if table.class_names and isinstance(value, int):
        return _class_name(task, table, index, value)
    return value


def _class_name(task: Task, table: Table, index: int, value: int) -> str | int:
    """Translate a class number of the hub, by name where the names agree, else by position."""
    names = table.class_names
    if not 0 <= value < len(names):
        raise InputError(
            f"{table.place(index)}: {task}: label {value} stands for no class (a split without "
            f"labels?); choose other splits, as in data.splits: {{train: train, test: validation}}"
        )
    declared = [str(label) for label in task.labels]
    if not declared or names[value] in declared or len(declared) != len(names):
        return names[value]
    # Numbers declared as such are meant as they stand.
    return value if str(value) in declared else task.labels[value]


def _without_duplicates(rows: Iterable[_Row]) -> list[_Row]:
    """Keep the first of the rows that agree in normalised text and label."""
    first: dict[tuple[bytes, str], _Row] = {}
    for row in rows:
        first.setdefault((row.key, str(row.label)), row)
    return list(first.values())


def _remove_leaks(splits: Mapping[str, Splits]) -> None:
    """Take texts held out by one task out of what every task is fitted on, and say how many."""
    test = {row.key for mine in splits.values() for row in mine["test"]}
    for name, mine in splits.items():
        removed = _drop(mine, "train", test), _drop(mine, "validation", test)
        if any(removed):
            logger.warning(
                "task '%s': %d rows removed from train and %d from validation, whose text is in "
                "a test split of the suite",
                name,
                *removed,
            )
    validation = {row.key for mine in splits.values() for row in mine["validation"]}
    for name, mine in splits.items():
        if removed := _drop(mine, "train", validation):
            logger.warning(
                "task '%s': %d rows removed from train, whose text is in a validation split of "
                "the suite",
                name,
                removed,
            )


def _drop(mine: Splits, split: Split, keys: set[bytes]) -> int:
    before = len(mine[split])
    mine[split] = [row for row in mine[split] if row.key not in keys]
    return before - len(mine[split])


def _with_labels(task: Task, mine: Splits) -> Task:
    """Fill in the classes and refuse splits that cannot be trained on or scored."""
    for split in ("train", "test"):
        if not mine[split]:
            raise InputError(
                f"{task}: the {split} split is empty; give more rows or other split fractions"
            )
    if task.kind == "regression":
        return task
    found = {str(row.label): row.label for row in mine["train"]}
    if len(found) < 2:
        label = next(iter(found))
        raise InputError(
            f"{task}: every training row has the label '{label}'; a classification needs two"
        )
    labels = task.labels or mine["train"][0].table.class_names or _sorted_labels(found.values())
    known = {str(label) for label in labels}
    what = "one of the declared labels" if task.labels else "a label of the train split"
    for row in (row for split in SPLITS for row in mine[split]):
        if str(row.label) not in known:
            hint = nearest(str(row.label), [str(label) for label in labels])
            raise InputError(f"{row.place}: {task}: label {row.label!r} is not {what}{hint}")
    return replace(task, labels=labels)


def _sorted_labels(labels: Iterable[str | int | float]) -> tuple[str | int, ...]:
    """Sort labels, as numbers if all are written so."""
    names = [label for label in labels if isinstance(label, (str, int))]
    if all(str(name).isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), str(name))))
    return tuple(sorted(names, key=str))


def _limit(task: Task, split: Split, rows: list[_Row], seed: int, draw: int) -> list[_Row]:
    """Keep as many rows as the task allows; a smaller draw is part of a larger one."""
    limits = task.max_rows if isinstance(task.max_rows, dict) else {"train": task.max_rows}
    limit = limits.get(split)
    redrawn = (draw,) if draw and split == "train" else ()
    if limit is not None:
        order = generator("max_rows", seed, task.name, split, *redrawn).permutation(len(rows))
        return [rows[i] for i in np.sort(order[:limit])]
    if task.num_shots is None or split != "train":
        return rows
    counts = Counter(str(row.label) for row in rows)
    for label in task.labels:
        if counts[str(label)] < task.num_shots:
            raise InputError(
                f"{task}: num_shots is {task.num_shots}, but class '{label}' has "
                f"{counts[str(label)]} training rows; lower num_shots"
            )
    kept: defaultdict[str, list[int]] = defaultdict(list)
    for i in generator("num_shots", seed, task.name, *redrawn).permutation(len(rows)):
        if len(kept[str(rows[i].label)]) < task.num_shots:
            kept[str(rows[i].label)].append(i)
    return [rows[i] for i in sorted(i for chosen in kept.values() for i in chosen)]


def _to_rows(task: Task, rows: Sequence[_Row]) -> Rows:
    if task.kind == "regression":
        labels = np.array([row.label for row in rows], dtype=np.float64)
    else:
        labels = np.array([task.label_id(row.label) for row in rows], dtype=np.int64)
    return Rows(
        texts=tuple(row.texts[0] for row in rows),
        pairs=tuple(row.texts[1] for row in rows) if len(task.columns) == 2 else None,
        labels=labels,
    )
