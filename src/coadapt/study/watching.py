"""Telling how far a study is: a live display in a terminal, a line a cell elsewhere."""

import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from coadapt.study.grid import Cell, Group


class Estimate:
    """Guesses the time left from how long rows have taken, recipe by recipe."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._left: dict[str, tuple[str, float]] = {}
        self._spent: dict[str, tuple[float, float]] = {}
        self._started: dict[str, float] = {}

    def expect(self, cell: Cell, *, cost: float) -> None:
        """Count a cell in, or guess its cost anew."""
        self._left[cell.id] = (cell.group.recipe, cost)

    def drop(self, cell: Cell) -> None:
        """Count a cell out that does not have to run."""
        self._left.pop(cell.id, None)

    def drop_finals(self, group: Group) -> None:
        """Count out the final runs of a group."""
        for cell in [cell for cell in self._left if cell.startswith(f"{group.name}/final")]:
            del self._left[cell]

    def started(self, cell: Cell) -> None:
        """Note when a cell starts; which trial it is of is known by now."""
        self._started[cell.id] = time.monotonic()
        if self._left.get(cell.id) != (cell.group.recipe, 0.0):
            self.expect(cell, cost=cell.cost)

    def ended(self, cell: Cell) -> float:
        """Count a cell out and return the seconds that it took."""
        _, cost = self._left.pop(cell.id, (cell.group.recipe, 0.0))
        seconds = time.monotonic() - self._started.pop(cell.id, time.monotonic())
        rows, total = self._spent.get(cell.group.recipe, (0.0, 0.0))
        self._spent[cell.group.recipe] = rows + cost, total + seconds
        return seconds

    @property
    def seconds_left(self) -> float | None:
        """The guess; None before any cell has ended."""
        rows = sum(spent[0] for spent in self._spent.values())
        if not rows:
            return None
        usual = sum(spent[1] for spent in self._spent.values()) / rows
        rates = {r: seconds / done for r, (done, seconds) in self._spent.items() if done}
        work = sum(cost * rates.get(recipe, usual) for recipe, cost in self._left.values())
        return work / self._num_workers


class AbstractWatcher(ABC):
    """Is told what happens in a study."""

    @abstractmethod
    def expect(self, group: Group, trials: list[Cell], finals: list[Cell]) -> None:
        """A group's cells, of which the final ones may turn out longer or shorter."""

    @abstractmethod
    def skipped(self, cell: Cell) -> None:
        """A cell has its result already."""

    @abstractmethod
    def started(self, cell: Cell, worker: int) -> None:
        """A worker has begun with a cell."""

    @abstractmethod
    def stepped(self, cell: Cell, worker: int, step: int, of: int) -> None:
        """A worker has come so far."""

    @abstractmethod
    def ended(self, cell: Cell, worker: int, status: str, error: str | None) -> None:
        """A cell is over."""

    @abstractmethod
    def gave_up(self, group: Group, reason: str) -> None:
        """A group's final runs cannot be."""

    @abstractmethod
    def tick(self) -> None:
        """Some time has passed."""


class ConsoleWatcher(AbstractWatcher):
    """Writes to a console: live where it is a terminal, else a line for each cell that ends.

    Args:
        console: where to.
        num_workers: how many cells run at a time.
    """

    def __init__(self, console: Console, num_workers: int) -> None:
        self._console = console
        self._estimate = Estimate(num_workers)
        self._total = self._done = self._failed = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("cells", total=None, note="")
        self._workers: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._workers.values():  # what they did last is of no interest any more
            self._progress.remove_task(task)
        self._progress.stop()

    def expect(self, group: Group, trials: list[Cell], finals: list[Cell]) -> None:
        """Count them."""
        self._total += len(trials) + len(finals)
        trained = {cell.run_id.rpartition("_")[2] for cell in trials}
        for cell in trials:
            self._estimate.expect(cell, cost=cell.cost)
        for cell in finals:  # one that was trained as a trial has only to be scored
            known = cell.run_id.rpartition("_")[2] in trained
            self._estimate.expect(cell, cost=0.0 if known else cell.cost)

    def skipped(self, cell: Cell) -> None:
        """Count it as done."""
        self._done += 1
        self._estimate.drop(cell)

    def started(self, cell: Cell, worker: int) -> None:
        """Give the worker a line."""
        self._estimate.started(cell)
        if worker not in self._workers:
            self._workers[worker] = self._progress.add_task("", total=None, note="")
        self._progress.reset(self._workers[worker], description=f"  {cell.id}", total=None)

    def stepped(self, cell: Cell, worker: int, step: int, of: int) -> None:
        """Move the worker's bar."""
        if worker in self._workers:
            self._progress.update(self._workers[worker], completed=step, total=of)

    def ended(self, cell: Cell, worker: int, status: str, error: str | None) -> None:
        """Write a line, unless the display shows enough."""
        seconds = self._estimate.ended(cell)
        self._done += 1
        if status != "finished":
            self._failed += 1
        if not self._console.is_terminal or status != "finished":
            told = f"{self._done}/{self._total} {cell.id}: {status} in {seconds:.0f} s"
            told += f": {error}" if error else self._left()
            self._console.print(told, markup=False, highlight=False, soft_wrap=True)

    def gave_up(self, group: Group, reason: str) -> None:
        """Say so."""
        self._estimate.drop_finals(group)
        told = f"{group.name}: no final runs: {reason}"
        self._console.print(told, markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Bring the display up to date."""
        note = self._left().removeprefix(", ")
        if self._failed:
            note += f", {self._failed} failed"
        self._progress.update(self._all, completed=self._done, total=self._total, note=note)

    def _left(self) -> str:
        seconds = self._estimate.seconds_left
        return "" if seconds is None else f", about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
