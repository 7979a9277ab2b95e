"""The command line: a verb, a file, few options. Thin: every verb is a call of the library."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from coadapt._errors import InputError, TrainingDiverged
from coadapt._version import __version__

if TYPE_CHECKING:
    from coadapt.evaluation import TaskScores
    from coadapt.runs import Run

app = typer.Typer(
    name="coadapt",
    help="Adapt one foundation model to many tasks at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file, dotted key."),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Read DIR/<task>/<split>.jsonl instead of the suite's sources.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


@contextmanager
def _mendable() -> Iterator[None]:
    """Turn an error that the user can mend into a message without a traceback, and exit with 2."""
    try:
        yield
    except (InputError, TrainingDiverged) as error:
        err.print("[bold red]error:[/] ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def _version(show: bool) -> None:
    if show:
        out.print(f"coadapt {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001  (its callback answers)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more of what happens.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


@app.command()
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


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="train.yaml: model, suite, recipe, training.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder, a new one.")],
    overrides: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Replace the file's seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUTPUT.")] = False,
    data_root: DataRoot = None,
) -> None:
    """Adapt one model to the tasks of a suite."""
    with _mendable():
        from coadapt.fitting import fit
        from coadapt.settings import read_train_file

        config, suite = read_train_file(file, overrides or (), seed=seed, data_root=data_root)
        run = fit(config, suite, output, resume=resume)
        if _is_main_process():
            _print_training(run)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    dtype: Annotated[str | None, typer.Option(help="float32 for full precision.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score every task of a run, each metric with its 95 % bootstrap interval."""
    with _mendable():
        from coadapt.runs import load_run

        scores = load_run(run, dtype=dtype).evaluate(split)
    if as_json:
        from dataclasses import asdict

        plain = {task: asdict(score) for task, score in scores.items()}
        sys.stdout.write(json.dumps({"split": split, "tasks": plain}, indent=2) + "\n")
    else:
        out.print(_score_table(scores, f"{split}, 95 % bootstrap intervals over the rows"))


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    task: Annotated[str, typer.Option(help="Which task's labels to predict.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; repeat for more.")] = None,
    file: Annotated[
        Path | None, typer.Option("--input", help="A text a line, or .jsonl; - for standard input.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write JSONL here.")] = None,
) -> None:
    """Predict for texts or a file of them; JSON, one object a line."""
    with _mendable():
        from coadapt.prediction import write_predictions
        from coadapt.runs import load_run

        opened = load_run(run)
        texts = _texts(opened, task, text, file)
        rows = opened.predict(texts, task)
        if output is not None:
            write_predictions(output, rows)
        else:
            for row in rows:
                sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="peft (LoRA folders) or merged (full models).")
    ] = "peft",
    check: Annotated[
        str | None, typer.Option(help="vllm: say what such a server refuses, and fit the ranks.")
    ] = None,
) -> None:
    """Write what stock PEFT, transformers or a server can load."""
    with _mendable():
        from coadapt.runs import load_run

        report = load_run(run).export(output, format=form, check=check)
    for line in report.lines():
        out.print(line, markup=False, highlight=False)


@app.command()
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
    data_root: DataRoot = None,
) -> None:
    """Compare recipes fairly: equal budgets, tuning and seeds; paired statistics; resumable."""
    with _mendable():
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
                workers=workers,
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


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Finished runs, or studies; two or more.")],
    baseline: Annotated[str | None, typer.Option(help="The arm to compare with.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare finished runs or studies, paired by seed and by test row."""
    with _mendable():
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


@app.command()
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
    with _mendable():
        from coadapt.demo import run_demo

        run_demo(output, quick=quick, seed=seed, console=out)


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def _texts(run: "Run", task: str, texts: list[str] | None, file: Path | None) -> list[Any]:
    from coadapt.prediction import read_inputs

    if (file is None) == (not texts):
        raise InputError("give either --text or --input")
    if file is None:
        return list(texts or ())
    if str(file) == "-":
        raw, jsonl = sys.stdin.buffer.read(), len(run.suite.task(task).columns) == 2
    elif file.is_file():
        raw, jsonl = file.read_bytes(), file.suffix == ".jsonl"
    else:
        raise InputError(f"{file} does not exist")
    return list(read_inputs(raw, str(file), run.suite.task(task), jsonl=jsonl))


def _score_table(scores: "dict[str, TaskScores]", title: str) -> Table:
    table = Table("task", "rows", "metric", "score", "95 % interval", title=title)
    for task, result in scores.items():
        for index, (name, score) in enumerate(result.metrics.items()):
            first = (task, str(result.num_rows)) if index == 0 else ("", "")
            table.add_row(
                *first, name, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}"
            )
    return table


def _print_training(run: "Run") -> None:
    done = run.result["train"]
    trainable = done["trainable"]
    out.print(
        f"[bold]{run.config.recipe_name or run.config.recipe.structure.kind}[/]: "
        f"{done['steps']} steps, {done['tokens']:,} tokens in {done['seconds']:.0f} s, "
        f"{trainable['adapters']:,} + {trainable['heads']:,} trainable values (adapters + heads), "
        f"{100 * done['padding']:.0f} % padding"
    )
    table = Table("task", "rows an epoch", "updates of its head", "its blocks (rank, updates)")
    all_blocks = run.config.plan.blocks if run.config.plan else {}
    for task, rows in done["rows_an_epoch"].items():
        blocks = [
            f"{name} ({block.rank}, {done['updates'][name]})"
            for name, block in all_blocks.items()
            if task in block.tasks
        ]
        table.add_row(
            task, str(rows), str(done["updates"][f"heads/{task}"]), ", ".join(blocks) or "-"
        )
    out.print(table)
    # Not wrapped, so that the command can be copied.
    told = f"run written to {run.path}; score it with: coadapt evaluate {run.path}"
    out.print(told, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line."""
    app()
