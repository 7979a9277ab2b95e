"""What a study's runner costs beside the training that it runs, with warm workers.

    python benchmarks/study_overhead.py [--epochs 4] [--rows 100]

One worker runs the cells of a small study one after the other. The first cell, in which the worker
starts and loads the base model and the data, is left out. For the others the time from one cell's
end to the next one's is divided into training (the Trainer's loop), scoring (validation or test
rows, which any comparison has to pay), and the rest: building model and trainer, saving the
adapter, handing over, writing results. The rest over the training is the overhead.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import machine, write

from coadapt.study.grid import Cell, Grid, Group
from coadapt.study.local import Local
from coadapt.study.records import record_path
from coadapt.study.running import Runner, claim
from coadapt.study.spec import parse_study
from coadapt.study.watching import AbstractWatcher
from coadapt.tasks import load_suite


class Clock(AbstractWatcher):
    """Notes when cells end."""

    def __init__(self) -> None:
        self.ends: list[tuple[Cell, float]] = []

    def expect(self, group: Group, trials: list[Cell], finals: list[Cell]) -> None: ...
    def skipped(self, cell: Cell) -> None: ...
    def started(self, cell: Cell, worker: int) -> None: ...
    def stepped(self, cell: Cell, worker: int, step: int, of: int) -> None: ...
    def gave_up(self, group: Group) -> None: ...
    def tick(self) -> None: ...

    def ended(self, cell: Cell, worker: int, status: str, error: str | None) -> None:
        self.ends.append((cell, time.perf_counter()))


def study_of(rows: int, epochs: float) -> dict[str, Any]:
    """Return a study of six trials and six final runs on the demo's suite."""
    return {
        "name": "overhead",
        "model": {"name": "asset:minilm", "backbone_dropout": False, "max_length": 64},
        "rows": [rows],
        "held_out": {"validation": 50, "test": 50},
        "baseline": "lora",
        "seeds": [0, 1],
        "recipes": ["lora", "private", "frozen"],
        "trials": [
            {"learning_rate": 2e-3, "epochs": epochs},
            {"learning_rate": 5e-3, "epochs": epochs},
        ],
        "training": {"per_device_train_batch_size": 32, "save_strategy": "no"},
    }


def main() -> None:
    """Run the study, print the shares and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=4)
    options = parser.parse_args()
    suite = load_suite("demo")
    grid = Grid(parse_study(study_of(options.rows, options.epochs), suite, "study"), suite, "study")
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        with claim(folder, grid, resume=False, changed=False):
            executor = Local(workers=1, threads=1, logs=folder / "logs")
            failed = Runner(grid, folder, executor, clock).run()
        assert not failed, failed
        rows = [
            {**_parts(folder, cell), "wall": end - before}
            for (_, before), (cell, end) in zip(clock.ends, clock.ends[1:], strict=False)
        ]
    # A final run that was trained as a trial has nothing but its scoring.
    trained = [row for row in rows if row["training"] > 0]
    sums = {key: sum(row[key] for row in trained) for key in ("wall", "training", "scoring")}
    rest = sums["wall"] - sums["training"] - sums["scoring"]
    result = {
        "options": vars(options),
        "machine": machine(),
        "cells": len(trained),
        "seconds": {**sums, "rest": rest},
        "overhead": rest / sums["training"],
        "rest_a_cell_s": rest / len(trained),
        "rows": trained,
    }
    path = write("study_overhead.json", result)
    print(
        f"{len(trained)} cells: training {sums['training']:.1f} s, "
        f"scoring {sums['scoring']:.1f} s, the rest {rest:.2f} s "
        f"({rest / len(trained):.2f} s a cell): overhead "
        f"{100 * result['overhead']:.1f} % of training; {path}"
    )


def _parts(folder: Path, cell: Cell) -> dict[str, Any]:
    record = json.loads(record_path(folder, cell).read_text(encoding="utf-8"))
    job, scoring = record["timing"]["job"], record["timing"]["scoring"]
    training = record["train"]["seconds"]
    ran = training < job  # else the run was there already
    return {"cell": cell.id, "training": training if ran else 0.0, "scoring": scoring}


if __name__ == "__main__":
    main()
