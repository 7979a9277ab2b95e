"""What a task is: where its rows come from, which columns hold what, and how it is scored."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from coadapt._errors import InputError, nearest
from coadapt.assets import DATASETS
from coadapt.tasks.metrics import METRICS
from coadapt.tasks.split import SPLITS

Kind = Literal["classification", "regression"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A data set of the Hugging Face hub, or a local folder in the same form.

    Args:
        path: the data set's id, or a folder that begins with ``.`` or ``/``.
        name: its configuration, where it has several.
        revision: the branch, tag or commit; the newest if not given.
        splits: our split -> its split (``{test: validation}`` where the test labels are secret);
            its splits called train, validation and test if not given.
    """

    kind: Literal["hub"] = "hub"
    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[str, str] | None = None

    def __post_init__(self) -> None:
        _check_splits(self.splits or {})


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Rows in files: ``.jsonl`` or ``.json`` (an object a line), ``.csv``, ``.tsv``, ``.parquet``.

    Args:
        path: one file, which is split by a hash of the text; or split -> file. In a suite file,
            relative to it.
    """

    kind: Literal["file"] = "file"
    path: str | dict[str, str]

    def __post_init__(self) -> None:
        if isinstance(self.path, dict):
            _check_splits(self.path)


@dataclass(frozen=True, kw_only=True)
class AssetSource:
    """One of the embedded data sets (`coadapt.assets.DATASETS`), split by a hash of the text."""

    kind: Literal["asset"] = "asset"
    name: str

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise InputError(f"unknown data asset '{self.name}'{nearest(self.name, DATASETS)}")


Source = HubSource | FileSource | AssetSource


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a suite.

    Args:
        name: 1 to 100 of letters, digits, ``_``, ``-`` and ``.``, not beginning with a dot: it
            becomes the name of files and folders.
        kind: ``classification`` or ``regression``.
        data: where the rows come from.
        text: the column with the text, or two columns for a task on pairs.
        label: the column with the label.
        labels: the classes; their order gives the ids. If not given, those of the training split
            in sorted order, filled in by `load_suite`.
        metrics: names in `coadapt.tasks.metrics.METRICS`, the first being the one that decides;
            accuracy, or Pearson and Spearman, if not given.
        num_shots: that many training rows of each class.
        max_rows: at most that many training rows, or split -> number of rows; drawn by the suite's
            seed, and a smaller draw is part of a larger one.

    Raises:
        InputError: if a field has a value that cannot be.
    """

    name: str
    kind: Kind
    data: Source
    text: str | tuple[str, ...] = "text"
    label: str = "label"
    labels: tuple[str | int, ...] = ()
    metrics: tuple[str, ...] = ()
    num_shots: int | None = None
    max_rows: dict[str, int] | int | None = None

    def __post_init__(self) -> None:
        check_task_name(self.name)
        if len(self.columns) not in (1, 2):
            raise InputError(f"{self}: text names {len(self.columns)} columns; give one or two")
        if not self.metrics:
            default = {"classification": ("accuracy",), "regression": ("pearson", "spearman")}
            object.__setattr__(self, "metrics", default[self.kind])
        for metric in self.metrics:
            self._check_metric(metric)
        self._check_labels()
        check_max_rows(self.max_rows, str(self))
        if self.num_shots is not None:
            self._check_num_shots(self.num_shots)

    def _check_metric(self, metric: str) -> None:
        if metric not in METRICS:
            raise InputError(f"{self}: unknown metric '{metric}'{nearest(metric, METRICS)}")
        if self.kind not in METRICS[metric].kinds:
            fitting = ", ".join(name for name, row in METRICS.items() if self.kind in row.kinds)
            raise InputError(f"{self}: '{metric}' does not score {self.kind}; use {fitting}")

    def _check_labels(self) -> None:
        if self.labels and self.kind == "regression":
            raise InputError(f"{self}: a regression has no labels; remove 'labels'")
        if len(self.labels) == 1:
            raise InputError(f"{self}: one label {self.labels[0]!r} only; give two or more")
        if len(self._ids) < len(self.labels):
            written = [str(label) for label in self.labels]
            twice = next(label for label in written if written.count(label) > 1)
            raise InputError(f"{self}: the label '{twice}' is declared twice; remove one")
        if "" in self._ids:
            raise InputError(f"{self}: an empty label is declared; remove it")

    def _check_num_shots(self, num_shots: int) -> None:
        if self.kind == "regression":
            raise InputError(f"{self}: num_shots counts rows of a class; use max_rows")
        if num_shots < 1:
            raise InputError(f"{self}: num_shots is {num_shots}; give 1 or more")
        if isinstance(self.max_rows, int) or "train" in (self.max_rows or {}):
            raise InputError(f"{self}: num_shots and max_rows both limit training; give one")

    def __str__(self) -> str:
        return f"task '{self.name}'"

    @property
    def columns(self) -> tuple[str, ...]:
        """The one or two text columns."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def num_outputs(self) -> int:
        """The width of the task's head: the number of classes, or 1 for a regression."""
        if self.kind == "regression":
            return 1
        if not self.labels:
            raise InputError(f"{self}: no labels yet; load_suite reads them from the data")
        return len(self.labels)

    @property
    def score_metric(self) -> str:
        """The metric that decides."""
        return self.metrics[0]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {str(label): index for index, label in enumerate(self.labels)}

    def label_id(self, value: str | int | float) -> int:
        """Return the class id of a label, which may be written as text or as a number.

        Raises:
            InputError: if it is not one of the declared labels.
        """
        try:
            return self._ids[str(value)]
        except KeyError:
            raise InputError(
                f"{self}: label {value!r} is not one of the declared ones"
                f"{nearest(str(value), self._ids)}"
            ) from None


def check_task_name(name: str) -> None:
    """Refuse what cannot safely be the name of a file.

    Raises:
        InputError: naming the task and what a name may hold.
    """
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 120 else name[:117] + "..."
        raise InputError(
            f"task name {shown!r} ({len(name)} characters) cannot be used; take 1 to 100 of "
            f"letters, digits, '_', '-' and '.', not beginning with a dot"
        )


def check_max_rows(max_rows: dict[str, int] | int | None, where: str) -> None:
    """Refuse limits below 1 and unknown splits.

    Raises:
        InputError: naming ``where`` and the limit.
    """
    limits = max_rows if isinstance(max_rows, dict) else {"train": max_rows}
    for split, limit in limits.items():
        if split not in SPLITS:
            raise InputError(
                f"{where}: max_rows of unknown split '{split}'{nearest(split, SPLITS)}"
            )
        if limit is not None and limit < 1:
            raise InputError(f"{where}: max_rows is {limit} for {split}; give 1 or more")


def _check_splits(splits: dict[str, str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}'{nearest(split, SPLITS)}")
    if splits and "train" not in splits:
        raise InputError(f"there is no 'train' among the splits {', '.join(splits)}; add it")
