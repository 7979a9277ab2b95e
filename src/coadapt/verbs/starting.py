"""Verbs to begin with: methods, demo."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from coadapt.verbs.common import JsonFlag, mendable, out


def methods(as_json: JsonFlag = False) -> None:
    """List the recipes: what each trains, what it depends on, and how it can be shipped."""
    from coadapt.recipe import list_methods

    rows = list_methods()
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table("recipe", "what is trained", "depends on", "ships as", "mergeable")
    table.columns[0].no_wrap = True
    for row in rows:
        mergeable = "yes" if row["mergeable"] else "no"
        table.add_row(row["name"], row["summary"], row["depends_on"], row["ships_as"], mergeable)
    table.caption = "the papers: coadapt methods --json"
    out.print(table)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute, far from a plateau.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Adapt a real encoder to seven real tasks in four ways, compare, and ship the adapters."""
    with mendable():
        from coadapt.demo import run_demo

        run_demo(output, quick=quick, seed=seed, console=out)
