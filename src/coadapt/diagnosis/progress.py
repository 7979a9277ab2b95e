"""A bar for the rows that a diagnosis runs through the model."""

from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.console import Console


class RowProgress:
    """Shows the passes over the rows one after the other; nothing without a console."""

    def __init__(self, console: "Console | None") -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console) if console is not None else None

    def __enter__(self) -> "RowProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, what: str, total: int) -> None:
        """Begin another pass."""
        if self._bar is not None:
            self._current = self._bar.add_task(what, total=total)

    def advance(self, rows: int) -> None:
        """Tell that rows are done."""
        if self._bar is not None:
            self._bar.advance(self._current, rows)
