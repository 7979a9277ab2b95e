"""What a report consists of: plain data, so that the same is written as JSON."""

from collections.abc import Sequence
from typing import Any

from coadapt._sheet import Sheet

Part = dict[str, Any]

SMALL = 0.1  # where all numbers of a matrix are below, a third digit is told


def text(content: str) -> Part:
    """Return a paragraph."""
    return {"kind": "text", "text": content}


def points(lines: Sequence[str]) -> Part:
    """Return a list."""
    return {"kind": "points", "lines": list(lines)}


def code(content: str) -> Part:
    """Return lines to be copied, or a file's content."""
    return {"kind": "code", "text": content}


def fold(title: str, content: str) -> Part:
    """Return long text that is opened on demand; printed whole."""
    return {"kind": "fold", "title": title, "text": content}


def table(sheet: Sheet) -> Part:
    """Return a table; the first column names its rows."""
    return {
        "kind": "table",
        "title": sheet.title,
        "columns": list(sheet.columns),
        "rows": [list(row) for row in sheet.rows],
        "notes": list(sheet.notes),
    }


def picture(title: str, alt: str, svg: str) -> Part:
    """Return a drawing that is there already."""
    return {"kind": "picture", "title": title, "alt": alt, "svg": svg}


def chart(form: str, title: str, alt: str, *, caption: str = "", **data: Any) -> Part:
    """Return a drawing's data; how a form is drawn: :mod:`coadapt.reporting.charts`.

    Args:
        form: ``intervals``, ``lines``, ``heat``, ``strip`` or ``scatter``.
        title: what is shown.
        alt: what it shows, for who does not see it.
        caption: what is to be said below it.
        data: of that form.
    """
    return {"kind": "chart", "form": form, "title": title, "alt": alt, "caption": caption, **data}


def section(title: str, *found: Part | None) -> dict[str, Any] | None:
    """Return a section of what was found, or None of nothing."""
    parts = [part for part in found if part is not None]
    return {"title": title, "parts": parts} if parts else None
