"""The verb that writes a report."""

from pathlib import Path
from typing import Annotated

import typer

from coadapt._errors import InputError
from coadapt._folders import CONFIG, STUDY
from coadapt.verbs.common import err, mendable, out


def report(
    folder: Annotated[Path, typer.Argument(help="A run, a study, or a folder with runs in it.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file; by default report.html in the folder."),
    ] = None,
    diagnosis: Annotated[
        list[Path] | None,
        typer.Option(help="Of the same tasks, repeatable; by default those in the folder."),
    ] = None,
    analyses: Annotated[
        bool,
        typer.Option(
            "--analyses",
            help="First load the model of each run and look into it: how alike its heads are, "
            "where the tasks' rows lie. Kept in RUN/analysis, shown from then on.",
        ),
    ] = False,
) -> None:
    """Write one page to read: what to ship and how sure, scores, costs, charts; and its JSON."""
    with mendable():
        if not folder.is_dir():
            raise InputError(
                f"{folder} is no folder; give a run's, a study's, or one with runs in it"
            )
        if output is not None and output.suffix != ".html":
            raise InputError(f"--output {output}: a report is written as .html")
        if analyses:
            _look_into(folder)
        from coadapt.reporting import write_report

        path = write_report(folder, output, diagnosis or ())
    _tell(f"written: {path}, its data: {path.with_suffix('.json')}")


def _look_into(folder: Path) -> None:
    """Analyse the run, or each of the runs in a folder."""
    if (folder / STUDY).is_file():
        raise InputError(
            f"--analyses looks into runs, and {folder} is a study; give one of its runs"
        )
    one = (folder / CONFIG).is_file()
    runs = [folder] if one else sorted(file.parent for file in folder.glob(f"*/{CONFIG}"))
    if not runs:
        return  # the report says what the folder lacks
    from coadapt.analysis import look_into
    from coadapt.loading import Loader

    loader = Loader()
    for run in runs:
        try:
            with err.status(f"looking into {run}"):  # on a terminal only
                looked = look_into(run, loader=loader)
        except InputError as error:
            if one:
                raise
            _tell(f"left out {run}: {error}")
            continue
        for file in looked.files:
            _tell(f"written: {file}")
        for name, reason in looked.left_out.items():
            _tell(f"left out {name.replace('_', ' ')}: {reason}")


def _tell(line: str) -> None:
    out.print(line, markup=False, highlight=False, soft_wrap=True)
