"""A study over several amounts of data on one page: every arm's difference, amount by amount."""

from typing import Any

from coadapt._sheet import Sheet, plus_minus, score
from coadapt.study.sheet import difference, num_seeds, short_names


def overview_sheets(summary: dict[str, Any]) -> list[Sheet]:
    """Return, for each budget and set of tasks, the arms by the number of training rows.

    Args:
        summary: of :func:`coadapt.study.summarize`.

    Returns:
        Nothing where there is only one number of rows.
    """
    kinds: dict[tuple[str | None, int | None], list[dict[str, Any]]] = {}
    for table in summary["tables"]:
        kinds.setdefault((table["subset"], table["budget"]), []).append(table)
    return [
        _overview(tables)
        for tables in kinds.values()
        if len({table["rows"] for table in tables}) > 1
    ]


def _overview(tables: list[dict[str, Any]]) -> Sheet:
    first = tables[0]
    names: dict[str, str] = {}
    for table in tables:
        names |= short_names(table)
    base = first["baseline"]
    rows = tuple(
        (name, *(_cell(table, arm, base) for table in tables)) for arm, name in names.items()
    )
    parts = [first["subset"], f"{len(first['tasks'])} tasks"]
    parts.append(f"rank budget {first['budget']}" if first["budget"] else None)
    told = ", ".join(part for part in parts if part)
    what = f"difference to {names[base]}, whose own score stands there" if base else "scores"
    arms = [arm for table in tables for arm in table["arms"]]
    seeds = num_seeds({"arms": arms})
    return Sheet(
        title=f"{told}: mean test score by training rows a task, {what}; ± 95 % over {seeds} seeds",
        columns=("", *(f"{table['rows']} rows" for table in tables)),
        rows=rows,
    )


def _cell(table: dict[str, Any], name: str, base: str | None) -> str:
    arm = next((arm for arm in table["arms"] if arm["arm"] == name), None)
    if arm is None:
        return "-"
    if base in (name, None):
        return plus_minus(score(arm["mean"]), arm["low"], arm["high"])
    return difference(arm)[0] or "-"  # a baseline that has not been run gives none
