"""The same arm on growing sets of tasks, scored on the tasks that are in every set."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coadapt.study.comparison import Arm, compare_arms, describe_arm
from coadapt.study.grid import Grid, Group


def over_tasks(grid: Grid, arms: Mapping[Group, Arm]) -> list[dict[str, Any]]:
    """Return, for each arm and number of rows, how it fares as more tasks share its rank.

    Args:
        grid: a study with two or more sets of tasks.
        arms: what each group scored.

    Returns:
        ``arm``, ``rows``, ``tasks`` (those in every set) and ``points``: a set's name, its number
        of tasks, the mean score over ``tasks`` with Student's interval over seeds, and the paired
        difference to the smallest set; in the order of their size.
    """
    sets = grid.study.tasks
    common = [t for t in grid.suite.names if all(t in names for names in sets.values())]
    if len(sets) < 2 or not common:
        return []
    found = []
    # Each set has random partitions of its own: those of one number have nothing in common.
    lasting = [g for g in grid.groups if g.plan is None or g.plan in grid.study.plans]
    kinds = dict.fromkeys(replace(group, tasks=None) for group in lasting)
    for kind in kinds:
        groups = [g for g in grid.groups if replace(g, tasks=None) == kind and arms[g].scores]
        groups.sort(key=lambda g: len(sets[g.tasks or ""]))
        if len(groups) > 1:
            named = [replace(arms[g], name=g.tasks or "") for g in groups]
            points = _points(grid, named, common)
            found.append({"arm": kind.arm, "rows": kind.rows, "tasks": common, "points": points})
    return found


def _points(grid: Grid, arms: Sequence[Arm], common: Sequence[str]) -> list[dict[str, Any]]:
    tasks = [grid.suite.task(name) for name in common]
    compared = compare_arms(arms[1:], arms[0], tasks, effect=grid.study.effect)
    return [
        {
            "set": arm.name,
            "num_tasks": len(grid.study.tasks[arm.name]),
            **describe_arm(arm, common),
            **compared.get(arm.name, {}),
        }
        for arm in arms
    ]
