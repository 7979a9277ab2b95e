"""What a report shows of diagnoses."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._files import read_json
from coadapt.diagnosis.measures import Diagnosis, load_diagnosis
from coadapt.diagnosis.sheets import sheets
from coadapt.reporting import parts
from coadapt.reporting.parts import Part

# Shown as pictures; the other measures are in tables.
_DRAWN = ("similarity", "cosine", "representation")


def find(folder: Path, given: Path | None) -> list[Diagnosis]:
    """Return the diagnosis that was given, or those that lie in a folder."""
    if given is not None:
        return [load_diagnosis(given)]
    return [load_diagnosis(file) for file in sorted(folder.glob("*.json")) if _is_one(file)]


def _is_one(file: Path) -> bool:
    try:
        plain = read_json(file)
    except InputError:
        return False
    return isinstance(plain, dict) and plain.get("kind") == "diagnosis"


def section_of(found: Diagnosis) -> dict[str, Any] | None:
    """Return a section with heat maps, tables and what has to be assumed."""
    drawn = [_heat(found, name) for name in _DRAWN if name in found.pairs]
    tables = [parts.table(sheet) for sheet in sheets(found)]
    of = parts.text(f"Measured of {found.of}.")
    return parts.section("How the tasks relate", of, *drawn, *tables, settings_of(found))


def _heat(found: Diagnosis, name: str) -> Part:
    pair = found.pairs[name]
    values = [[None if math.isnan(v) else float(v) for v in row] for row in pair.values]
    return parts.chart(
        "heat",
        pair.title,
        f"{pair.title}. {pair.reading} {_extremes(found.tasks, values)}",
        names=list(found.tasks),
        values=values,
        caption=pair.reading,
    )


def _extremes(tasks: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    told = [
        (value, f"{tasks[i]} and {tasks[j]}")
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if i < j and value is not None
    ]
    if not told:
        return ""
    (low, least), (high, most) = min(told), max(told)
    return f"Highest: {most}, {high:.2f}; lowest: {least}, {low:.2f}."


def settings_of(found: Diagnosis) -> Part:
    """Return a diagnosis's settings."""
    return parts.fold("settings of the diagnosis", json.dumps(found.settings, indent=2))
