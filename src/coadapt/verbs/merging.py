"""The verb about adapters that are there already: merge."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coadapt._errors import InputError
from coadapt.verbs.common import JsonFlag, mendable, out

if TYPE_CHECKING:
    from coadapt.merging import Merged

_ADAPTER, _RUN = "adapter_config.json", "config.yaml"


def merge(
    what: Annotated[
        list[Path], typer.Argument(help="Finished runs, or PEFT LoRA folders, of one base model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write, a new one.")],
    method: Annotated[
        str,
        typer.Option(
            help="average, task_arithmetic, dare, dare_task_arithmetic, ties or dare_ties."
        ),
    ] = "average",
    weight: Annotated[float, typer.Option(help="lambda: a factor on the result.")] = 1.0,
    density: Annotated[
        float | None,
        typer.Option(help="The share of entries kept: TIES 0.2, DARE 0.9 if not given."),
    ] = None,
    scope: Annotated[
        str, typer.Option(help="TIES trims over all modules (global) or each one (tensor).")
    ] = "global",
    rank: Annotated[
        int | None, typer.Option(help="Cut every module to this rank; whole if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of DARE's masks.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Merge runs or adapters into one update, and show what that does to each task's score."""
    with mendable():
        adapters = _are_adapters(what)
        from coadapt.config import parse
        from coadapt.merge_methods import Merge

        options = {"weight": weight, "density": density, "scope": scope, "rank": rank}
        chosen = parse(Merge, {"kind": "merge", "method": method, **options}, "merge")
        told: dict[str, Any] = {"output": str(output)}
        if adapters:
            from coadapt.merging import merge_adapters

            merged = merge_adapters(what, output, chosen, seed)
            sheet = None
            told |= merged.to_plain()
        else:
            from coadapt.merging import merge_runs

            made = merge_runs(what, output, chosen, seed)
            merged, sheet = made.merged, made.sheet()
            told |= made.to_plain()
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    if sheet is not None:
        out.print(sheet.to_rich())
    for line in _lines(merged, notes=sheet is None):
        out.print(line, markup=False, highlight=False)
    # Not wrapped, so that the path can be copied.
    kind = "adapter" if adapters else "run"
    out.print(f"{kind} written to {output}", markup=False, highlight=False, soft_wrap=True)


def _are_adapters(folders: list[Path]) -> bool:
    """Tell PEFT folders from runs, which cannot be mixed."""
    kinds = set()
    for folder in folders:
        if (folder / _ADAPTER).is_file():
            kinds.add(_ADAPTER)
        elif (folder / _RUN).is_file():
            kinds.add(_RUN)
        else:
            inside = folder / "adapters"  # where an export has them
            hint = f"; give the folders in {inside}" if inside.is_dir() else ""
            raise InputError(
                f"{folder} is neither a run (no {_RUN}) nor a PEFT adapter (no {_ADAPTER}){hint}"
            )
    if len(kinds) > 1:
        raise InputError(
            "give runs or PEFT adapters, not both; export the runs (coadapt export) to merge their "
            "adapters with others"
        )
    return kinds == {_ADAPTER}


def _lines(merged: "Merged", *, notes: bool) -> list[str]:
    ranks = sorted(merged.ranks.values())
    told = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
    largest = ", ".join(f"{name} {value:.2g}" for name, value in merged.largest.items())
    return [
        f"{told}, relative error of the cut {merged.error:.3g}",
        f"max |delta|: {largest}",
        *(merged.notes if notes else ()),
    ]
