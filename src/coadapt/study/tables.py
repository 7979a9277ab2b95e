"""A study's statistics as tables, for a terminal and for Markdown; nothing is computed here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coadapt._sheet import Sheet, missing, plus_minus, score, signed
from coadapt.study.overview import overview_sheets
from coadapt.study.sheet import MARK, difference, num_seeds, short_names

if TYPE_CHECKING:  # a report is made of these tables and does not wait for torch
    from coadapt.study.grid import Grid, Group


def main_sheets(summary: dict[str, Any]) -> list[Sheet]:
    """Return what answers a study's question: scores, differences and plans against chance."""
    sheets = overview_sheets(summary)
    for table in summary["tables"]:
        sheets.append(_scores(table))
        if table["partitions"]:
            sheets.append(_partitions(table))
    return [*sheets, *(_series(series) for series in summary["over_tasks"])]


def compared_sheets(found: dict[str, Any]) -> list[Sheet]:
    """Return what `coadapt compare` found: differences of the mean, then by task."""
    return [sheet for table in found["tables"] for sheet in (_scores(table), _by_task(table))]


def detail_sheets(summary: dict[str, Any]) -> list[Sheet]:
    """Return what it took, and scores by task."""
    found = []
    for table in summary["tables"]:
        found += [_costs(table, summary), _by_task(table)]
    return found


def plan_sheet(grid: "Grid") -> Sheet:
    """Return what will be run, and what of the budget each arm takes."""
    arms: dict[str, Group] = {group.arm: group for group in reversed(grid.groups)}
    rows = []
    for group in reversed(arms.values()):
        if group.plan is not None and "." in group.plan:
            continue  # random partitions: as many as the plan that they are like
        spent, trials = grid.spent[group], grid.study.trials_of(group.recipe)
        share = "outside (no rank axis)"
        if spent.allowed is not None:
            share = f"{100 * spent.trainable / spent.allowed:.1f} %"
        rows.append(
            (
                group.arm,
                str(group.budget or "-"),
                f"{spent.scale:g}" if spent.scale is not None else "-",
                f"{spent.trainable:,}",
                share,
                str(len(trials)),
            )
        )
    return Sheet(
        title=f"budget of study '{grid.study.name}', {len(grid.study.seeds)} seeds",
        columns=("", "rank", "scale", "trained values", "of a plain LoRA's", "trials"),
        rows=tuple(rows),
    )


def cells_sheets(summary: dict[str, Any]) -> list[Sheet]:
    """Return what could not be run, and what has no result."""
    sheets = []
    for key, title in (
        ("infeasible", "not possible within the budget"),
        ("missing", "cells without a result"),
    ):
        names: dict[str, list[str]] = {}
        for name, reason in summary[key].items():
            names.setdefault(reason, []).append(name)
        if names:
            rows = tuple((_some(found), reason) for reason, found in names.items())
            told = f"{title}, of a study with {len(summary['seeds'])} seeds"
            sheets.append(Sheet(title=told, columns=("what", "why"), rows=rows))
    return sheets


def _some(names: Sequence[str]) -> str:
    """Return a few names, and how many more there are."""
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def heading(table: dict[str, Any]) -> str:
    """Return what a table is about."""
    parts = [
        f"{table['rows']} training rows a task" if table["rows"] else "",
        table["subset"] or "",
    ]
    parts.append(f"{len(table['tasks'])} tasks")
    if table["budget"]:
        parts.append(f"rank budget {table['budget']}")
    return ", ".join(part for part in parts if part)


def _scores(table: dict[str, Any]) -> Sheet:
    base = table["baseline"]
    names = short_names(table)
    columns = ("", "score")
    if base is not None:
        columns += (f"less {names[base]}", "other rows", "p (Holm)", "w/t/l")
    rows = []
    for arm in table["arms"]:
        row = [names[arm["arm"]], plus_minus(score(arm["mean"]), arm["low"], arm["high"])]
        if base is not None:
            row += difference(arm)
        rows.append(tuple(row))
    return Sheet(
        title=f"{heading(table)}: mean test score over the tasks, "
        f"± 95 % over {num_seeds(table)} seeds",
        columns=columns,
        rows=tuple(rows),
    )


def _series(series: dict[str, Any]) -> Sheet:
    """Return an arm's scores on growing sets of tasks."""
    first = series["points"][0]["set"]
    rows = tuple(
        (
            point["set"],
            str(point["num_tasks"]),
            plus_minus(score(point["mean"]), point["low"], point["high"]),
            *difference(point),
        )
        for point in series["points"]
    )
    rows_told = f", {series['rows']} training rows a task" if series["rows"] else ""
    seeds = " or ".join(str(n) for n in sorted({len(p["seeds"]) for p in series["points"]}))
    return Sheet(
        title=f"{series['arm']} as more tasks share it{rows_told}: mean test score over "
        f"{', '.join(series['tasks'])}, ± 95 % over {seeds} seeds",
        columns=("set", "tasks", "score", f"less {first}", "other rows", "p (Holm)", "w/t/l"),
        rows=rows,
    )


def _costs(table: dict[str, Any], summary: dict[str, Any]) -> Sheet:
    policies = list(dict.fromkeys(k for arm in table["arms"] for k in arm.get("regret", {})))
    columns = (
        "",
        "trained values",
        "scale",
        "chosen of the trials",
        "validation halfway, end",
        "updates an adapter",
        "tokens",
        "seconds",
        *(f"regret: {name}" for name in policies),
        f"seeds to show {summary['effect']:g}",
    )
    rows = []
    for arm in table["arms"]:
        regret = arm.get("regret", {})
        rows.append(
            (
                arm["arm"],
                f"{arm['trainable']:,}",
                f"{arm['scale']:g}" if arm["scale"] is not None else "-",
                *_chosen(arm),
                _updates(arm["updates"]),
                f"{arm['tokens']:,.0f}" if arm["tokens"] is not None else "-",
                f"{arm['seconds']:.0f}" if arm["seconds"] is not None else "-",
                *(signed(regret[name]) if name in regret else "-" for name in policies),
                str(arm.get("seeds_needed") or "-"),
            )
        )
    return Sheet(
        title=f"{heading(table)}: what it took (means of {len(summary['seeds'])} seeds)",
        columns=columns,
        rows=tuple(rows),
    )


def _chosen(arm: dict[str, Any]) -> tuple[str, str]:
    """Return the chosen rate and epochs, and its mean validation scores."""
    tried = [row for row in arm["tried"] if row["trial"] == arm["chosen"]]
    if not tried:
        return "-", "-"
    setting = f"{tried[0]['learning_rate']:g} x {tried[0]['epochs']:g}"
    ends = [
        [row[key] for row in tried if row[key] is not None] for key in ("halfway", "validation")
    ]
    return setting, ", ".join(score(sum(v) / len(v)) if v else "-" for v in ends)


def _updates(updates: list[int] | None) -> str:
    if updates is None:
        return "-"
    low, high = updates
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _by_task(table: dict[str, Any]) -> Sheet:
    base, names = table["baseline"], short_names(table)
    rows = []
    for arm in table["arms"]:
        differences = arm.get("task_differences", {})
        marks = {task: MARK[row["outcome"]] for task, row in differences.items()}
        cells = (score(arm["tasks"][task]["mean"]) + marks.get(task, "") for task in table["tasks"])
        rows.append((names[arm["arm"]], *cells, score(arm["mean"])))
    note = f"+ or -: better or worse than {base}: all intervals of the difference exclude 0"
    return Sheet(
        title=f"{heading(table)}: test score by task, {num_seeds(table)} seeds",
        columns=("", *table["tasks"], "mean"),
        rows=tuple(rows),
        notes=(note,) if base is not None else (),
    )


def _partitions(table: dict[str, Any]) -> Sheet:
    rows = tuple(
        (
            found["plan"],
            score(found["score"]),
            f"{score(min(found['null']))} to {score(max(found['null']))}",
            f"{len(found['null'])} of {found['existing'] - 1}",
            f"{found['p_value']:.3f}",
            "-" if missing(found["z"]) else f"{found['z']:+.1f}",
            f"{score(found['sd_partitions'])}, {score(found['sd_seeds'])}",
        )
        for found in table["partitions"]
    )
    return Sheet(
        title=f"{heading(table)}: a plan among random ones of the same sizes, "
        f"{num_seeds(table)} seeds",
        columns=("plan", "score", "random", "tried", "p (rank)", "z", "sd plans, seeds"),
        rows=rows,
    )
