"""What a folder is, told by its files alone, before libraries are imported that take seconds."""

from pathlib import Path
from typing import Literal

from coadapt._errors import InputError

CONFIG = "config.yaml"  # of a run
ANALYSIS = "analysis"  # a folder in a run's, with what was measured of it later
STUDY = "study.json"
SUMMARY = "summary.json"  # of a study that has finished


def require_run(folder: Path) -> None:
    """Refuse a folder that is no run.

    Raises:
        InputError: naming it.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no run: it has no {CONFIG}")


def require_file(path: Path) -> None:
    """Refuse a path that is no file.

    Raises:
        InputError: naming it.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")


def kind_of(folder: Path) -> Literal["run", "study"]:
    """Say whether a folder is a run or a study.

    Raises:
        InputError: if it is neither.
    """
    if (folder / STUDY).is_file():
        return "study"
    if (folder / CONFIG).is_file():
        return "run"
    raise InputError(f"{folder} is neither a run (no {CONFIG}) nor a study (no {STUDY})")
