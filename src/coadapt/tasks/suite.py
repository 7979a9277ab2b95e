"""A suite: the tasks that are adapted together, and their rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt.config import to_plain
from coadapt.tasks.rows import Rows, load_rows
from coadapt.tasks.split import SPLITS, SplitFractions
from coadapt.tasks.task import Task, check_max_rows


@dataclass(frozen=True, kw_only=True)
class TaskSuite:
    """Tasks that are adapted together.

    Args:
        name: what to call it.
        tasks: the tasks; their order gives the task ids.
        seed: decides the hash split and which rows a limit keeps.
        draw: another draw of the training rows that a limit keeps; held-out rows stay.
        split: the shares held out of sources that come unsplit.
        max_rows: the row limit of tasks that have neither their own nor ``num_shots``.

    Raises:
        InputError: if there is no task, or a name stands twice.
    """

    name: str = "suite"
    tasks: tuple[Task, ...]
    seed: int = 0
    draw: int = 0
    split: SplitFractions = field(default_factory=SplitFractions)
    max_rows: dict[str, int] | int | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InputError(f"suite '{self.name}' has no tasks; add one under 'tasks'")
        for index, name in enumerate(self.names):
            if name in self.names[:index]:
                raise InputError(f"two tasks are called '{name}'; rename one")
        check_max_rows(self.max_rows, f"suite '{self.name}'")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names; the position of a name is the task id."""
        return tuple(task.name for task in self.tasks)

    def task(self, name: str) -> Task:
        """Return a task by name.

        Raises:
            InputError: if there is none, with the nearest name.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise InputError(f"suite '{self.name}' has no task '{name}'{nearest(name, self.names)}")

    def rows(self, task_name: str, split: str) -> Rows:
        """Return the rows of a task's split; the first call reads the data of the whole suite.

        Raises:
            InputError: for data that cannot be used, naming task, file and line or row.
        """
        self.task(task_name)
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}'{nearest(split, SPLITS)}")
        return self._data[1][task_name, split]

    def resolved(self) -> "TaskSuite":
        """Return the suite with labels and units that were not declared filled in from the data."""
        if all(_is_resolved(task) for task in self.tasks):
            return self
        tasks = (
            replace(task, labels=found.labels, unit=found.unit)
            for task, found in zip(self.tasks, self._data[0], strict=True)
        )
        return self._with_tasks(tasks)

    def subset(self, names: Iterable[str]) -> "TaskSuite":
        """Return a suite of some of the tasks, with the very rows they have in this one.

        A suite of these tasks that is loaded by itself may have more training rows: a text that
        another task of this suite tests on is missing here.

        Raises:
            InputError: if a name is not that of a task.
        """
        return self._with_tasks(self.task(name) for name in names)

    def to_plain(self, *, hashed: bool = False) -> dict[str, Any]:
        """Return plain data, tasks by name, that `load_suite` reads back to an equal suite.

        Args:
            hashed: see `coadapt.config.to_plain`.
        """
        plain = to_plain(self, hashed=hashed)
        plain["tasks"] = {task.pop("name"): task for task in plain["tasks"]}
        return plain

    def _with_tasks(self, tasks: Iterable[Task]) -> "TaskSuite":
        """Return a suite with other tasks whose rows are those of this one."""
        suite = replace(self, tasks=tuple(tasks))
        suite.__dict__["whole"] = self.whole  # where a cached property keeps its value
        return suite

    @cached_property
    def whole(self) -> "TaskSuite":
        """The suite that the rows are read for: this one, or the one it is a subset of."""
        return self

    @cached_property
    def _data(self) -> tuple[tuple[Task, ...], dict[tuple[str, str], Rows]]:
        if self.whole is not self:
            return self.whole._data
        limited = (
            replace(task, max_rows=self.max_rows)
            if task.max_rows is None and task.num_shots is None
            else task
            for task in self.tasks
        )
        return load_rows(tuple(limited), fractions=self.split, seed=self.seed, draw=self.draw)


def _is_resolved(task: Task) -> bool:
    """Whether nothing of a task has to be looked up in the data."""
    match task.kind:
        case "classification":
            return bool(task.labels)
        case "regression":
            return task.unit is not None
    return True
