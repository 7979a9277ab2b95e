"""Verbs about who should share: diagnose, plan."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coadapt._errors import InputError
from coadapt._folders import ANALYSIS, require_file, require_run
from coadapt._processes import is_main_process, num_processes
from coadapt.verbs.common import DataRoot, JsonFlag, err, mendable, out, read_early

if TYPE_CHECKING:
    from coadapt.diagnosis import Diagnosis
    from coadapt.planners import Proposal

_Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting, such as max_rows=1000, suite.max_rows=200 or model.pooling=mean; with "
        "--run split=test.",
    ),
]
_DiagnosisFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Write JSON here; with --run, RUN/analysis/diagnosis.json if not --json.",
    ),
]
_SearchSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="With search: a value of the train.yaml, or search.epochs, search.keep or "
        "search.seeds.",
    ),
]


def diagnose(
    what: Annotated[
        list[str], typer.Argument(help="A suite; or, with --run or --adapters, their folders.")
    ],
    model: Annotated[str | None, typer.Option(help="The base model; for a suite.")] = None,
    output: _DiagnosisFile = None,
    run: Annotated[
        bool, typer.Option("--run", help="WHAT is a finished run: its coupling and capacity.")
    ] = False,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="WHAT are PEFT LoRA folders: how alike they are.")
    ] = False,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="With --run: a run whose predictions stand for labels; two: a placebo."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="With --run: the run that sets the capacities' noise.")
    ] = None,
    overrides: _Settings = None,
    seed: Annotated[int | None, typer.Option(help="Of folds, probes and resamples.")] = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how tasks relate: before training, of a trained run, or of existing adapters."""
    with mendable():
        if run and adapters:
            raise InputError("give --run or --adapters, not both")
        _only(teacher=teacher, reference=reference, allowed=run, need="--run")
        _only(model=model, data_root=data_root, allowed=not (run or adapters), need="a suite")
        _only(set=overrides, seed=seed is not None, allowed=not adapters, need="a suite or --run")
        if run and output is None and not as_json:
            output = _beside(Path(_single(what, "--run")))
        else:
            _refuse_unwritable(output)  # now, not after minutes of work
        own: list[str] = list(overrides or ()) + ([f"seed={seed}"] if seed is not None else [])
        if adapters:
            from coadapt.diagnosis import diagnose_adapters

            found = diagnose_adapters(what)
        elif run:
            found = _diagnose_run(_single(what, "--run"), teacher or [], reference, own)
        else:
            found = _diagnose_suite(_single(what, "a suite"), model, own, data_root)
        if not is_main_process():
            return
        if output is not None:
            if run:
                output.parent.mkdir(exist_ok=True)
            found.save(output)
    if as_json:
        sys.stdout.write(json.dumps(found.to_plain(), indent=2) + "\n")
        return
    then = ""
    if run and output is not None and output.parent in (Path(what[0]), Path(what[0]) / ANALYSIS):
        then = f"; show it with: coadapt report {what[0]}"
    elif not (run or adapters):
        then = f"; plan by it with: coadapt plan {output} --budget 8 -o plan.yaml"
    _print_diagnosis(found, output, then)


def plan(
    diagnosis: Annotated[Path, typer.Argument(help="What 'coadapt diagnose' wrote.")],
    budget: Annotated[int, typer.Option(help="The summed rank of all blocks.")],
    sharing: Annotated[
        str, typer.Option(help="auto, shared, private, clustered, or search (with --train).")
    ] = "auto",
    clusters: Annotated[
        int | None, typer.Option(help="With clustered: how many; by stability if not given.")
    ] = None,
    distance: Annotated[
        str, typer.Option(help="1-s, or 1-s^2 by which opposed tasks are close too.")
    ] = "1-s",
    ranks: Annotated[str, typer.Option(help="Split the budget by_tasks or uniform.")] = "by_tasks",
    tasks: Annotated[
        str | None, typer.Option(help="Plan for these tasks only, separated by commas.")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            help="With search: the train.yaml that candidates are run by, on their plans."
        ),
    ] = None,
    overrides: _SearchSettings = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan here, as YAML.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say who should share an adapter and at what rank, and why."""
    with mendable():
        require_file(diagnosis)
        _refuse_unwritable(output)
        from coadapt.config import to_plain
        from coadapt.diagnosis import load_diagnosis
        from coadapt.planners import propose, write_plan

        found = load_diagnosis(diagnosis)
        chosen = [name.strip() for name in tasks.split(",")] if tasks is not None else None
        arguments: dict[str, Any] = {"distance": distance, "ranks": ranks, "tasks": chosen}
        chooses = sharing not in ("shared", "private")
        _only(distance=distance != "1-s", allowed=chooses, need="plans that choose clusters")
        _only(ranks=ranks != "by_tasks", allowed=chooses, need="plans that choose clusters")
        if sharing == "search":
            _only(clusters=clusters, allowed=False, need="--sharing clustered")
            told_to = err if as_json else out
            made = _search(found, budget, arguments, train, overrides, output, told_to)
        else:
            _only(train=train, set=overrides, allowed=False, need="--sharing search")
            arguments |= {"sharing": sharing, "num_clusters": clusters}
            made = propose(found, budget=budget, **arguments)
        if not is_main_process():
            return
        if output is not None:
            write_plan(made, output)
    if as_json:
        plain = {"sharing": made.sharing, "recipe": made.recipe, "reasons": list(made.reasons)}
        sys.stdout.write(json.dumps({**plain, "plan": to_plain(made.plan)}, indent=2) + "\n")
        return
    _print_plan(made, output)


def _print_plan(made: "Proposal", output: Path | None) -> None:
    out.print(f"[bold]{made.sharing}[/] (train with recipe: {made.recipe})", highlight=False)
    for name, block in made.plan.blocks.items():
        told = f"  rank {block.rank}  {name}: {', '.join(block.tasks)}"
        out.print(told, markup=False, highlight=False)
    for reason in made.reasons:
        out.print(f"- {reason}", markup=False, highlight=False)
    if output is not None:
        told = f"written to {output}; train.yaml takes it by 'plan: {output.name}'"
        out.print(told, markup=False, highlight=False, soft_wrap=True)


def _diagnose_run(
    run: str, teachers: list[Path], reference: Path | None, overrides: list[str]
) -> Any:
    require_run(Path(run))
    from coadapt.config import apply_overrides, parse, to_plain
    from coadapt.diagnosis import RunDiagnosisConfig, diagnose_run

    config = parse(RunDiagnosisConfig, apply_overrides({}, overrides), "diagnose --run")
    # On a terminal only, and once.
    status = err.status("judging the run on the rows of all tasks")
    with status if is_main_process() else nullcontext():
        return diagnose_run(run, teachers=teachers, reference=reference, **to_plain(config))


def _diagnose_suite(
    suite: str, model: str | None, overrides: list[str], data_root: Path | None
) -> Any:
    read_early(suite)
    from coadapt.config import apply_overrides, parse
    from coadapt.diagnosis import DiagnosisConfig, examine
    from coadapt.settings import split_overrides
    from coadapt.tasks import load_suite

    if model is None:
        raise InputError("name the base model, such as --model asset:minilm")
    own, suite_overrides = split_overrides(overrides)
    config = parse(DiagnosisConfig, apply_overrides({"model": {"name": model}}, own), "diagnose")
    loaded = load_suite(suite, overrides=suite_overrides, data_root=data_root)
    shows = sys.stderr.isatty() and is_main_process()
    return examine(config, loaded, console=err if shows else None)


def _search(
    found: Any,
    budget: int,
    arguments: dict[str, Any],
    train: Path | None,
    overrides: list[str] | None,
    output: Path | None,
    console: Any,
) -> Any:
    from coadapt.config import apply_overrides, parse
    from coadapt.planners import SearchConfig, propose, propose_by_search
    from coadapt.settings import read_train_file

    if train is None or output is None:
        raise InputError("a search trains: give --train train.yaml, and --output for the plan")
    if (number := num_processes()) > 1:  # its runs are scored, and that writes
        raise InputError(f"a search runs in one process, not in {number}; start it by itself")
    own = [text for text in overrides or () if text.startswith("search.")]
    rest = [text for text in overrides or () if not text.startswith("search.")]
    settings = apply_overrides({}, [text.removeprefix("search.") for text in own])
    # Any plan does: a file for the recipe 'clustered' may name the one that is being looked for.
    plan = propose(found, budget=budget, sharing="shared", tasks=arguments["tasks"]).plan
    base, suite = read_train_file(train, rest, plan=plan)
    return propose_by_search(
        found,
        base,
        suite,
        output.with_suffix(".search"),
        budget=budget,
        config=parse(SearchConfig, settings, "--set search"),
        console=console,
        **arguments,
    )


def _beside(run: Path) -> Path:
    """Return where a run's diagnosis lies if nothing else is said: its report looks there."""
    require_run(run)
    if not os.access(run, os.W_OK):
        raise InputError(f"{run} cannot be written in; give --output FILE")
    return run / ANALYSIS / "diagnosis.json"


def _print_diagnosis(found: "Diagnosis", output: Path | None, then: str) -> None:
    from coadapt.diagnosis.sheets import sheets

    for sheet in sheets(found):
        out.print(sheet.to_rich())
    if output is not None:
        # Not wrapped, so that the command can be copied.
        told = f"written to {output}{then}"
        out.print(told, markup=False, highlight=False, soft_wrap=True)


def _refuse_unwritable(output: Path | None) -> None:
    if output is None:
        return
    if not output.parent.is_dir():
        raise InputError(f"{output.parent} is no folder; make it, or choose another --output")
    if output.is_dir():
        raise InputError(f"{output} is a folder; --output is a file to write")


def _single(what: list[str], need: str) -> str:
    if len(what) != 1:
        raise InputError(f"{need} takes one argument, not {len(what)}: {', '.join(what)}")
    return what[0]


def _only(*, allowed: bool, need: str, **given: Any) -> None:
    """Refuse options that would have no effect."""
    for name, value in given.items():
        if value and not allowed:
            raise InputError(f"--{name.replace('_', '-')} is for {need}; drop it")
