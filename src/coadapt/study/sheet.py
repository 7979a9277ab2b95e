"""A table as text, and how numbers are written in it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

MARK = {"win": " +", "loss": " -", "tie": ""}


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

    def to_rich(self) -> Table:
        """Return it for a terminal."""
        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
        # As `Text`: in a plain string, brackets of a name or an error would be taken for markup.
        for index, head in enumerate(self.columns):
            whole = index == 0 and len(self.columns) > 2
            lines = head.replace(" (", "\n(")  # "p (Holm)" is wider than its numbers
            table.add_column(Text(lines), no_wrap=whole, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        table.title = Text(f"\n{self.title}", style="table.title")
        table.title_justify = "left"
        if self.notes:
            table.caption = Text("\n".join(self.notes), style="table.caption")
            table.caption_justify = "left"
        return table

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


def short_names(table: dict[str, Any]) -> dict[str, str]:
    """Return the arms' names without the budget that the heading tells."""
    end = f"-R{table['budget']}"
    return {arm["arm"]: arm["arm"].removesuffix(end) for arm in table["arms"]}


def num_seeds(table: dict[str, Any]) -> str:
    """Return how many seeds a table's arms were run with."""
    return " or ".join(str(n) for n in sorted({len(arm["seeds"]) for arm in table["arms"]}))


def difference(arm: dict[str, Any]) -> list[str]:
    """Return an arm's difference to the baseline, its interval over rows, p and outcomes."""
    found = arm.get("difference")
    if found is None:
        return [""] * 4
    rows = found["rows"]
    return [
        plus_minus(signed(found["mean"]), found["low"], found["high"]) + MARK[found["outcome"]],
        f"{signed(rows[0])} {signed(rows[1])}" if rows else "-",
        "-" if missing(found["p_holm"]) else f"{found['p_holm']:.3f}",
        f"{arm['win']}/{arm['tie']}/{arm['loss']}",
    ]
