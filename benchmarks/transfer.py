"""What a finished run of other tasks is worth to a new task with few rows.

    python benchmarks/transfer.py --output runs/transfer      # about an hour on two cores; resumes
    python benchmarks/transfer.py --report                    # from the committed results

Runs of five tasks of the demo suite (all but one of sentiment and one of questions, 100 rows each)
are adapted to the two that were left out, on 16, 32 and 64 rows in all. Beside them: the same
methods and LoRA on those rows alone, heads on frozen features, and full fine-tuning. Each arm has
three rates, of which the one with the best mean validation accuracy over both tasks at seed 0 is
taken, for each number of rows; then five seeds, each with rows, source run and start of its own,
on test rows. Every arm makes the same 200 steps of 16 rows.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import coadapt
from coadapt._environment import describe_environment
from coadapt._files import read_json, write_json
from coadapt._sheet import Sheet
from coadapt._stats import mean_interval, paired_difference
from coadapt.adapting import ADAPT_TRAINING

RESULTS = Path(__file__).parent / "results" / "transfer.json"
TRAINED = ("trec50", "spam", "amazon", "movie", "nyt")
NEW = ("tweets", "trec6")
SHOTS = (16, 32, 64)
SEEDS = (0, 1, 2, 3, 4)
SOURCE_ROWS = 100
HELD_OUT = {"validation": 100, "test": 300}
MODEL = {"name": "asset:minilm", "backbone_dropout": False, "max_length": 64}
CLUSTERS = {"questions": ["trec50"], "spam": ["spam"], "sentiment": ["amazon", "movie", "nyt"]}
QUIET = {"disable_tqdm": True, "save_strategy": "no"}

HIGH = (3e-3, 1e-2, 3e-2)
MIDDLE = (1e-3, 3e-3, 1e-2)
FULL = (2e-5, 1e-4, 5e-4)


@dataclass(frozen=True)
class Source:
    """A run to adapt: a recipe on the tasks that are trained, with a plan if it needs one."""

    recipe: str
    rates: tuple[float, ...]
    plan: Any = None


SOURCES = {
    "ta_lora": Source("ta_lora", MIDDLE),
    "clustered": Source("clustered", MIDDLE, coadapt.Plan.clustered(CLUSTERS, 8)),
    "multitask_prompt_tuning": Source("multitask_prompt_tuning", HIGH),
}


@dataclass(frozen=True)
class Arm:
    """A way to serve a new task: a source and what is learned on it, or a recipe from scratch."""

    name: str
    rates: tuple[float, ...]
    source: str | None = None
    learn: Any = None
    recipe: str | None = None
    budget: int | None = None


ARMS = (
    Arm("TA-LoRA, fast weights", HIGH, source="ta_lora", learn="fast"),
    Arm("TA-LoRA, and gates", HIGH, source="ta_lora", learn="all"),
    Arm("clustered LoRA, new gates", HIGH, source="clustered", learn="gates"),
    Arm("clustered LoRA, new block", MIDDLE, source="clustered", learn="block"),
    Arm("multitask prompt tuning", HIGH, source="multitask_prompt_tuning", learn="fast"),
    Arm("TA-LoRA from scratch", HIGH, recipe="ta_lora"),
    Arm("LoRA from scratch, R = 1", MIDDLE, recipe="lora", budget=1),
    Arm("LoRA from scratch, R = 8", MIDDLE, recipe="lora", budget=8),
    Arm("frozen features", (1e-2, 3e-2, 1e-1), recipe="frozen"),
    Arm("full fine-tuning", FULL, recipe="full"),
)


@dataclass(frozen=True)
class Cell:
    """One run: of a source (no task), or of an arm on a new task."""

    arm: str
    rate: float
    seed: int
    split: str
    task: str | None = None
    shots: int | None = None

    @property
    def file(self) -> str:
        parts = (self.arm, self.task or "source", self.shots, self.rate, self.seed, self.split)
        return "-".join(str(part).replace(" ", "_").replace("/", "_") for part in parts) + ".json"


def suite_of(names: tuple[str, ...], rows: int, seed: int) -> Any:
    limits = {"train": rows, **HELD_OUT}
    suite = coadapt.load_suite("demo", overrides=[f"max_rows={limits}", f"draw={seed}"])
    # A new task's rows are drawn as of a suite of its own: nothing is known of the others.
    return replace(suite, tasks=tuple(suite.task(name) for name in names))


def run(cell: Cell, folder: Path, chosen: dict[str, float]) -> dict[str, Any]:
    """Train a cell's run, score it and throw it away, but for sources."""
    torch.set_num_threads(1)
    output = folder / "runs" / cell.file.removesuffix(".json")
    shutil.rmtree(output, ignore_errors=True)
    training = {**QUIET, "learning_rate": cell.rate}
    if cell.task is None:
        made = _source(cell, output, training)
    else:
        made = _adapted(cell, output, folder, training, chosen)
    scores = made.evaluate(cell.split, num_resamples=2)
    result = {
        "scores": {t: next(iter(s.metrics.values())).value for t, s in scores.items()},
        "seconds": made.result["train"]["seconds"],
        "trainable": made.result["train"]["trainable"],
    }
    if cell.task is not None:
        shutil.rmtree(output)
    write_json(folder / "cells" / cell.file, result)
    return result


def _source(cell: Cell, output: Path, training: dict[str, Any]) -> Any:
    source = SOURCES[cell.arm]
    return coadapt.train(
        MODEL,
        suite_of(TRAINED, SOURCE_ROWS, cell.seed),
        source.recipe,
        plan=source.plan,
        output=output,
        training={**training, "num_train_epochs": 12, "per_device_train_batch_size": 32},
        seed=cell.seed,
    )


def _adapted(
    cell: Cell, output: Path, folder: Path, training: dict[str, Any], chosen: dict[str, float]
) -> Any:
    (arm,) = (arm for arm in ARMS if arm.name == cell.arm)
    assert cell.task is not None
    assert cell.shots is not None
    suite = suite_of((cell.task,), cell.shots, cell.seed)
    if arm.source is None:
        assert arm.recipe is not None
        return coadapt.train(
            MODEL,
            suite,
            arm.recipe,
            budget=arm.budget,
            output=output,
            training={**ADAPT_TRAINING, **training},
            seed=cell.seed,
        )
    of = Cell(arm.source, chosen[arm.source], cell.seed, "test")
    run = folder / "runs" / of.file.removesuffix(".json")
    return coadapt.adapt(
        run, suite, output=output, learn=arm.learn, training=training, seed=cell.seed
    )


def compute(cells: list[Cell], folder: Path, chosen: dict[str, float], workers: int) -> None:
    """Run the cells that have no result yet."""
    missing = [cell for cell in cells if not (folder / "cells" / cell.file).is_file()]
    with ProcessPoolExecutor(workers) as pool:
        running = {pool.submit(run, cell, folder, chosen): cell for cell in missing}
        for number, future in enumerate(as_completed(running), start=1):
            future.result()
            sys.stderr.write(f"{number}/{len(missing)} {running[future].file}\n")


def best_rate(cells: list[Cell], folder: Path) -> float:
    """Return the rate with the best mean score of its cells."""
    found: dict[float, list[float]] = {}
    for cell in cells:
        scores = read_json(folder / "cells" / cell.file)["scores"].values()
        found.setdefault(cell.rate, []).append(float(np.mean(list(scores))))
    return max(found, key=lambda rate: float(np.mean(found[rate])))


def trials(arm: Arm, shots: int) -> list[Cell]:
    return [
        Cell(arm.name, rate, 0, "validation", task, shots) for rate in arm.rates for task in NEW
    ]


def experiment(folder: Path, workers: int) -> None:
    """Tune and train the sources, then the arms, and write the committed results."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    tuning = {n: [Cell(n, rate, 0, "validation") for rate in s.rates] for n, s in SOURCES.items()}
    compute([cell for cells in tuning.values() for cell in cells], folder, {}, workers)
    chosen = {name: best_rate(cells, folder) for name, cells in tuning.items()}
    finals = [Cell(name, chosen[name], seed, "test") for name in SOURCES for seed in SEEDS]
    compute(finals, folder, {}, workers)
    asked = [(arm, shots) for arm in ARMS for shots in SHOTS]
    every = [cell for arm, shots in asked for cell in trials(arm, shots)]
    compute(every, folder, chosen, workers)
    rates = {(a.name, shots): best_rate(trials(a, shots), folder) for a, shots in asked}
    last = list(_finals(rates))
    compute(last, folder, chosen, workers)
    rows = [
        {
            "arm": arm.name,
            "shots": shots,
            "rate": rates[arm.name, shots],
            **_row([c for c in last if (c.arm, c.shots) == (arm.name, shots)], folder),
        }
        for arm, shots in asked
    ]
    sources = {name: [read_json(folder / "cells" / c.file) for c in finals if c.arm == name]
               for name in SOURCES}  # fmt: skip
    write_json(
        RESULTS,
        {
            "trained_on": TRAINED,
            "rows_of_sources": SOURCE_ROWS,
            "seeds": SEEDS,
            "source_rates": chosen,
            "sources": {n: [cell["scores"] for cell in cells] for n, cells in sources.items()},
            "arms": rows,
            "environment": describe_environment(),
        },
    )


def _finals(rates: dict[tuple[str, int], float]) -> Iterator[Cell]:
    for (name, shots), rate in rates.items():
        for task in NEW:
            for seed in SEEDS:
                yield Cell(name, rate, seed, "test", task, shots)


def _row(cells: list[Cell], folder: Path) -> dict[str, Any]:
    found = [(cell, read_json(folder / "cells" / cell.file)) for cell in cells]
    return {
        "scores": {
            task: [r["scores"][task] for c, r in found if c.task == task] for task in NEW
        },
        "seconds": float(np.median([r["seconds"] for _, r in found])),
        "trainable": max(r["trainable"]["adapters"] for _, r in found),
    }  # fmt: skip


def sheets(base: str) -> Iterator[Sheet]:
    """Yield, for each task and both, the mean over seeds and the difference to an arm's."""
    found = read_json(RESULTS)
    for task in (*NEW, "mean"):
        rows = []
        for arm in ARMS:
            cells = []
            for shots in SHOTS:
                mine, other = (_scores(found, name, shots, task) for name in (arm.name, base))
                low, high = mean_interval(mine)
                cells.append(f"{mine.mean():.3f} ({low:.3f}, {high:.3f})")
                if arm.name == base:
                    cells.append("")
                else:
                    gain = paired_difference(mine, other)
                    cells.append(f"{gain.mean:+.3f} ({gain.low:+.3f}, {gain.high:+.3f})")
            values = max(r["trainable"] for r in found["arms"] if r["arm"] == arm.name)
            rows.append((arm.name, f"{values:,}", *cells))
        columns = [c for shots in SHOTS for c in (f"{shots} rows", "difference")]
        yield Sheet(
            title=f"{task}: test accuracy and difference to {base}, {len(SEEDS)} seeds, 95 % "
            "intervals",
            columns=("arm", "values", *columns),
            rows=tuple(rows),
        )


def _scores(found: dict[str, Any], arm: str, shots: int, task: str) -> np.ndarray:
    (row,) = (r for r in found["arms"] if (r["arm"], r["shots"]) == (arm, shots))
    names = NEW if task == "mean" else (task,)
    return np.mean([row["scores"][name] for name in names], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="read the committed results")
    parser.add_argument("--against", choices=[arm.name for arm in ARMS], default=ARMS[-3].name)
    parser.add_argument("--markdown", action="store_true", help="as docs/transfer.md has it")
    given = parser.parse_args()
    if not given.report:
        experiment(given.output, given.workers)
    console = Console(width=200)
    for sheet in sheets(given.against):
        if given.markdown:
            print(sheet.to_markdown())
        else:
            console.print(sheet.to_rich())


if __name__ == "__main__":
    main()
