"""What a diagnosis holds: numbers by pair of tasks, by task, or in tables, each with a reading."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError, nearest
from coadapt._files import read_json, write_json
from coadapt._folders import require_file
from coadapt._linalg import symmetric
from coadapt._version import __version__

Array = NDArray[np.float64]

_DIGITS = 6  # of what is written: more than any of it is known to


@dataclass(frozen=True, kw_only=True, eq=False)
class PairMeasure:
    """A number for each pair of tasks.

    Attributes:
        title: what it is.
        reading: one sentence on what it says here.
        values: (T, T), symmetric; NaN where a pair has none.
        low: (T, T) lower ends of its interval, if it has one.
        high: (T, T) upper ends.
        p_value: (T, T) of no relation, if it has one.
        samples: (N, T, T) bootstrap replicates, for whoever decides by it.
    """

    title: str
    reading: str
    values: Array
    low: Array | None = None
    high: Array | None = None
    p_value: Array | None = None
    samples: Array | None = None

    def __post_init__(self) -> None:
        """Check what a hand-edited file may have broken."""
        for what in ("values", "low", "high", "p_value"):
            found = getattr(self, what)
            if found is not None:
                symmetric(np.where(np.isnan(found), 0.0, found), f"{what} of '{self.title}'")


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskMeasure:
    """A number for each task.

    Attributes:
        title: what it is.
        reading: one sentence on what it says here.
        values: (T,).
        low: (T,) lower ends of its interval, if it has one.
        high: (T,) upper ends.
    """

    title: str
    reading: str
    values: Array
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TableMeasure:
    """Numbers by module, or by whatever else its rows stand for.

    Attributes:
        title: what it is.
        reading: one sentence on what it says here.
        rows: what the rows stand for, (M,), such as full names of modules.
        columns: what the columns stand for, (C,): tasks, blocks, or kinds of value.
        values: (M, C); NaN where there is none.
    """

    title: str
    reading: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """How the tasks of a suite relate, for reading and for planning.

    Attributes:
        tasks: the tasks' names, in the order of all that is given by task, (T,).
        of: what was looked at, such as ``model asset:minilm``.
        rows: rows that each task was judged by.
        settings: how it was made, seeds included.
        pairs: measures by pair of tasks, by name.
        by_task: measures by task.
        tables: measures by module, or by something else.
        notes: what has to be known to read it.
        seconds: wall time by part.
    """

    tasks: tuple[str, ...]
    of: str
    rows: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, PairMeasure] = field(default_factory=dict)
    by_task: dict[str, TaskMeasure] = field(default_factory=dict)
    tables: dict[str, TableMeasure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes."""
        num = len(self.tasks)
        for name, pair in self.pairs.items():
            for what in ("values", "low", "high", "p_value"):
                _check_shape(f"pairs.{name}.{what}", getattr(pair, what), (num, num))
            if pair.samples is not None:
                shape = (len(pair.samples), num, num)
                _check_shape(f"pairs.{name}.samples", pair.samples, shape)
        for name, task in self.by_task.items():
            for what in ("values", "low", "high"):
                _check_shape(f"by_task.{name}.{what}", getattr(task, what), (num,))
        for name, table in self.tables.items():
            shape = (len(table.rows), len(table.columns))
            _check_shape(f"tables.{name}.values", table.values, shape)

    def pair(self, name: str) -> PairMeasure:
        """Return a measure by pair of tasks.

        Raises:
            InputError: if there is none of that name.
        """
        if name not in self.pairs:
            raise InputError(f"the diagnosis has no '{name}' by pair{nearest(name, self.pairs)}")
        return self.pairs[name]

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON; NaN becomes null."""
        return {
            "coadapt_version": __version__,
            "kind": "diagnosis",
            "tasks": list(self.tasks),
            "of": self.of,
            "rows": self.rows,
            "settings": self.settings,
            "pairs": {name: _pair_to_plain(pair) for name, pair in self.pairs.items()},
            "by_task": {name: _plain(task) for name, task in self.by_task.items()},
            "tables": {name: _plain(table) for name, table in self.tables.items()},
            "notes": list(self.notes),
            "seconds": {part: round(value, 3) for part, value in self.seconds.items()},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Diagnosis":
        """Return the diagnosis that plain data of :meth:`to_plain` mean."""
        num = len(plain["tasks"])
        return cls(
            tasks=tuple(plain["tasks"]),
            of=plain["of"],
            rows=dict(plain["rows"]),
            settings=dict(plain["settings"]),
            pairs={
                name: PairMeasure(
                    title=pair["title"],
                    reading=pair["reading"],
                    **{key: _array(pair[key]) for key in ("values", "low", "high", "p_value")},
                    samples=_unpack(pair["samples"], num),
                )
                for name, pair in plain["pairs"].items()
            },
            by_task={
                name: TaskMeasure(
                    title=task["title"],
                    reading=task["reading"],
                    **{key: _array(task[key]) for key in ("values", "low", "high")},
                )
                for name, task in plain["by_task"].items()
            },
            tables={
                name: TableMeasure(
                    title=table["title"],
                    reading=table["reading"],
                    rows=tuple(table["rows"]),
                    columns=tuple(table["columns"]),
                    values=_array(table["values"]),
                )
                for name, table in plain["tables"].items()
            },
            notes=tuple(plain["notes"]),
            seconds=dict(plain["seconds"]),
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_json(Path(path), self.to_plain())


def load_diagnosis(path: str | Path) -> Diagnosis:
    """Read what :meth:`Diagnosis.save` wrote.

    Raises:
        InputError: if the file is no diagnosis, or a matrix in it is not symmetric or of another
            size than its tasks.
    """
    path = Path(path)
    require_file(path)
    plain = read_json(path)
    if not isinstance(plain, dict) or plain.get("kind") != "diagnosis":
        raise InputError(f"{path} is no diagnosis; make one with 'coadapt diagnose'")
    try:
        return Diagnosis.from_plain(plain)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is no whole diagnosis: {error!r}") from error


def _pair_to_plain(pair: PairMeasure) -> dict[str, Any]:
    plain = _plain(pair)
    if pair.samples is not None:  # what is below the diagonal says nothing new
        upper = np.triu_indices(len(pair.values), k=1)
        plain["samples"] = [[_number(v, 4) for v in sample[upper]] for sample in pair.samples]
    return plain


def _unpack(packed: Sequence[Sequence[float | None]] | None, num: int) -> Array | None:
    if packed is None:
        return None
    rows, columns = np.triu_indices(num, k=1)
    samples = np.tile(np.eye(num), (len(packed), 1, 1))
    samples[:, rows, columns] = samples[:, columns, rows] = _array(packed)
    return samples


def _plain(measure: Any) -> dict[str, Any]:
    return {key: _plain_value(value) for key, value in vars(measure).items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain_value(row) for row in value] if value.ndim > 1 else [*map(_number, value)]
    return list(value) if isinstance(value, tuple) else value


def _number(value: float, digits: int = _DIGITS) -> float | None:
    return None if math.isnan(value) else round(float(value), digits)


def _array(values: Any) -> Any:
    """Return nested lists as an array, null as NaN; None stays."""
    return None if values is None else np.asarray(values, dtype=np.float64)


def _check_shape(name: str, values: Array | None, shape: tuple[int, ...]) -> None:
    if values is not None and values.shape != shape:
        raise InputError(f"{name} must be of shape {shape}, not {values.shape}")
