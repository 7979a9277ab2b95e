"""One thing that was found."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

SHOWN = 5  # places that are named; more are counted

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about the data.

    Attributes:
        level: ``error`` stops a run, ``warning`` may spoil it, a ``note`` is to be known.
        task: whose data.
        what: in a word: ``leak``, ``label``, ``empty``, ``long``, ``newlines``, ``duplicate``,
            ``read``.
        said: one sentence with file and line of the first few.
        remedy: what would do.
    """

    level: Level
    task: str
    what: str
    said: str
    remedy: str


def some(places: Sequence[str]) -> str:
    """Name a few places, and how many more there are."""
    shown = ", ".join(places[:SHOWN])
    return f"{shown} and {len(places) - SHOWN} more" if len(places) > SHOWN else shown


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by level; the order in which they were found is kept among equals."""
    order: Sequence[Level] = ("error", "warning", "note")
    return tuple(sorted(findings, key=lambda found: order.index(found.level)))
