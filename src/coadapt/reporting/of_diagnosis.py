"""What a report shows of diagnoses."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._files import read_json
from coadapt.diagnosis.measures import Diagnosis, load_diagnosis
from coadapt.diagnosis.sheets import remarks, sheets_alone
from coadapt.reporting import parts
from coadapt.reporting.of_capacity import capacity, coupling, is_of_run
from coadapt.reporting.pairs import heat
from coadapt.reporting.parts import Part

# Shown as pictures; the other measures are in tables.
_DRAWN = ("similarity", "cosine", "representation")


def find(folders: Iterable[Path], given: Sequence[Path]) -> list[Diagnosis]:
    """Return the diagnoses that were given, or those that lie in folders."""
    if given:
        return [load_diagnosis(path) for path in given]
    files = [file for folder in folders for file in sorted(folder.glob("*.json"))]
    return [load_diagnosis(file) for file in files if _is_one(file)]


def _is_one(file: Path) -> bool:
    if file.name == "result.json" or file.name.startswith("predictions-"):
        return False
    try:
        plain = read_json(file)
    except InputError:
        return False
    return isinstance(plain, dict) and plain.get("kind") == "diagnosis"


def section_of(found: Diagnosis, of: str = "") -> dict[str, Any] | None:
    """Return a section with heat maps, tables and what the numbers assume.

    Args:
        found: the diagnosis.
        of: added to the title where several runs have one.
    """
    of_run = is_of_run(found)
    title = "Coupling and capacity" if of_run else "How the tasks relate"
    measured = [*coupling(found), *capacity(found)] if of_run else _relations(found)
    assumed = remarks(found)
    return parts.section(
        f"{title}: {of}" if of else title,
        parts.text(f"Measured of {found.of}{_rows(found)}."),
        *measured,
        parts.text("What these numbers assume, and how to read them:") if assumed else None,
        parts.points(assumed) if assumed else None,
        settings_of(found),
    )


def _rows(found: Diagnosis) -> str:
    numbers = sorted({found.rows.get(task, 0) for task in found.tasks})
    if numbers[-1] == 0:
        return ""
    told = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    split = found.settings.get("split")
    return f", on {told} {f'{split} ' if split else ''}rows a task"


def _relations(found: Diagnosis) -> list[Part]:
    drawn = [heat(found, name) for name in _DRAWN if name in found.pairs]
    return [*drawn, *(parts.table(sheet) for sheet in sheets_alone(found))]


def settings_of(found: Diagnosis) -> Part:
    """Return a diagnosis's settings."""
    return parts.fold("settings of the diagnosis", json.dumps(found.settings, indent=2))
