"""The report of one run, or of runs beside each other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coadapt._files import read_json
from coadapt._folders import ANALYSIS
from coadapt._sheet import Sheet, missing, score
from coadapt.config import dump_yaml, load_yaml
from coadapt.reporting import parts
from coadapt.reporting.by_layer import lines
from coadapt.reporting.costs import inference, training
from coadapt.reporting.curves import curves, read_log
from coadapt.reporting.of_analyses import looking_inside
from coadapt.reporting.of_diagnosis import find, section_of
from coadapt.reporting.parts import Part

_SHIPS = {
    "lora": "`coadapt export {0}` writes stock PEFT LoRA folders, `--format merged` whole models.",
    "dora": "`coadapt export {0}` writes a stock PEFT DoRA folder, `--format merged` whole models.",
    "merged": "`coadapt export {0} --format merged` writes whole models: every weight was trained.",
    "runtime": "It has no equivalent LoRA and is served by coadapt itself (`coadapt predict {0}`).",
    "none": "`coadapt export {0}` writes its heads: the model is frozen.",
}


def of_runs(folder: Path, runs: Sequence[Path], given: Sequence[Path]) -> dict[str, Any]:
    """Return the report's data of a run's folder, or of a folder with runs in it."""
    told = {run.name: _read(run) for run in runs}
    one = next(iter(told.values())) if len(runs) == 1 else None
    statuses = {run["status"] for run in told.values()}
    return {
        "title": f"Run '{folder.name}'" if one else f"Runs in '{folder.name}'",
        "kind": "run" if one else "runs",
        "status": statuses.pop() if len(statuses) == 1 else "mixed",
        "answer": _answer_one(runs[0], one) if one else _answer(told),
        "sections": [
            parts.section("Scores", _scores(told)),
            *_diagnosed(folder, runs, given),
            parts.section("Who shares", *_plans(told)),
            parts.section("Training", *curves(told)),
            parts.section("What it took", training(told), _inference(told)),
            parts.section("Looking inside", *(p for run in runs for p in looking_inside(run))),
            parts.section("Serving", *_serving(folder)),
            parts.section("What went wrong", *_errors(told)),
            parts.section("Configuration", *(_config(name, run) for name, run in told.items())),
            parts.section("Made with", *_environments(told)),
        ],
    }


def _diagnosed(
    folder: Path, runs: Sequence[Path], given: Sequence[Path]
) -> list[dict[str, Any] | None]:
    """Return sections of the diagnoses that were given or lie in the folder, then of each run's."""
    one = [folder] == list(runs)
    found = [section_of(diagnosis) for diagnosis in find([folder], given)]
    for run in runs:
        own = find([run / ANALYSIS] if one else [run, run / ANALYSIS], ())
        found += [section_of(diagnosis, "" if one else run.name) for diagnosis in own]
    return found


def _inference(told: Mapping[str, Mapping[str, Any]]) -> Part | None:
    return inference((name, run["inference"]) for name, run in told.items())


def _read(run: Path) -> dict[str, Any]:
    """Return what a run's folder tells; a run that was stopped has written no result."""
    result = read_json(run / "result.json") if (run / "result.json").is_file() else {}
    plan, adapter = run / "plan.yaml", run / "adapter/adapter.json"
    metrics = result.get("metrics") or {}
    return {
        "config": load_yaml(run / "config.yaml"),
        "status": result.get("run", {}).get("status", "unfinished"),
        "error": result.get("run", {}).get("error"),
        "train": result.get("train"),
        "inference": result.get("inference") or {},
        "metrics": metrics.get("test") or {},
        "environment": result.get("environment"),
        "log": read_log(run / "metrics.jsonl"),
        "plan": load_yaml(plan) if plan.is_file() else None,
        "ships_as": read_json(adapter).get("ships_as") if adapter.is_file() else None,
    }


def _value(scores: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the task's score, which is the first of its metrics."""
    return next(iter(scores["metrics"].values()))


def _mean(run: Mapping[str, Any]) -> float | None:
    values = [_value(scores)["value"] for scores in run["metrics"].values()]
    return sum(values) / len(values) if values else None


def _answer_one(path: Path, run: Mapping[str, Any]) -> list[str]:
    recipe = run["config"].get("recipe_name") or "a recipe of its own"
    if run["status"] != "finished":
        said = f"This run of **{recipe}** is {run['status']}"
        again = "`coadapt train FILE --output DIR --resume` goes on with it."
        return [f"{said}: {run['error']}" if run["error"] else f"{said}.", again]
    mean = _mean(run)
    if mean is None:
        return [
            f"This run of **{recipe}** is finished and not scored yet.",
            f"`coadapt evaluate {path.name}` scores it.",
        ]
    scored = {task: _value(scores) for task, scores in run["metrics"].items()}
    lines = [
        f"**{recipe}** scores **{score(mean)}** on average over {len(scored)} tasks' test rows."
    ]
    if len(scored) > 1:
        ranked = sorted(scored, key=lambda task: scored[task]["value"])
        low, high = ranked[0], ranked[-1]
        lines.append(
            f"Lowest is {low} ({_told(scored[low])}), highest {high} ({_told(scored[high])})."
        )
    lines.append("One seed, intervals over test rows: another seed may score otherwise.")
    ships = _SHIPS.get(run["ships_as"] or "")  # None of a run that an older version has trained
    return [*lines, ships.format(path.name)] if ships else lines


def _answer(told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    means = {name: mean for name, run in told.items() if (mean := _mean(run)) is not None}
    rest = [
        f"{name} is {run['status']}." for name, run in told.items() if run["status"] != "finished"
    ]
    if not means:
        return ["No run here has been scored.", *rest]
    ranked = sorted(means, key=lambda name: -means[name])
    best = ranked[0]
    lines = [f"**{best}** has the highest mean test score, **{score(means[best])}**."]
    if len(ranked) > 1:
        lines[0] += f" Next: {', '.join(f'{n} {score(means[n])}' for n in ranked[1:])}."
        lines.append(
            "One seed each: this does not show which is better. `coadapt compare` pairs runs by "
            "test row, `coadapt study` tunes alike and repeats over seeds."
        )
    return [*lines, *rest]


def _told(value: Mapping[str, float]) -> str:
    low, high = value.get("low"), value.get("high")
    if low is None or high is None or missing(low):
        return score(value["value"])
    return f"{score(value['value'])}, {score(low)} to {score(high)}"


def _scores(told: Mapping[str, Mapping[str, Any]]) -> Part | None:
    """Return the table of tasks by runs; of one run, every metric."""
    scored = {name: run for name, run in told.items() if run["metrics"]}
    tasks = list(dict.fromkeys(task for run in scored.values() for task in run["metrics"]))
    if not tasks:
        return None
    title = "test scores, 95 % bootstrap intervals over the rows, one seed"
    if len(told) == 1:
        metrics = next(iter(scored.values()))["metrics"]
        rows = [
            (task, str(metrics[task]["num_rows"]), metric, _told(value))
            for task in tasks
            for metric, value in metrics[task]["metrics"].items()
        ]
        sheet = Sheet(title=title, columns=("task", "rows", "metric", "score"), rows=tuple(rows))
        return parts.table(sheet)
    rows = [(task, *(_cell(run["metrics"].get(task)) for run in scored.values())) for task in tasks]
    rows.append(("mean", *(score(_mean(run)) for run in scored.values())))
    return parts.table(Sheet(title=title, columns=("task", *scored), rows=tuple(rows)))


def _cell(scores: Mapping[str, Any] | None) -> str:
    return _told(_value(scores)) if scores else "-"


def _plans(told: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    found: list[Part] = []
    for name, run in told.items():
        plan = run["plan"]
        if not plan or not plan.get("blocks"):
            continue
        updates = (run["train"] or {}).get("updates", {})
        rows = tuple(
            (
                block,
                str(made["rank"]),
                f"{updates[block]:,}" if block in updates else "-",
                ", ".join(made["tasks"]),
            )
            for block, made in plan["blocks"].items()
        )
        columns = ("block", "rank", "updates it got", "tasks that use it")
        found.append(parts.table(Sheet(title=f"{name}: blocks", columns=columns, rows=rows)))
        if plan.get("ranks"):
            found.append(_ranks(name, plan["ranks"]))
    return found


def _ranks(name: str, ranks: Mapping[str, Mapping[str, int]]) -> Part:
    """Return ranks by layer, of a plan in which they differ: a mean over a layer's maps."""
    blocks = list(dict.fromkeys(block for made in ranks.values() for block in made))
    series = lines(
        {
            block: [(module, float(made.get(block, 0))) for module, made in ranks.items()]
            for block in blocks
        }
    )
    title = f"{name}: rank by layer, mean over the layer's maps"
    told = "; ".join(f"{s['name']} {min(s['y']):g} to {max(s['y']):g}" for s in series)
    panels = [{"title": "", "series": series}]
    return parts.chart("lines", title, f"{title}: {told}.", panels=panels, x_title="layer")


def _serving(folder: Path) -> list[Part]:
    """Return the routes of exports that lie in the folder, and how to load them."""
    found: list[Part] = []
    for file in sorted(folder.glob("*/routes.json")):
        routes = read_json(file)
        rows = tuple(
            (
                task,
                str(route.get("adapter") or route.get("model") or "-"),
                str(route["head"] or "-"),
            )
            for task, route in routes["tasks"].items()
        )
        title = f"export in {file.parent.name}, of base model {routes['base']}"
        found.append(
            parts.table(Sheet(title=title, columns=("task", "adapter or model", "head"), rows=rows))
        )
        found.append(parts.text(f"`{file.parent.name}/README.md` has the code that loads it."))
    return found


def _errors(told: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    lines = [
        f"{name}: {run['status']}: {run['error']}" for name, run in told.items() if run["error"]
    ]
    return [parts.points(lines)] if lines else []


def _config(name: str, run: Mapping[str, Any]) -> Part:
    return parts.fold(f"{name}/config.yaml", dump_yaml(run["config"]))


def _environments(told: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    kinds = {
        json.dumps(run["environment"], indent=2) for run in told.values() if run["environment"]
    }
    return [parts.fold("packages and machine", kind) for kind in sorted(kinds)]
