"""The demo's tables."""

import json
from typing import TYPE_CHECKING

from rich.table import Table

from coadapt.evaluation import TaskScores, overall
from coadapt.runs import Run
from coadapt.tasks import TaskSuite
from coadapt.training import METRICS_FILE

if TYPE_CHECKING:
    from rich.console import Console


def print_comparison(
    suite: TaskSuite,
    runs: dict[str, Run],
    scores: dict[str, dict[str, TaskScores]],
    *,
    quick: bool,
    console: "Console",
) -> None:
    """Print scores by task and recipe with their intervals, then what each recipe cost."""
    title = "test score with 95 % bootstrap interval over the rows, one seed"
    table = Table("task", *runs, title=title + (" (--quick: meaningless)" if quick else ""))
    for task in suite.names:
        found = [scores[name][task].score for name in runs]
        table.add_row(task, *(f"{s.value:.3f} {_short(s.low)}-{_short(s.high)}" for s in found))
    table.add_section()
    table.add_row("mean", *(f"{overall(scores[name]):.3f}" for name in runs))
    console.print(table)
    console.print(_costs(runs))


def _short(value: float) -> str:
    """Four columns of scores and intervals must fit a terminal of 80 characters."""
    return f"{value:.2f}".removeprefix("0")


def _costs(runs: dict[str, Run]) -> Table:
    table = Table("", *runs, title="what it took")
    done = {name: run.result["train"] for name, run in runs.items()}
    table.add_row("training, s", *(f"{d['seconds']:.0f}" for d in done.values()))
    table.add_row("adapter values", *(f"{d['trainable']['adapters']:,}" for d in done.values()))
    table.add_row("head values", *(f"{d['trainable']['heads']:,}" for d in done.values()))
    table.add_row("updates/adapter", *(_updates(d["updates"]) for d in done.values()))
    table.add_row("valid. half, end", *(_plateau(run) for run in runs.values()))
    return table


def _updates(updates: dict[str, int]) -> str:
    blocks = [count for name, count in updates.items() if not name.startswith("heads/")]
    if not blocks:
        return "-"
    low, high = min(blocks), max(blocks)
    return str(low) if low == high else f"{low} to {high}"


def _plateau(run: Run) -> str:
    lines = (run.path / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    scored = [line["eval_overall"] for line in found if "eval_overall" in line]
    return ", ".join(f"{score:.3f}" for score in (scored[0], scored[-1]))
