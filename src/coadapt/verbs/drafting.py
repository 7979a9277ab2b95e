"""The verb that writes first files for data that are there."""

from pathlib import Path
from typing import Annotated

import typer

from coadapt.verbs.common import mendable, out


def init(
    data: Annotated[
        list[Path], typer.Argument(help="Files, one a task: CSV, TSV, JSONL, Parquet.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the two files.")],
    model: Annotated[str | None, typer.Option(help="A hub id, a folder or asset:NAME.")] = None,
) -> None:
    """Look at data files, and write suite.yaml and train.yaml for them, with comments."""
    with mendable():
        from coadapt.drafting import guess_all, write_files

        guesses = guess_all(data)
        written = write_files(guesses, output, model)
    for found in guesses:
        out.print(f"{found.file.name}: {found.kind}, {found.rows:,} rows", highlight=False)
        for reason in found.reasons:
            out.print(f"  {reason}", markup=False, highlight=False)
    told = " and ".join(str(path) for path in written)
    out.print(f"written: {told}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"next: coadapt check {written[-1]}", markup=False, highlight=False, soft_wrap=True)
