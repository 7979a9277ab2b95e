"""Studies that nobody has run: records and predictions written by hand, with known scores."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coadapt._sheet import to_markdown
from coadapt.config import to_plain
from coadapt.study import summarize
from coadapt.study.comparison import finite
from coadapt.study.grid import Cell, Grid, Group
from coadapt.study.tables import cells_sheets, detail_sheets, main_sheets, plan_sheet
from tests.reference.slow_summary import SlowArm, score
from tests.study.inline import grid_of, study_of

NUM_TEST_ROWS = 16
METRICS = {"sentiment": "accuracy", "topic": "accuracy", "same": "accuracy", "degree": "pearson"}
WITH_F1 = {**METRICS, "sentiment": "f1"}  # scikit-learn takes its time over it
NUM_RESAMPLES = 25
EFFECT = 0.2
# Values of a rank: two layers of two maps from 32 to 32 dimensions.
A_RANK = 2 * 2 * 64
QUALITY = {
    "lora": 0.7, "private": 1.0, "frozen": 0.2, "shared_private": 0.75,
    "clustered-pairs": 0.8, "clustered-chance": 0.6,
}  # fmt: skip
PAIRS = {"a": ["sentiment", "degree"], "b": ["topic", "same"]}
STUDY = {
    "recipes": {
        "lora": None,
        "frozen": None,
        "private": None,
        "clustered": {"plans": ["pairs", "chance"]},
        "shared_private": None,
    },
    "plans": {
        "pairs": {"kind": "clusters", "clusters": PAIRS},
        "chance": {"kind": "random", "like": "pairs", "count": 9},
    },
    "budgets": [8, 4],
    "seeds": [0, 1, 2],
    "tuning_seeds": [0, 1],
    "effect": EFFECT,
}  # fmt: skip


def write_cell(
    folder: Path,
    cell: Cell,
    *,
    status: str = "finished",
    error: str | None = None,
    scores: dict[str, float] | None = None,
    curve: list[list[float]] | None = None,
    train: dict[str, Any] | None = None,
    predictions: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    **keys: Any,
) -> None:
    """Write a cell's files; a second metric of each task has a value that must not be taken."""
    path = folder / "cells" / f"{cell.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    split = "validation" if cell.role == "trial" else "test"
    metrics = {
        task: {
            "num_rows": NUM_TEST_ROWS,
            "metrics": {
                name: {"value": value, "low": -9.0, "high": 9.0}
                for name, value in ((cell.suite.task(task).metrics[0], found), ("other", 77.0))
            },
        }
        for task, found in (scores or {}).items()
    }
    record = {
        "cell": {
            "id": cell.id,
            "role": cell.role,
            "group": cell.group.name,
            "tasks": list(cell.suite.names),
            "trial": cell.trial,
            "seed": cell.seed,
            "hash": cell.hash,
            **keys,
        },
        "run": {"status": status, "error": error},
        "train": train,
        "curve": curve or [],
        "metrics": {split: metrics} if scores else {},
        "environment": None,
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    if predictions is not None:
        plain = {
            task: {"labels": labels.tolist(), "predicted": predicted.tolist()}
            for task, (labels, predicted) in predictions.items()
        }
        path.with_suffix(".predictions.json").write_text(json.dumps(plain), encoding="utf-8")


class Fake:
    """A study's folder whose cells are drawn at random, and what was put into it.

    Args:
        grid: its cells; a group's second trial is the better one on validation.
        folder: where to write.
        quality: the probability that a row of the test split is predicted right, by recipe, or by
            recipe and plan.
        labels_seed: of the test rows' labels.

    Attributes:
        arms: by group name what was written for it.
        trained: by group name the ``train`` of each seed's final record.
        validation: by group name, trial and seed the mean score, the record's curve before it.
    """

    def __init__(
        self, grid: Grid, folder: Path, quality: dict[str, float], labels_seed: int = 0
    ) -> None:
        self.grid, self.folder, self.quality = grid, folder, quality
        self.arms: dict[str, SlowArm] = {}
        self.trained: dict[str, dict[int, dict[str, Any]]] = {}
        self.validation: dict[tuple[str, int, int], tuple[float, float]] = {}
        rng = np.random.default_rng(labels_seed)
        self.labels = {
            task.name: rng.normal(size=NUM_TEST_ROWS)
            if task.kind == "regression"
            else rng.permutation(np.arange(NUM_TEST_ROWS) % task.num_outputs)
            for task in grid.suite.tasks
        }
        folder.mkdir(parents=True, exist_ok=True)
        plain = {"study": to_plain(grid.study), "suite": grid.suite.to_plain()}
        (folder / "study.json").write_text(json.dumps(plain), encoding="utf-8")
        for index, group in enumerate(grid.groups):
            self._write(group, np.random.default_rng((1, index)))

    def group(self, name: str) -> Group:
        """Return a group by name."""
        return next(group for group in self.grid.groups if group.name == name)

    def final(self, name: str, seed: int) -> Cell:
        """Return the final cell of a group that was written."""
        return self.grid.cell(self.group(name), "final", 1, seed)

    def _write(self, group: Group, rng: np.random.Generator) -> None:
        for cell in self.grid.trials(group):
            halfway, end = 0.1 + 0.1 * rng.random(), 0.3 + 0.3 * cell.trial + 0.2 * rng.random()
            self.validation[group.name, cell.trial, cell.seed] = halfway, end
            tasks = cell.suite.names
            spread = dict(zip(tasks, np.linspace(-0.1, 0.1, len(tasks)), strict=True))
            scores = {task: end + float(spread[task]) for task in tasks}
            write_cell(self.folder, cell, scores=scores, curve=[[4, halfway], [8, -5.0]])
        arm = SlowArm(name=group.arm)
        self.arms[group.name], self.trained[group.name] = arm, {}
        for cell in self.grid.finals(group, 1):
            found = {
                task: (self.labels[task], self._predict(group, cell, task, rng))
                for task in cell.suite.names
            }
            metrics = {task: cell.suite.task(task).metrics[0] for task in found}
            arm.predictions[cell.seed] = found
            arm.scores[cell.seed] = {t: score(metrics[t], *both) for t, both in found.items()}
            train = {
                "steps": 10 + cell.seed,
                "tokens": 1000 + int(rng.integers(100)),
                "seconds": float(rng.random()),
                "updates": {
                    **({"a": 7 + cell.seed, "b": 30} if group.budget else {}),
                    "heads/topic": 1000,
                },
            }
            self.trained[group.name][cell.seed] = train
            scores = arm.scores[cell.seed]
            write_cell(self.folder, cell, scores=scores, train=train, predictions=found)

    def _predict(self, group: Group, cell: Cell, task: str, rng: np.random.Generator) -> np.ndarray:
        plan = (group.plan or "").partition(".")[0]
        right = self.quality.get(f"{group.recipe}-{plan}", self.quality.get(group.recipe, 0.5))
        labels = self.labels[task]
        if cell.suite.task(task).kind == "regression":
            return right * labels + (1 - right) * rng.normal(size=len(labels))
        wrong = (labels + 1) % cell.suite.task(task).num_outputs
        return np.where(rng.random(len(labels)) < right, labels, wrong)


def fake_study(
    folder: Path,
    bert: Path,
    suite: dict[str, Any],
    *,
    first: str = "accuracy",
    quality: dict[str, float] | None = None,
    labels_seed: int = 0,
    **keys: Any,
) -> Fake:
    """Return a fake of the study above with some keys of its own.

    Args:
        folder: for its file and its folder ``out``.
        bert: the model.
        suite: the toy suite.
        first: the metric that decides for ``sentiment``.
        quality: see :class:`Fake`.
        labels_seed: see :class:`Fake`.
        keys: of the study.
    """
    study = {**study_of(bert, copy.deepcopy(suite)), **copy.deepcopy(STUDY), **keys}
    study["suite"]["tasks"]["sentiment"]["metrics"] = [first, "matthews"]
    return Fake(grid_of(folder, study), folder / "out", quality or QUALITY, labels_seed)


def assert_same(found: Any, wanted: Any, place: str = "") -> None:
    """Assert that plain data are the same, numbers up to rounding."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), place
        for key in wanted:
            assert_same(found[key], wanted[key], f"{place}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), place
        for index, value in enumerate(wanted):
            assert_same(found[index], value, f"{place}.{index}")
    elif isinstance(wanted, float) and not isinstance(found, int):
        assert found == pytest.approx(wanted, rel=1e-8, abs=1e-9, nan_ok=True), place
    else:
        assert found == wanted, place


def table_of(fake: Fake) -> dict[str, Any]:
    """Return the one table of a summary."""
    tables = summarize(fake.grid, fake.folder)["tables"]
    assert len(tables) == 1
    return tables[0]


def arm_of(table: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an arm's row."""
    return next(row for row in table["arms"] if row["arm"] == name)


def all_sheets(fake: Fake) -> str:
    """Return all tables as text, made of what is written to summary.json."""
    found = finite(summarize(fake.grid, fake.folder))
    json.dumps(found, allow_nan=False)
    sheets = [*main_sheets(found), *detail_sheets(found), *cells_sheets(found)]
    text = to_markdown([plan_sheet(fake.grid), *sheets])
    assert "nan" not in text
    assert "None" not in text
    return text
