"""Verbs to begin with: methods, demo."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from coadapt._errors import InputError
from coadapt._sheet import Sheet
from coadapt.verbs.common import JsonFlag, SetOption, mendable, out

if TYPE_CHECKING:
    from coadapt.accounting import Accounting


def methods(
    model: Annotated[
        str | None, typer.Option("--model", help="Count on this model: hub id, folder or asset.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="With --model: of each method; 8.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option("--budget", min=1, help="With --model: what a LoRA of this rank trains."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List the recipes, and how they can be shipped; with --model what each trains and costs."""
    from coadapt.recipes import list_methods

    with mendable():
        if model is not None:
            _account(model, rank, budget, overrides or (), as_json)
            return
        if rank is not None or budget is not None or overrides:
            raise InputError("--rank, --budget and --set say how to count on a model; add --model")
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


def _account(
    model: str, rank: int | None, budget: int | None, overrides: Sequence[str], as_json: bool
) -> None:
    from coadapt.accounting import account_for_methods, model_asked

    found = account_for_methods(model_asked(model, overrides), rank=rank, budget=budget)
    if as_json:
        from coadapt.config import to_plain

        sys.stdout.write(json.dumps(to_plain(found), indent=2) + "\n")
        return
    out.print(accounting_sheet(found).to_rich())


def accounting_sheet(found: "Accounting") -> Sheet:
    """Return the table for a terminal or page."""

    def cell(value: float | None, how: str) -> str:
        return "-" if value is None else format(value, how)

    rows = [
        (
            method.name,
            cell(method.rank, "d"),
            cell(method.trainable, ",d"),
            cell(method.percent, ".3f"),
            cell(method.relative_flops, ".3f"),
            "yes" if method.mergeable else "no",
        )
        for method in found.methods
    ]
    how = f"rank {found.rank}" if found.budget is None else f"no more than a LoRA of {found.budget}"
    targets = found.target_modules
    where = targets if isinstance(targets, str) else ", ".join(targets)
    return Sheet(
        title=f"{found.model}, {found.num_modules} modules ({where}), {how}",
        columns=("recipe", "rank", "trainable", "% of base", "FLOPs (x LoRA)", "merges"),
        rows=tuple(rows),
        notes=(
            "rank: of each head or expert, else the sum over blocks; % of the base's "
            f"{found.num_weights:,} weights",
            f"FLOPs: matrix products, forward and backward, base frozen, {found.batch} rows x "
            f"{found.tokens} tokens of {found.tasks} tasks",
            *(f"{m.name}: {m.reason}" for m in found.methods if m.reason is not None),
        ),
    )


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
