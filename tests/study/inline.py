"""An executor that runs each job in this process, and how a study is written and run with it."""

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
from coadapt.study.worker import Bench, _attempt

Intercept = Callable[[Job], dict[str, Any] | None]


class Inline(AbstractExecutor):
    """Runs one job a call of `events`; the call before tells that it has started.

    Args:
        intercept: may give the end of a job, a dict of ``kind`` and ``data``, in place of running
            it, or raise.
        bench: keeps what jobs share; one for several executors saves time.

    Attributes:
        ran: the jobs in the order in which they came to an end.
        steps: the training steps that each job took.
        closed: whether it was.
    """

    def __init__(self, intercept: Intercept | None = None, bench: Bench | None = None) -> None:
        self._intercept, self._bench = intercept, bench or Bench()
        self._waiting: deque[Job] = deque()
        self._started: Job | None = None
        self.ran: list[str] = []
        self.steps: dict[str, int] = {}
        self.closed = False

    @property
    def num_workers(self) -> int:
        """One job at a time."""
        return 1

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

            end = _attempt(self._bench, job.payload, tell)
        self._started = None
        self.ran.append(job.id)
        return [*told, Event(job=job.id, worker=0, **end)]

    def close(self) -> None:
        """Take no more."""
        self.closed = True


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
