"""The verb that writes a report."""

from pathlib import Path
from typing import Annotated

import typer

from coadapt._errors import InputError
from coadapt.verbs.common import mendable, out


def report(
    folder: Annotated[Path, typer.Argument(help="A run, a study, or a folder with runs in it.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file; by default report.html in the folder."),
    ] = None,
    diagnosis: Annotated[
        Path | None, typer.Option(help="Of the same tasks; by default those in the folder.")
    ] = None,
) -> None:
    """Write one page to read: what to ship and how sure, scores, costs, charts; and its JSON."""
    with mendable():
        if not folder.is_dir():
            raise InputError(
                f"{folder} is no folder; give a run's, a study's, or one with runs in it"
            )
        if output is not None and output.suffix != ".html":
            raise InputError(f"--output {output}: a report is written as .html")
        from coadapt.reporting import write_report

        path = write_report(folder, output, diagnosis)
    out.print(
        f"written: {path}, its data: {path.with_suffix('.json')}", markup=False, highlight=False
    )
