"""From a folder to a report's data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._folders import CONFIG, STUDY
from coadapt._version import __version__
from coadapt.reporting.of_runs import of_runs
from coadapt.reporting.of_study import of_study


def collect(folder: str | Path, diagnoses: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Return what there is to say about a run, a folder of runs, or a study.

    Nothing is computed that a model is needed for: only JSON and YAML are read.

    Args:
        folder: a run, a study, or a folder with runs in it, such as the demo's.
        diagnoses: of the same tasks; by default those that lie in the folder. Those in a run's
            folder ``analysis`` are shown in any case.

    Returns:
        ``title``, ``kind``, ``status``, ``answer`` (sentences) and ``sections``, each with a
        ``title`` and ``parts``.

    Raises:
        InputError: if the folder is none of these.
    """
    folder = Path(folder)
    given = [Path(path) for path in diagnoses]
    if (folder / STUDY).is_file():
        found = of_study(folder, given)
    elif (folder / CONFIG).is_file():
        found = of_runs(folder, [folder], given)
    else:
        runs = sorted(file.parent for file in folder.glob(f"*/{CONFIG}"))
        if not runs:
            raise InputError(
                f"{folder} is no run (no {CONFIG}), no study (no {STUDY}), and has no runs in it"
            )
        found = of_runs(folder, runs, given)
    sections = [part for part in found.pop("sections") if part is not None]
    return {"coadapt_version": __version__, "folder": folder.name, **found, "sections": sections}
