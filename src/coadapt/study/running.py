"""Running a study: trials, the choice among them, final runs, and nothing lost on the way."""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from coadapt._errors import InputError
from coadapt._files import read_json, write_json, write_text
from coadapt._folders import STUDY
from coadapt.backbone import compute_dtype
from coadapt.config import changed_keys, to_plain
from coadapt.predictions import predictions_file
from coadapt.study.executor import AbstractExecutor, Event, Job
from coadapt.study.grid import SPLIT, Cell, Grid, Group
from coadapt.study.records import (
    is_done,
    predictions_path,
    read_record,
    record_path,
    validation_score,
    write_record,
)
from coadapt.study.watching import AbstractWatcher

logger = logging.getLogger(__name__)

RUNS = "runs"
_LOCK = ".lock"


class Runner:
    """Runs what a grid still lacks.

    Args:
        grid: the cells.
        folder: the study's; see :func:`claim`.
        executor: who runs them.
        watcher: who is told.
    """

    def __init__(
        self, grid: Grid, folder: Path, executor: AbstractExecutor, watcher: AbstractWatcher
    ) -> None:
        self._grid, self._folder, self._executor = grid, folder, executor
        self._watcher = watcher
        self._open: dict[str, Cell] = {}  # handed over, not ended
        self._running: dict[str, Cell] = {}  # of these, those that have started
        self._tuning: dict[Group, list[Cell]] = {}
        self._failed: dict[str, str] = {}
        self._ready: deque[Cell] = deque()

    def run(self) -> dict[str, str]:
        """Run every cell that has no result; return those that failed, with the reason.

        Groups follow each other in the grid's order, a group's final runs its trials, so that a
        study that is stopped has whole groups to show.
        """
        try:
            for group in self._grid.groups:
                self._begin(group)
            self._submit()
            while self._open:
                for event in self._executor.events(timeout=0.5):
                    self._handle(event)
                self._submit()
                self._watcher.tick()
        except BaseException:
            self._executor.close()
            for cell in self._running.values():
                self._record(cell, "cancelled", error="the study was stopped")
            raise
        self._executor.close()
        return self._failed

    def _begin(self, group: Group) -> None:
        cells = self._grid.trials(group)
        self._watcher.expect(group, cells, self._grid.finals(group, 0))
        missing = [c for c in cells if not is_done(read_record(self._folder, c))]
        for cell in cells:
            if cell not in missing:
                self._watcher.skipped(cell)
        self._tuning[group] = missing
        self._ready.extend(missing)
        if not missing:
            self._ready.extend(self._choose(group, cells))

    def _choose(self, group: Group, cells: list[Cell]) -> list[Cell]:
        """Choose among a group's trials and return the final runs that it lacks."""
        chosen = choose(self._folder, cells)
        if chosen is None:
            self._failed[group.name] = "every trial diverged; give lower learning rates"
            self._watcher.gave_up(group, self._failed[group.name])
            return []
        missing = []
        for cell in self._grid.finals(group, chosen):
            if is_done(read_record(self._folder, cell)):
                self._watcher.skipped(cell)
            else:
                missing.append(cell)
        return missing

    def _submit(self) -> None:
        """Keep the workers busy and no more, so that a group's final runs come next."""
        while self._ready and len(self._open) < self._executor.num_workers:
            cell = self._ready.popleft()
            self._open[cell.id] = cell
            self._executor.submit(self._job(cell))

    def _job(self, cell: Cell) -> Job:
        payload = {
            "config": to_plain(cell.config),
            "suite": cell.suite.whole.to_plain(),
            "tasks": list(cell.suite.names),
            "folder": str(self._folder / RUNS / cell.run_id),
            "split": SPLIT[cell.role],
        }
        memory = _guess(
            cell,
            num_weights=self._grid.num_weights,
            trainable=self._grid.spent[cell.group].trainable,
        )
        return Job(id=cell.id, payload=payload, needs=cell.group.recipe, memory=memory)

    def _handle(self, event: Event) -> None:
        cell = self._open[event.job]
        if event.kind == "step":
            self._watcher.stepped(cell, event.worker, event.data["step"], event.data["of"])
        elif event.kind == "started":
            self._running[event.job] = cell
            self._record(cell, "running")
            self._watcher.started(cell, event.worker)
        else:
            del self._open[event.job]
            self._running.pop(event.job, None)  # its process may have died before it could start
            self._end(cell, event)

    def _end(self, cell: Cell, event: Event) -> None:
        status, error = event.kind, event.data.get("error")
        if status == "finished":
            try:
                self._keep_predictions(cell)
            except OSError as failure:
                status, error = "failed", f"{type(failure).__name__}: {failure}"
        done = event.data if status == "finished" else None
        if not self._record(cell, status, error=error, done=done):
            status, error = "failed", "its result could not be written"
        if status not in ("finished", "diverged") or (
            status == "diverged" and cell.role == "final"
        ):
            self._failed[cell.id] = error or status
        self._watcher.ended(cell, event.worker, status, error)
        if cell.role == "trial" and status not in ("finished", "diverged"):
            self._watcher.gave_up(cell.group, f"{cell.id} has no result")
        elif cell.role == "trial":
            tuning = self._tuning[cell.group]
            tuning.remove(cell)
            if not tuning:
                finals = self._choose(cell.group, self._grid.trials(cell.group))
                self._ready.extendleft(reversed(finals))

    def _record(self, cell: Cell, status: str, **rest: Any) -> bool:
        """Write a cell's record; a full disk costs this cell, not the study."""
        try:
            write_record(self._folder, cell, status, **rest)
        except OSError as error:
            logger.error("%s: %s", record_path(self._folder, cell), error)
            return False
        return True

    def _keep_predictions(self, cell: Cell) -> None:
        if cell.role == "final":
            source = self._folder / RUNS / cell.run_id / predictions_file(SPLIT[cell.role])
            target = predictions_path(self._folder, cell)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, source.read_text(encoding="utf-8"))


def choose(folder: Path, cells: list[Cell]) -> int | None:
    """Return the trial with the best mean validation score over its seeds; the first of equals.

    A trial that diverged for a seed is out. None if all are.
    """
    scores: dict[int, list[float]] = {}
    out: set[int] = set()
    for cell in cells:
        record = read_record(folder, cell)
        score = validation_score(record) if record is not None else None
        if score is None:
            out.add(cell.trial)
        else:
            scores.setdefault(cell.trial, []).append(score)
    left = [trial for trial in sorted(scores) if trial not in out]
    return max(left, key=lambda t: (sum(scores[t]) / len(scores[t]), -t), default=None)


@contextmanager
def claim(folder: Path, grid: Grid, *, resume: bool, changed: bool) -> Iterator[None]:
    """Make a folder this study's, and keep other studies out of it for the block.

    Args:
        folder: new, empty, or a study's with ``resume``.
        grid: the study.
        resume: go on with the study there.
        changed: also if its file has changed since.

    Raises:
        InputError: if another process has the folder, it holds something else, or another study.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another output")
    path = folder / STUDY
    there = folder.is_dir() and any(p.name != _LOCK for p in folder.iterdir())
    if there and not path.is_file():
        raise InputError(f"{folder} is not empty and no study; choose another output")
    if there and not resume:
        raise InputError(
            f"{folder} holds a study; go on with it (--resume) or choose another output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another study is writing to {folder}; wait for it or choose another output"
        ) from error
    try:
        _write_study(path, grid, changed=changed)
        yield
    finally:
        lock.release()


def _write_study(path: Path, grid: Grid, *, changed: bool) -> None:
    """Write what the study is; refuse another one than is there."""
    plain = {"study": to_plain(grid.study, hashed=True), "suite": grid.suite.to_plain(hashed=True)}
    old = read_json(path) if path.is_file() else plain
    names = [name for key in plain for name in changed_keys(key, old.get(key), plain[key])]
    if names and not changed:
        raise InputError(
            f"the study has changed since it was started in {path.parent}: {', '.join(names)}. "
            "Take the old file, choose another output, or say --changed: results of cells that "
            "are still the same are kept, the others run"
        )
    write_json(path, plain)


def _guess(cell: Cell, *, num_weights: int, trainable: int) -> int:
    """Guess the bytes that a worker needs before any has told."""
    width = compute_dtype(cell.config.model.dtype).itemsize
    # Libraries and activations; the weights, kept and in use; gradients and AdamW's moments.
    return 900 * 2**20 + 2 * width * num_weights + 16 * trainable
