"""The verb that looks at a suite's data before anything is trained."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coadapt.verbs.common import DataRoot, JsonFlag, TasksOption, mendable, names, out, read_early

if TYPE_CHECKING:
    from coadapt.checking import Checked, Estimate


def check(
    file: Annotated[str, typer.Argument(help="suite.yaml or train.yaml; or a ready suite's name.")],
    model: Annotated[
        str | None, typer.Option(help="Count the tokens of this model; of a train.yaml its own.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Do not train a few steps of a train.yaml to tell time."),
    ] = False,
    data_root: DataRoot = None,
    tasks: TasksOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say everything that is wrong with a suite's data, and what a run of it will take."""
    with mendable():
        read_early(file)
        from coadapt.backbone import ModelConfig
        from coadapt.checking import check as look
        from coadapt.checking import estimate
        from coadapt.config import load_yaml
        from coadapt.settings import beside, read_train_file
        from coadapt.tasks import declared_suite

        plain = load_yaml(file) if Path(file).suffix in (".yaml", ".yml") else {}
        trains = "suite" in plain
        suite = beside(Path(file), plain["suite"]) if trains else file
        declared = declared_suite(suite, data_root=data_root, only=names(tasks))
        wanted = model or (plain.get("model") if trains else None)
        config = None
        if wanted is not None:
            config = ModelConfig(name=wanted) if isinstance(wanted, str) else ModelConfig(**wanted)
        found, cost = look(declared, config), None
        if trains and found.can_be_trained and not quick:
            resolved, ready = read_train_file(file, data_root=data_root, only=names(tasks))
            cost = estimate(resolved, ready)
    _print(found, cost, as_json)
    if not found.can_be_trained:
        raise typer.Exit(1)


def _print(found: "Checked", cost: "Estimate | None", as_json: bool) -> None:
    if as_json:
        told = None
        if cost is not None:
            told = {"steps": cost.steps, "seconds": cost.seconds, "memory_mib": cost.memory_mib}
        sys.stdout.write(json.dumps(found.to_plain() | {"estimate": told}, indent=2) + "\n")
        return
    if found.tasks:
        out.print(found.sheet().to_rich())
    for line in found.lines():
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for task, text in found.shown.items():
        out.print(f"\n{task}, as the model sees it:\n  {text}", markup=False, highlight=False)
    if cost is not None:
        out.print(
            f"\nabout {_time(cost.seconds)} of training ({cost.steps:,} steps of "
            f"{cost.seconds_a_step:.2f} s, as a few took here) and {cost.memory_mib:,.0f} MiB",
            markup=False,
            highlight=False,
        )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
