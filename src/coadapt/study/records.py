"""A cell's result file: one JSON a cell, whatever became of it."""

from pathlib import Path
from typing import Any

from coadapt._environment import describe_command
from coadapt._errors import InputError
from coadapt._files import read_json, write_json
from coadapt.config import to_plain
from coadapt.study.grid import SPLIT, Cell

CELLS = "cells"


def record_path(folder: Path, cell: Cell) -> Path:
    """Return a cell's result file."""
    return folder / CELLS / f"{cell.id}.json"


def predictions_path(folder: Path, cell: Cell) -> Path:
    """Return the file with what a final cell predicted on test."""
    return folder / CELLS / f"{cell.id}.predictions.json"


def write_record(
    folder: Path,
    cell: Cell,
    status: str,
    *,
    error: str | None = None,
    done: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and return a cell's record.

    Args:
        folder: the study's.
        cell: the cell.
        status: ``running``, ``finished``, ``diverged``, ``failed``, ``killed`` or ``cancelled``.
        error: what went wrong.
        done: what :meth:`coadapt.study.worker.Bench.run_job` returned, of a cell that ran.
    """
    group = cell.group
    found = done or {}
    record = {
        "cell": {
            "id": cell.id,
            "role": cell.role,
            "group": group.name,
            "recipe": group.recipe,
            "plan": group.plan,
            "budget": group.budget,
            "rows": group.rows,
            "tasks": list(cell.suite.names),
            "trial": cell.trial,
            "seed": cell.seed,
            "hash": cell.hash,
        },
        "run": {
            "command": describe_command(),
            "config": to_plain(cell.config),
            "seed": cell.seed,
            "status": status,
            "error": error,
        },
        "train": found.get("train"),
        "curve": found.get("curve", []),
        "metrics": found.get("metrics", {}),
        "inference": found.get("inference", {}),
        "environment": found.get("environment"),
        "timing": found.get("timing"),
    }
    path = record_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def read_record(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """Return a cell's record, if it has one of this configuration."""
    path = record_path(folder, cell)
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        usable = record["cell"]["hash"] == cell.hash
        if record["run"]["status"] == "finished":
            scores = record["metrics"][SPLIT[cell.role]]
            usable &= all(scores[task]["metrics"] for task in cell.suite.names)
    except (InputError, KeyError, TypeError):  # a file that someone has edited counts for nothing
        return None
    return record if usable else None


def is_done(record: dict[str, Any] | None) -> bool:
    """Return whether a cell need not run again: it has a result, or was found to diverge."""
    return record is not None and record["run"]["status"] in ("finished", "diverged")


def validation_score(record: dict[str, Any]) -> float | None:
    """Return the mean over tasks on validation by which a trial is chosen."""
    scores = record["metrics"].get("validation")
    if not scores:
        return None
    firsts = [next(iter(task["metrics"].values()))["value"] for task in scores.values()]
    return sum(firsts) / len(firsts)
