"""The verb that puts a new task on a finished run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coadapt._errors import InputError
from coadapt._folders import require_run
from coadapt.verbs.common import DataRoot, TasksOption, mendable, names, out, read_early

if TYPE_CHECKING:
    from coadapt.runs import Run


def adapt(
    run: Annotated[Path, typer.Argument(help="A finished run's folder; it stays as it is.")],
    task: Annotated[
        str, typer.Option(help="A suite with the new task: a file or a ready suite's name.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new run's folder.")],
    tasks: TasksOption = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Training rows: of each class in a classification; all of them."),
    ] = None,
    learn: Annotated[
        str | None,
        typer.Option(help="fast or all (of ta_lora), block or gates (of LoRAs)."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Start from the trained tasks: mean, shared or task:NAME.")
    ] = "mean",
    rank: Annotated[int | None, typer.Option(help="Of a new block; 4.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of training: learning_rate=1e-2."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of head, block, order and dropout.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUTPUT.")] = False,
    data_root: DataRoot = None,
) -> None:
    """Adapt a finished run to a new task: only the task's own part is learned, on few rows."""
    with mendable():
        require_run(run)
        read_early(task)
        from coadapt import adapting
        from coadapt.config import apply_overrides
        from coadapt.tasks import load_suite

        suite = load_suite(task, data_root=data_root, only=names(tasks))
        made = adapting.adapt(
            run,
            suite,
            output=output,
            shots=shots,
            learn=_learn(learn),
            by=by,
            rank=rank,
            training=apply_overrides({}, overrides or ()),
            seed=seed,
            resume=resume,
        )
    _print(made)


def _learn(text: str | None) -> Any:
    from coadapt.transfer import LEARNS

    if text is not None and text not in LEARNS:
        raise InputError(f"--learn: found '{text}'; known: {', '.join(LEARNS)}")
    return text


def _print(made: "Run") -> None:
    found, done = made.result["adapted"], made.result["train"]
    (name,), (rows,) = made.suite.names, done["rows_an_epoch"].values()
    head = f" and a head of {found['head_values']:,}" if found["head_values"] else ""
    out.print(
        f"{name}: {found['values']:,} values of its own ({found['bytes'] / 1024:.1f} KB){head}, "
        f"learned from {rows} rows in {done['steps']} steps, {done['seconds']:.0f} s",
        markup=False,
        highlight=False,
    )
    told = f"run written to {made.path}; score it with: coadapt evaluate {made.path}"
    out.print(told, markup=False, soft_wrap=True)
