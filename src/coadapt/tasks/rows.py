"""From tables to what a task trains and is scored on: checks, splits, leaks, classes, limits."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from coadapt._errors import InputError, nearest
from coadapt.tasks.answers import (
    Answer,
    listed_options,
    read_answer,
    read_conversation,
    read_options,
)
from coadapt.tasks.contents import Content, Rows
from coadapt.tasks.pictures import read_picture
from coadapt.tasks.prompts import fill, look_up
from coadapt.tasks.read import Table, read_tables
from coadapt.tasks.sources import FileSource
from coadapt.tasks.split import SPLITS, Split, SplitFractions, generator, split_of
from coadapt.tasks.task import Task

logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    """A checked row on its way into a split."""

    content: Content
    key: bytes
    label: Answer
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
        The tasks with their labels and units filled in, and the rows by task name and split.

    Raises:
        InputError: for data that cannot be used, naming task, file and line or row.
    """
    splits = {task.name: _read_splits(task, fractions, seed) for task in tasks}
    _remove_leaks(splits)
    resolved: list[Task] = []
    rows: dict[tuple[str, str], Rows] = {}
    for task in tasks:
        mine = splits[task.name]
        task = _with_labels(task, mine, only_tested=_is_only_tested(task))
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
            result[split_of(row.content.split_key, fractions, seed)].append(row)
        return result
    for split, table in found.items():
        result[split] = list(_check_rows(task, table))
    if "train" not in found:  # only to be scored
        return result
    if "test" not in found:
        logger.warning("%s: no test split given: validation serves as test", task)
        result["test"], result["validation"] = result["validation"], []
    if not {"validation", "test"} <= set(found):
        logger.warning("%s: validation is taken out of training by the hash of the text", task)
        rows, result["train"] = result["train"], []
        for row in rows:
            held_out = split_of(row.content.split_key, fractions, seed) == "validation"
            result["validation" if held_out else "train"].append(row)
    return result


def _check_rows(task: Task, table: Table) -> Iterable[_Row]:
    repeated = 0
    for index, values in enumerate(table.rows):
        try:
            content = read_content(task, values)
            repeated += len(content.options) < len(listed_options(task, values))
            label = read_answer(task, table, index, content.options)
        except InputError as error:
            raise InputError(f"{table.place(index)}: {task}: {error}") from error
        yield _Row(content, content.key, label, table, index)
    if repeated:
        logger.warning(
            "%s: %s: %d rows list an option twice; it counts once", table.where, task, repeated
        )


def read_content(task: Task, row: Mapping[str, Any], *, answered: bool = True) -> Content:
    """Return a row's text or texts, options and conversation.

    Args:
        task: says which columns they stand in.
        row: column -> value.
        answered: whether a conversation has to end with an answer.

    Raises:
        InputError: naming the column and what it holds.
    """
    if task.messages is not None:
        turns, _ = read_conversation(task, row, answered=answered)
        said = "\n".join(content for role, content in turns if role != "system")
        return Content((said,), (), turns)
    options = read_options(task, row)
    picture = None if task.image is None else read_picture(look_up(row, task.image), task.image)
    if task.prompt is not None:
        texts = (fill(task.prompt, row, options),)
    else:
        texts = tuple(_text(look_up(row, column), column) for column in task.columns)
    if task.system is None:
        return Content(texts, options, picture=picture)
    turns = (("system", fill(task.system, row, options)), ("user", "\n".join(texts)))
    return Content(texts, options, turns, picture)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"column '{column}' holds {value!r}; give a text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        # JSON can write half of a surrogate pair; no tokenizer takes it.
        raise InputError("the text holds an unpaired surrogate; remove it")
    return value


def _without_duplicates(rows: Iterable[_Row]) -> list[_Row]:
    """Keep the first of the rows that agree in normalised text, options and label."""
    first: dict[tuple[bytes, tuple[str, ...], str], _Row] = {}
    for row in rows:
        first.setdefault((row.key, row.content.options, str(row.label)), row)
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


def _with_labels(task: Task, mine: Splits, *, only_tested: bool) -> Task:
    """Fill in classes or the unit of values; refuse splits that cannot be trained on or scored."""
    for split in ("train", "test") if mine["train"] or not only_tested else ("test",):
        if not mine[split]:
            raise InputError(
                f"{task}: the {split} split is empty; give more rows or other split fractions"
            )
    if task.kind == "regression":
        return replace(task, unit=task.unit or _unit([row.label for row in mine["train"]]))
    if task.kind != "classification":
        return task
    found = {str(row.label): row.label for row in mine["train"]}
    if len(found) < 2 and not (only_tested and task.labels):
        label = next(iter(found), None)
        if label is None:
            raise InputError(f"{task}: there is no train split to find the labels in; declare them")
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


def _unit(labels: Sequence[Any]) -> tuple[float, float] | None:
    """Return mean and standard deviation of values; None if there are none."""
    if not labels:
        return None
    values = np.array(labels, dtype=np.float64)
    return float(values.mean()), float(values.std()) or 1.0


def _is_only_tested(task: Task) -> bool:
    """Whether the source declares splits and none to train on."""
    source = task.data
    splits = source.path if isinstance(source, FileSource) else getattr(source, "splits", None)
    return isinstance(splits, dict) and "train" not in splits


def _sorted_labels(labels: Iterable[Answer]) -> tuple[str | int, ...]:
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
    contents = [row.content for row in rows]
    return make_rows(task, contents, _labels(task, [row.label for row in rows]))


def _labels(task: Task, labels: Sequence[Any]) -> np.ndarray:
    match task.kind:
        case "classification":
            return np.array([task.label_id(label) for label in labels], dtype=np.int64)
        case "regression":
            return np.array(labels, dtype=np.float64)
        case "choice":
            return np.array(labels, dtype=np.int64)
    return object_array(labels)


def object_array(values: Sequence[Any]) -> np.ndarray:
    """Return (n,) values of any type; NumPy would make a matrix of tuples of equal length."""
    found = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        found[index] = value
    return found


def make_rows(task: Task, contents: Sequence[Content], labels: np.ndarray) -> Rows:
    """Return rows column by column."""
    talks = task.messages is not None or task.system is not None
    return Rows(
        texts=tuple(content.texts[0] for content in contents),
        pairs=tuple(content.texts[1] for content in contents) if task.is_pair else None,
        labels=labels,
        options=tuple(content.options for content in contents) if task.kind == "choice" else None,
        conversations=tuple(content.conversation for content in contents) if talks else None,
        pictures=tuple(content.picture for content in contents) if task.image else None,
    )
