"""An executor that runs each job in this process, and how a study is written, run and read."""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from coadapt.config import dump_yaml
from coadapt.study.executor import AbstractExecutor, Event, Job
from coadapt.study.grid import Grid
from coadapt.study.running import Runner, claim
from coadapt.study.spec import read_study
from coadapt.study.watching import AbstractWatcher, ConsoleWatcher
from coadapt.study.worker import Bench, attempt
from tests.toy_runs import model_of

Intercept = Callable[[Job], dict[str, Any] | None]
# What a record holds that measures or names the machine, not the run.
OF_THE_MACHINE = ("inference", "environment", "timing")


class Inline(AbstractExecutor):
    """Runs one job a call of `events`; the call before tells that it has started.

    Args:
        intercept: may give the end of a job, a dict of ``kind`` and ``data``, in place of running
            it, or raise.
        bench: keeps what jobs share; one for several executors saves time.
        on_step: called with a job's id and the step that it has taken; may raise.
        num_workers: jobs to ask for at a time, though one runs after the other.

    Attributes:
        ran: the jobs in the order in which they came to an end.
        steps: the training steps that each job took.
        closed: whether it was.
    """

    def __init__(
        self,
        intercept: Intercept | None = None,
        bench: Bench | None = None,
        *,
        on_step: Callable[[str, int], None] | None = None,
        num_workers: int = 1,
    ) -> None:
        self._intercept, self._bench = intercept, bench or Bench()
        self._on_step, self._num_workers = on_step, num_workers
        self._waiting: deque[Job] = deque()
        self._started: Job | None = None
        self.ran: list[str] = []
        self.steps: dict[str, int] = {}
        self.closed = False

    @property
    def running(self) -> str | None:
        """The id of the job that has started and not ended."""
        return self._started.id if self._started is not None else None

    @property
    def num_workers(self) -> int:
        """How many jobs to hand over."""
        return self._num_workers

    def submit(self, job: Job) -> None:
        """Take a job."""
        assert not self.closed
        self._waiting.append(job)

    def events(self, timeout: float) -> list[Event]:
        """Start a job, or run the one that was started."""
        if self._started is None:
            self._started = self._waiting.popleft()
            return [Event(job=self._started.id, kind="started", worker=0)]
        job = self._started
        self.steps[job.id] = 0
        end = self._intercept(job) if self._intercept is not None else None
        told: list[Event] = []
        if end is None:

            def tell(step: int, of: int) -> None:
                self.steps[job.id] += 1
                data = {"step": step, "of": of}
                told.append(Event(job=job.id, kind="step", worker=0, data=data))
                if self._on_step is not None:
                    self._on_step(job.id, step)

            end = attempt(self._bench, job.payload, tell)
        self._started = None
        self.ran.append(job.id)
        return [*told, Event(job=job.id, worker=0, **end)]

    def close(self) -> None:
        """Take no more."""
        self.closed = True


def study_of(folder: Any, suite: dict[str, Any]) -> dict[str, Any]:
    """Return the toy study of the tiny BERT in a folder and of a suite."""
    return {
        "name": "toy",
        "model": model_of(folder),
        "suite": suite,
        "rows": [8],
        "held_out": {"validation": 4, "test": 4},
        "seeds": [0, 1],
        "budgets": [8],
        "baseline": "lora",
        "trials": [{"learning_rate": 5e-3, "epochs": 1}, {"learning_rate": 2e-2, "epochs": 2}],
        "training": {"use_cpu": True, "per_device_train_batch_size": 8},
        "recipes": {"lora": None, "private": None},
    }


def write_study(folder: Path, study: dict[str, Any]) -> Path:
    """Write plain data as ``study.yaml`` in a folder."""
    path = folder / "study.yaml"
    path.write_text(dump_yaml(study), encoding="utf-8")
    return path


def grid_of(folder: Path, study: dict[str, Any]) -> Grid:
    """Return the cells that plain data mean; the file is written to a folder."""
    path = write_study(folder, study)
    return Grid(*read_study(path), str(path))


def run_inline(
    grid: Grid,
    folder: Path,
    executor: AbstractExecutor,
    *,
    resume: bool = False,
    changed: bool = False,
    watcher: AbstractWatcher | None = None,
) -> dict[str, str]:
    """Run what a study lacks in this process and return what failed."""
    watcher = watcher or ConsoleWatcher(Console(quiet=True), executor.num_workers)
    with claim(folder, grid, resume=resume, changed=changed):
        return Runner(grid, folder, executor, watcher).run()


def scored(job: Job, score: float) -> dict[str, Any]:
    """Return the end of a job that took no training and has this score on every task."""
    split, folder = job.payload["split"], Path(job.payload["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"predictions-{split}.json").write_text(f'{{"of": "{job.id}"}}', encoding="utf-8")
    value = {"value": score, "low": score, "high": score}
    scores = {
        task: {"num_rows": 4, "metrics": {"accuracy": value}} for task in job.payload["tasks"]
    }
    data = {"train": {"steps": 1}, "curve": [], "metrics": {split: scores}, "environment": {}}
    return {"kind": "finished", "data": data}


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return a study's records by the cells' ids."""
    found = (folder / "cells").rglob("*.json")
    paths = sorted(path for path in found if not path.name.endswith(".predictions.json"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    assert [f"{p.parent.name}/{p.stem}" for p in paths] == [r["cell"]["id"] for r in records]
    return {record["cell"]["id"]: record for record in records}


def statuses_of(folder: Path) -> dict[str, str]:
    """Return what became of each cell that has a record."""
    return {name: record["run"]["status"] for name, record in records_of(folder).items()}


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return all that two studies with the same results have in common: records, predictions."""
    found: dict[str, Any] = records_of(folder)
    for record in found.values():
        for key in OF_THE_MACHINE:
            record.pop(key, None)
        del record["run"]["command"]
        for key in ("seconds", "peak_memory_mib"):
            (record["train"] or {}).pop(key, None)
    cells = folder / "cells"
    for path in sorted(cells.rglob("*.predictions.json")):
        found[str(path.relative_to(cells))] = path.read_bytes()
    return found
