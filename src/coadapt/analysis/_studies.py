"""Reading a finished study's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._files import read_json
from coadapt._folders import STUDY, SUMMARY


def read_study(study: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a study as it was asked for, and its statistics."""
    folder = Path(study)
    if not (folder / STUDY).is_file():
        raise InputError(f"{folder} is no study: it has no {STUDY}")
    if not (folder / SUMMARY).is_file():
        raise InputError(f"{folder} has no {SUMMARY}; finish the study with --resume")
    return read_json(folder / STUDY)["study"], read_json(folder / SUMMARY)


def setting_of(table: Mapping[str, Any]) -> str:
    """Return what a table of a study's summary is about."""
    parts = [
        f"{table['rows']} rows a task" if table["rows"] else "",
        table["subset"] or f"{len(table['tasks'])} tasks",
        f"rank budget {table['budget']}" if table["budget"] else "",
    ]
    return ", ".join(part for part in parts if part)
