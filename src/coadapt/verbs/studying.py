"""Verbs about many runs: study, compare."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from coadapt._errors import InputError
from coadapt._folders import kind_of
from coadapt.verbs.common import (
    DataRoot,
    JsonFlag,
    SetOption,
    TasksOption,
    err,
    mendable,
    names,
    out,
    read_early,
)


def study(
    file: Annotated[Path, typer.Argument(help="study.yaml: recipes, budgets, seeds, data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The study's folder.")],
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Run what OUTPUT still lacks.")] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Resume even if the file has changed since.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Cells at a time; by default what the machine carries."),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Who runs the cells: local (this machine) or ray (a cluster).")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Ray cluster; else RAY_ADDRESS or one of this machine."),
    ] = None,
    data_root: DataRoot = None,
    tasks: TasksOption = None,
) -> None:
    """Compare recipes fairly: equal budgets, tuning and seeds; paired statistics; resumable."""
    with mendable():
        read_early(file)
        from coadapt.study import run_study
        from coadapt.study.tables import cells_sheets, main_sheets

        try:
            summary = run_study(
                file,
                output,
                resume=resume,
                changed=changed,
                overrides=overrides or (),
                data_root=data_root,
                tasks=names(tasks),
                workers=workers,
                executor=executor,  # pyright: ignore[reportArgumentType]  # checked there
                address=address,
                console=out,
            )
        except KeyboardInterrupt as error:
            err.print(f"stopped; go on with --resume; finished cells are in {output}", markup=False)
            raise typer.Exit(130) from error
        for sheet in [*main_sheets(summary), *cells_sheets(summary)]:
            out.print(sheet.to_rich())
        told = f"cells, summary.json and tables.md (more tables) are in {output}"
        out.print(told, markup=False, soft_wrap=True)
        if summary["missing"]:
            raise typer.Exit(1)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Finished runs, or studies; two or more.")],
    baseline: Annotated[str | None, typer.Option(help="The arm to compare with.")] = None,
    diagnosis: Annotated[
        Path | None,
        typer.Option(help="For one study with random partitions: do tasks alike gain by sharing?"),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="With --diagnosis: draw benefit by similarity as SVG.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare finished runs or studies, paired by seed and by test row."""
    with mendable():
        if diagnosis is not None:
            _relate(folders, baseline, diagnosis, figure, as_json)
            return
        if figure is not None:
            raise InputError("--figure goes with --diagnosis; drop it")
        for folder in folders:
            kind_of(folder)
        from coadapt.study import compare as compare_folders
        from coadapt.study.tables import compared_sheets

        found = compare_folders(folders, baseline=baseline)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for sheet in compared_sheets(found):
        out.print(sheet.to_rich())
    for note in found["notes"]:
        out.print(note, markup=False, highlight=False, soft_wrap=True)


def _relate(
    folders: list[Path], baseline: str | None, diagnosis: Path, figure: Path | None, as_json: bool
) -> None:
    from coadapt.diagnosis import load_diagnosis
    from coadapt.study.benefit import benefit_sheet, draw_benefit, relate

    if len(folders) != 1 or baseline is not None:
        raise InputError("--diagnosis takes one study and no --baseline")
    related = relate(folders[0], load_diagnosis(diagnosis))
    if figure is not None:
        draw_benefit(related, figure)
    if as_json:
        sys.stdout.write(json.dumps(related, indent=2) + "\n")
        return
    for one in related:
        out.print(benefit_sheet(one).to_rich())
    if figure is not None:
        out.print(f"drawn to {figure}", markup=False)
