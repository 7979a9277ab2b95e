"""Verbs about one run: train, evaluate, predict, export, compose."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from coadapt._errors import InputError
from coadapt._folders import require_run
from coadapt._processes import is_main_process
from coadapt.verbs.common import (
    DataRoot,
    JsonFlag,
    SetOption,
    TasksOption,
    mendable,
    names,
    out,
    read_early,
)
from coadapt.verbs.harness import harness_table, harness_tasks, serving_blocks

if TYPE_CHECKING:
    from coadapt.evaluation import TaskScores
    from coadapt.harness import HarnessScores
    from coadapt.runs import Run


def train(
    file: Annotated[Path, typer.Argument(help="train.yaml: model, suite, recipe, training.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder, a new one.")],
    overrides: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Replace the file's seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUTPUT.")] = False,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Keep, or take, what inits such as hasi gather before training."),
    ] = None,
    data_root: DataRoot = None,
    tasks: TasksOption = None,
) -> None:
    """Adapt one model to the tasks of a suite."""
    with mendable():
        read_early(file)
        from coadapt.fitting import fit
        from coadapt.settings import read_train_file

        config, suite = read_train_file(
            file, overrides or (), seed=seed, data_root=data_root, only=names(tasks)
        )
        run = fit(config, suite, output, resume=resume, statistics=statistics)
        if is_main_process():
            _print_training(run)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    suite: Annotated[
        str | None, typer.Option(help="Another suite: tasks that the run was not trained on.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Which blocks serve them: shared, mean, nearest or task:NAME."),
    ] = None,
    data_root: DataRoot = None,
    tasks: TasksOption = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            metavar="[TASK=]NAME,...",
            help="Also score tasks of lm-evaluation-harness: names or YAML files, each by the "
            "blocks of TASK, or of the task with its name, or as --by says.",
        ),
    ] = None,
    lm_eval_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where your own lm-eval task files are.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 for full precision.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score every task of a run, or of another suite; each metric with its 95 % interval."""
    served: dict[str, str] = {}
    reported: dict[str, HarnessScores] = {}
    with mendable():
        require_run(run)
        _refuse_idle_options(suite, by, data_root, tasks, lm_eval, lm_eval_path)
        from coadapt.runs import load_run
        from coadapt.tasks import load_suite

        opened = load_run(run, dtype=dtype)
        other = load_suite(suite, data_root=data_root, only=names(tasks)) if suite else None
        harness = harness_tasks(lm_eval, lm_eval_path, other or opened.suite)
        if other is None:
            services = serving_blocks(opened, harness, by)
            scores = opened.evaluate(split)
        else:
            found = opened.evaluate_unseen(other, rule=by, split=split)
            scores, served = found.tasks, found.served
            services = serving_blocks(opened, harness, by, found.services)
        if harness:
            from coadapt.harness import score_run

            reported = score_run(opened, harness, services)
    _tell_scores(split, scores, served, reported, as_json=as_json)


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
    with mendable():
        require_run(run)
        from coadapt.prediction import write_predictions
        from coadapt.runs import load_run

        opened = load_run(run)
        texts = _texts(opened, task, text, file)
        rows = opened.predict_stream(texts, task)
        if output is not None:
            write_predictions(output, rows)
        else:
            for row in rows:
                sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
                sys.stdout.flush()


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="peft (LoRA folders) or merged (full models).")
    ] = "peft",
    check: Annotated[
        str | None, typer.Option(help="vllm: say what such a server refuses, and fit the ranks.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload it to the hub; new repositories: private."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: let everybody see a new repository.")
    ] = False,
) -> None:
    """Write what stock PEFT, transformers or a server can load."""
    with mendable():
        require_run(run)
        if public and push is None:
            raise InputError("--public goes with --push; drop it")
        from coadapt.exporting import check_repo, push_export
        from coadapt.runs import load_run

        if push is not None:
            check_repo(push)
        report = load_run(run).export(output, format=form, check=check)
        for line in report.lines():
            out.print(line, markup=False, highlight=False)
        if push is not None:
            out.print(f"pushed to {push_export(output, push, public=public)}", markup=False)


def compose(
    run: Annotated[Path, typer.Argument(help="A finished run of recipe private.")],
    task: Annotated[str, typer.Option(help="Of the run; with --suite, a new one of that suite.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new run's folder.")],
    suite: Annotated[
        str | None, typer.Option(help="A suite that holds a task which the run was not trained on.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of the search: compose=deltas, shots=20, pool=all."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the search; the run's.")] = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve a task by a weighted sum of the run's adapters, found on a few examples (LoRAHub)."""
    with mendable():
        require_run(run)
        from coadapt.config import apply_overrides, parse
        from coadapt.lora_hub import LoraHub
        from coadapt.merging import compose_run
        from coadapt.runs import load_run
        from coadapt.tasks import load_suite

        hub = parse(LoraHub, apply_overrides({"kind": "lora_hub"}, overrides or ()), "--set")
        wanted = load_suite(suite, data_root=data_root).task(task) if suite is not None else task
        made = compose_run(load_run(run), wanted, output, hub=hub, seed=seed)
    found = made.result["composition"]
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    table = Table("adapter of", "weight", title=f"{task}: composed by {found['method']}")
    for name, weight in found["weights"].items():
        table.add_row(name, f"{weight:+.3f}")
    out.print(table)
    lost = f", cut to its rank with an error of {found['error']:.3f}" if found["error"] else ""
    told = f"loss on {hub.shots} rows: {found['base_loss']:.3f} at zero weights"
    out.print(f"{told}, {found['loss']:.3f} composed{lost}", markup=False, highlight=False)
    if not any(found["weights"].values()):
        out.print("no weights were better than none: the base model serves the task")
    told = f"run written to {output}; score it with: coadapt evaluate {output}"
    out.print(told, markup=False, soft_wrap=True)


def _texts(run: "Run", task: str, texts: list[str] | None, file: Path | None) -> list[Any]:
    from coadapt.prediction import read_inputs

    if (file is None) == (not texts):
        raise InputError("give either --text or --input")
    if file is None:
        return list(texts or ())
    if str(file) == "-":
        raw, jsonl = sys.stdin.buffer.read(), len(run.suite.task(task).input_columns) > 1
    elif file.is_file():
        raw, jsonl = file.read_bytes(), file.suffix == ".jsonl"
    else:
        raise InputError(f"{file} does not exist")
    return list(read_inputs(raw, str(file), run.suite.task(task), jsonl=jsonl))


def _blocks_of(run: "Run", task: str) -> list[str]:
    """Tell the plan's blocks of a task; heads and experts are those of its one block."""
    updates = run.result["train"]["updates"]
    told = (
        [] if run.config.plan or task not in updates else [f"prompts of its own ({updates[task]})"]
    )
    for name, block in (run.config.plan.blocks if run.config.plan else {}).items():
        if task not in block.tasks:
            continue
        made = [key for key in updates if not key.startswith("heads/")]
        if name in updates:
            told.append(f"{name} ({block.rank}, {updates[name]})")
        else:
            told.append(f"{made[0]} to {made[-1]} ({block.rank} each, {updates[made[0]]})")
    return told


def _tell_scores(
    split: str,
    scores: "dict[str, TaskScores]",
    served: dict[str, str],
    reported: "dict[str, HarnessScores]",
    *,
    as_json: bool,
) -> None:
    if as_json:
        from dataclasses import asdict

        plain = {task: asdict(score) for task, score in scores.items()}
        told = {"split": split, "tasks": plain} | ({"served": served} if served else {})
        if reported:
            told["lm_eval"] = {name: asdict(found) for name, found in reported.items()}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        out.print(_score_table(scores, f"{split}, 95 % bootstrap intervals over the rows"))
        for task, by_what in served.items():
            out.print(f"{task}: served by {by_what}", markup=False)
        if reported:
            out.print(harness_table(reported, scores))


def _score_table(scores: "dict[str, TaskScores]", title: str) -> Table:
    table = Table("task", "rows", "metric", "score", "95 % interval", title=title)
    for task, result in scores.items():
        for index, (name, score) in enumerate(result.metrics.items()):
            first = (task, str(result.num_rows)) if index == 0 else ("", "")
            table.add_row(
                *first, name, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}"
            )
    return table


def _refuse_idle_options(
    suite: str | None,
    by: str | None,
    data_root: Path | None,
    tasks: str | None,
    lm_eval: str | None,
    lm_eval_path: Path | None,
) -> None:
    """Refuse options that would have no effect."""
    if suite is None and (data_root or tasks or (by and lm_eval is None)):
        raise InputError("--by, --data-root and --tasks are for another suite: add --suite")
    if lm_eval is None and lm_eval_path is not None:
        raise InputError("--lm-eval-path has no effect without --lm-eval NAME,...")


def _print_training(run: "Run") -> None:
    done = run.result["train"]
    trainable = done["trainable"]
    out.print(
        f"[bold]{run.config.recipe_name or run.config.recipe.structure.kind}[/]: "
        f"{done['steps']} steps, {done['tokens']:,} tokens in {done['seconds']:.0f} s, "
        f"{trainable['adapters']:,} + {trainable['heads']:,} trainable values (adapters + heads), "
        f"{100 * done['padding']:.0f} % padding"
    )
    headed = any(key.startswith("heads/") for key in done["updates"])
    columns = ["task", "rows an epoch", *(["updates of its head"] if headed else [])]
    table = Table(*columns, "its blocks (rank, updates)")
    for task, rows in done["rows_an_epoch"].items():
        blocks = _blocks_of(run, task)
        head = [str(done["updates"][f"heads/{task}"])] if headed else []
        table.add_row(task, str(rows), *head, ", ".join(blocks) or "-")
    out.print(table)
    if cut := {task: num for task, num in done["cut"].items() if num}:
        told = ", ".join(f"{num} of {task}" for task, num in cut.items())
        out.print(f"rows cut to fit model.max_length: {told}", markup=False)
    # Not wrapped, so that the command can be copied.
    told = f"run written to {run.path}; score it with: coadapt evaluate {run.path}"
    out.print(told, markup=False, soft_wrap=True)
