"""A table as text, and how numbers are written in it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

WHOLE = 40  # characters of a name that are kept on one line


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as text.

    Attributes:
        title: what it shows, with the number of seeds.
        columns: their heads; the first names the rows.
        rows: cells.
        notes: what has to be known to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_rich(self) -> Group:
        """Return it for a terminal."""
        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
        short = all(len(row[0]) <= WHOLE for row in self.rows)
        # As `Text`: in a plain string, brackets of a name or an error would be taken for markup.
        for index, head in enumerate(self.columns):
            whole = index == 0 and len(self.columns) > 2 and short
            lines = head.replace(" (", "\n(")  # "p (Holm)" is wider than its numbers
            table.add_column(Text(lines), no_wrap=whole, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        # Not as the table's own title and caption, which wrap to its width.
        title = Text(f"\n{self.title}", style="italic")
        return Group(title, table, *(Text(note, style="dim italic") for note in self.notes))

    def to_markdown(self) -> str:
        """Return it for a page."""
        lines = [f"**{self.title}**", "", _line(self.columns), _line("---" for _ in self.columns)]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *self.notes, ""]) if self.notes else "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    # An error has lines, and a name that the user gave may have a bar.
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"


def score(value: float | None) -> str:
    """Return a score with three digits; a dash where there is none."""
    return "-" if missing(value) else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Return a difference with its sign."""
    return "-" if missing(value) else f"{value:+.3f}"


def plus_minus(value: str, low: float | None, high: float | None) -> str:
    """Return a value with the half width of its symmetric interval."""
    if low is None or high is None or missing(low) or missing(high):
        return value
    return f"{value} ±{(high - low) / 2:.3f}"


def missing(value: float | None) -> bool:
    """Return whether there is no number."""
    return value is None or math.isnan(value)


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Return sheets one after the other."""
    return "\n".join(sheet.to_markdown() for sheet in sheets)
