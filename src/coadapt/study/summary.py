"""From a study's cells to its statistics: one plain dict, which tables and pages are made of."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from coadapt._stats import null_z, num_partitions, rank_p_value, regret
from coadapt.predictions import read_predictions
from coadapt.study.comparison import Arm, compare_arms, describe_arm
from coadapt.study.grid import Cell, Grid, Group
from coadapt.study.records import (
    is_done,
    predictions_path,
    read_record,
    validation_score,
)
from coadapt.study.running import choose
from coadapt.study.series import over_tasks
from coadapt.study.spec import RandomPartitions, Study
from coadapt.tasks import Task

Setting = tuple[int | None, str | None]


def summarize(grid: Grid, folder: Path) -> dict[str, Any]:
    """Return a study's statistics from the cells that are there.

    Args:
        grid: the study.
        folder: where its cells lie.

    Returns:
        ``tables``: one for each number of rows, set of tasks and budget, with the arms' scores,
        what they trained, their differences to the baseline, regret, and plans against their
        null; ``over_tasks``: arms on growing sets of tasks; ``missing``: cells without a result,
        with their status; ``infeasible``.
    """
    study = grid.study
    found = {group: _read_group(grid, folder, group) for group in grid.groups}
    tables = []
    settings: dict[Setting, None] = dict.fromkeys((g.rows, g.tasks) for g in grid.groups)
    for rows, tasks in settings:
        here = [g for g in grid.groups if (g.rows, g.tasks) == (rows, tasks)]
        budgets = [b for b in study.budgets if any(g.budget == b for g in here)]
        for budget in budgets or [None]:
            groups = [g for g in here if g.budget in (budget, None)]
            tables.append(_table(grid, groups, found, budget))
    return {
        "study": study.name,
        "baseline": study.baseline,
        "seeds": list(study.seeds),
        "tuning_seeds": list(study.tuned_on),
        "effect": study.effect,
        "tables": tables,
        "over_tasks": over_tasks(grid, {group: row["arm"] for group, row in found.items()}),
        "missing": _missing(grid, folder, {group: row["chosen"] for group, row in found.items()}),
        "infeasible": {group.name: reason for group, reason in grid.infeasible.items()},
    }


def _read_group(grid: Grid, folder: Path, group: Group) -> dict[str, Any]:
    """Return a group's tuning, and its final records by seed with what was predicted."""
    trials = grid.trials(group)
    records = {cell: read_record(folder, cell) for cell in trials}
    complete = all(is_done(record) for record in records.values())
    chosen = choose(folder, trials) if complete else None
    finals: dict[int, dict[str, Any]] = {}
    predictions = {}
    for cell in grid.finals(group, chosen) if chosen is not None else ():
        record = read_record(folder, cell)
        if record is not None and record["run"]["status"] == "finished":
            finals[cell.seed] = record
            if predictions_path(folder, cell).is_file():
                predictions[cell.seed] = read_predictions(predictions_path(folder, cell))
    scores = {seed: _test_scores(record) for seed, record in finals.items()}
    return {
        "arm": Arm(name=group.arm, scores=scores, predictions=predictions),
        "chosen": chosen,
        "tried": [_tried(cell, record) for cell, record in records.items()],
        "finals": finals,
    }


def _test_scores(record: dict[str, Any]) -> dict[str, float]:
    return {
        task: next(iter(scores["metrics"].values()))["value"]
        for task, scores in record["metrics"]["test"].items()
    }


def _tried(cell: Cell, record: dict[str, Any] | None) -> dict[str, Any]:
    """Return a trial with its validation score halfway and at the end."""
    training = cell.config.training
    halfway = record["curve"][0][1] if record is not None and record["curve"] else None
    return {
        "trial": cell.trial,
        "seed": cell.seed,
        "learning_rate": training["learning_rate"],
        "epochs": training["num_train_epochs"],
        "status": record["run"]["status"] if record is not None else "not run",
        "halfway": halfway,
        "validation": validation_score(record) if record is not None else None,
    }


def _table(
    grid: Grid, groups: list[Group], found: dict[Group, dict[str, Any]], budget: int | None
) -> dict[str, Any]:
    study = grid.study
    suite = grid.suite_of(groups[0], study.seeds[0])
    base = next((g for g in groups if g.recipe == study.baseline), None)
    drawn = [g for g in groups if _is_random(study, g)]
    shown = [g for g in groups if g not in drawn]
    arms = {g: found[g]["arm"] for g in groups}
    compared = {}
    if base is not None and arms[base].scores:
        others = [arms[g] for g in shown if g != base and arms[g].scores]
        compared = compare_arms(others, arms[base], suite.tasks, effect=study.effect)
    fixed = _fixed_policies(study, shown, arms, suite.tasks)
    rows = []
    for group in shown:
        arm = arms[group]
        row = {"recipe": group.recipe, "plan": group.plan, **describe_arm(arm, suite.names)}
        row |= asdict(grid.spent[group])
        row |= {"chosen": found[group]["chosen"], "tried": found[group]["tried"]}
        row |= _costs(found[group]["finals"])
        row |= compared.get(arm.name, {})
        if arm.scores and fixed:
            row["regret"] = regret(row["mean"], fixed)
        rows.append(row)
    return {
        "rows": groups[0].rows,
        "tasks": list(suite.names),
        "subset": groups[0].tasks,
        "budget": budget,
        "baseline": arms[base].name if base is not None else None,
        "arms": rows,
        "partitions": _partitions(grid, groups, arms, suite.tasks),
    }


def _fixed_policies(
    study: Study, groups: list[Group], arms: dict[Group, Arm], tasks: Sequence[Task]
) -> dict[str, float]:
    """Return the mean scores of always sharing and never sharing, where both were run."""
    names = [task.name for task in tasks]
    found: dict[str, float] = {}
    for group in groups:
        sharing = study.recipes[group.recipe].recipe.sharing
        arm = arms[group]
        if sharing in ("shared", "private") and sharing not in found and arm.scores:
            found[sharing] = float(arm.means(arm.seeds, names).mean())
    return {f"always {name}": found[name] for name in ("shared", "private") if name in found}


def _costs(finals: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what the final runs took: steps, tokens, seconds, updates an adapter."""
    done = [record["train"] for record in finals.values()]
    if not done:
        return {"steps": None, "tokens": None, "seconds": None, "updates": None}
    updates = [
        count
        for train in done
        for name, count in train["updates"].items()
        if not name.startswith("heads/")
    ]
    return {
        "steps": float(np.mean([train["steps"] for train in done])),
        "tokens": float(np.mean([train["tokens"] for train in done])),
        "seconds": float(np.mean([train["seconds"] for train in done])),
        "updates": [min(updates), max(updates)] if updates else None,
    }


def _is_random(study: Study, group: Group) -> bool:
    source = study.plans.get((group.plan or "").partition(".")[0])
    return isinstance(source, RandomPartitions)


def _partitions(
    grid: Grid, groups: list[Group], arms: dict[Group, Arm], tasks: Sequence[Task]
) -> list[dict[str, Any]]:
    """Return, for each recipe and plan with random partitions, where the plan stands among them."""
    study, names = grid.study, [task.name for task in tasks]
    found = []
    for name, source in study.plans.items():
        if not isinstance(source, RandomPartitions):
            continue
        for observed in (g for g in groups if g.plan == source.like and arms[g].scores):
            null = [
                g
                for g in groups
                if g.recipe == observed.recipe
                and (g.plan or "").partition(".")[0] == name
                and arms[g].scores
            ]
            if not null:
                continue
            sizes = [len(cluster) for cluster in grid.clusters_of(observed).values()]
            against = _against_null(
                arms[observed], [arms[g] for g in null], names, num_partitions(sizes)
            )
            drawn = [_drawn(grid, group, arms[group]) for group in (observed, *null)]
            found.append({**against, "drawn": drawn})
    return found


def _drawn(grid: Grid, group: Group, arm: Arm) -> dict[str, Any]:
    """Return a partition with each task's score, the mean over seeds."""
    tasks = next(iter(arm.scores.values()))
    return {
        "clusters": [list(cluster) for cluster in grid.clusters_of(group).values()],
        "scores": {t: float(np.mean([arm.scores[s][t] for s in arm.seeds])) for t in tasks},
    }


def _against_null(
    observed: Arm, null: list[Arm], names: list[str], existing: int
) -> dict[str, Any]:
    means = [float(arm.means(arm.seeds, names).mean()) for arm in null]
    score = float(observed.means(observed.seeds, names).mean())
    whole = len(means) + 1 == existing
    spreads = [arm.means(arm.seeds, names).std(ddof=1) for arm in null if len(arm.seeds) > 1]
    return {
        "plan": observed.name,
        "score": score,
        "null": means,
        "existing": existing,
        "all": whole,
        "p_value": rank_p_value(score, [*means, score], includes_observed=True)
        if whole
        else rank_p_value(score, means),
        "z": null_z(score, means),
        "sd_partitions": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "sd_seeds": float(np.mean(spreads)) if spreads else None,
    }


def _missing(grid: Grid, folder: Path, chosen: dict[Group, int | None]) -> dict[str, str]:
    """Return the cells that have no result, with what became of them."""
    missing: dict[str, str] = {}
    for group in grid.groups:
        trials, choice = grid.trials(group), chosen[group]
        if choice is None:
            done = all(is_done(read_record(folder, cell)) for cell in trials)
            why = "every trial diverged" if done else "a trial has no result"
            missing |= {cell.id: f"not run: {why}" for cell in grid.finals(group, 0)}
        for cell in [*trials, *(grid.finals(group, choice) if choice is not None else ())]:
            record = read_record(folder, cell)
            status = record["run"]["status"] if record is not None else "not run"
            # A trial that diverged has told what it was to tell.
            if status != "finished" and not (status == "diverged" and cell.role == "trial"):
                error = record["run"]["error"] if record is not None else None
                missing[cell.id] = f"{status}: {error}" if error else status
    return missing
