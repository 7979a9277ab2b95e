"""What the verbs of the command line have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coadapt._errors import InputError, TrainingDiverged

out = Console()
err = Console(stderr=True)

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file, dotted key."),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Read DIR/<task>/<split>.jsonl instead of the suite's sources.")
]
TasksOption = Annotated[
    str | None, typer.Option("--tasks", help="Take only these tasks of the suite: NAME,NAME,...")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def names(text: str | None) -> list[str] | None:
    """Return the names of a list with commas."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def read_early(file: Path | str) -> None:
    """Refuse YAML that cannot be read, before libraries are imported that take seconds.

    A name without an ending is that of a ready suite.
    """
    if Path(file).suffix in (".yaml", ".yml"):
        from coadapt.config import load_yaml

        load_yaml(file)


@contextmanager
def mendable() -> Iterator[None]:
    """Turn an error that the user can mend into a message without a traceback, and exit with 2."""
    try:
        yield
    except (InputError, TrainingDiverged) as error:
        err.print("[bold red]error:[/] ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
