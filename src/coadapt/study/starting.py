"""A study from its file to its tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from coadapt._errors import InputError
from coadapt._files import write_json, write_text
from coadapt._folders import SUMMARY
from coadapt._sheet import to_markdown
from coadapt.study.comparison import finite
from coadapt.study.executor import AbstractExecutor
from coadapt.study.grid import Grid
from coadapt.study.local import Local
from coadapt.study.running import Runner, claim
from coadapt.study.spec import read_study
from coadapt.study.summary import summarize
from coadapt.study.tables import cells_sheets, detail_sheets, main_sheets, plan_sheet
from coadapt.study.watching import ConsoleWatcher

TABLES = "tables.md"

ExecutorKind = Literal["local", "ray"]


def run_study(
    file: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    changed: bool = False,
    overrides: Sequence[str] = (),
    data_root: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    workers: int | None = None,
    executor: ExecutorKind = "local",
    address: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a study, or what it still lacks, and return its statistics.

    Args:
        file: a study.yaml, see :class:`coadapt.study.Study`.
        output: its folder; new, or with ``resume`` one that holds it.
        resume: go on with the study there: cells with a result are skipped, others run again.
        changed: even if the file has changed since.
        overrides: ``key=value`` assignments, dotted; ``suite.key=value`` for the suite.
        data_root: reads ``DIR/<task>/<split>.jsonl`` instead of the suite's sources.
        tasks: of the suite, to take no others; all if not given.
        workers: cells at a time; None: as many as the cores, or accelerators, carry.
        executor: who runs the cells: processes of this machine, or a Ray cluster.
        address: of the Ray cluster, ``HOST:PORT``; see :class:`coadapt.study.cluster.RayCluster`.
        console: where to write what happens.

    Returns:
        What is written to ``summary.json``, see :func:`coadapt.study.summarize`.

    Raises:
        InputError: if the file, the data or the folder cannot be used, before anything starts.

    Example:
        ``summary = coadapt.run_study("study.yaml", "runs/study")``
    """
    console = console or Console(quiet=True)
    folder = Path(output)
    if executor not in ("local", "ray"):
        raise InputError(f"executor '{executor}' is unknown; give local or ray")
    if address is not None and executor != "ray":
        raise InputError("an address goes with executor ray; drop it or name that executor")
    study, suite = read_study(file, overrides, data_root=data_root, only=tasks)
    grid = Grid(study, suite, str(file))
    with claim(folder, grid, resume=resume, changed=changed):
        _introduce(grid, console)
        runs = _executor(executor, address, folder, workers=workers, threads=study.threads)
        with ConsoleWatcher(console, runs.num_workers) as watcher:
            Runner(grid, folder, runs, watcher).run()
        summary = finite(summarize(grid, folder))
        write_json(folder / SUMMARY, summary)
        sheets = [*main_sheets(summary), *detail_sheets(summary), *cells_sheets(summary)]
        write_text(folder / TABLES, to_markdown([plan_sheet(grid), *sheets]))
    return summary


def _executor(
    kind: ExecutorKind, address: str | None, folder: Path, *, workers: int | None, threads: int
) -> AbstractExecutor:
    if kind == "local":
        return Local(workers=workers, threads=threads, logs=folder / "logs")
    from coadapt.study.cluster import RayCluster

    return RayCluster(workers=workers, threads=threads, folder=folder, address=address)


def _introduce(grid: Grid, console: Console) -> None:
    console.print(plan_sheet(grid).to_rich())
    finals = len(grid.groups) * len(grid.study.seeds)
    trials = sum(len(grid.trials(group)) for group in grid.groups)
    console.print(
        f"{len(grid.groups)} groups: {trials} trials on validation, {finals} final runs on test",
        highlight=False,
    )
    for group, reason in grid.infeasible.items():
        console.print(f"left out: {group.name}: {reason}", markup=False, soft_wrap=True)
    for task, rows in grid.short_tasks().items():
        console.print(f"task '{task}' has {rows} training rows only", markup=False)
