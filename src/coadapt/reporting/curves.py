"""A run's log as curves by task."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt.reporting import parts
from coadapt.reporting.parts import Part


def read_log(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; the last one may have been cut off."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            told = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise InputError(f"{file}, line {number}: not JSON ({error})") from error
        if isinstance(told, dict) and "step" in told:
            found.append(told)
    return found


def curves(told: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """Return the tasks' training losses and validation scores by step."""
    found = []
    for name, run in told.items():
        panels = [
            {"title": title, "series": series}
            for title, series in (
                ("training loss by task", _logged(run["log"], r"loss_(.+)")),
                ("validation score by task", _logged(run["log"], r"eval_(.+)", _tasks(run))),
            )
            if series
        ]
        if panels:
            title = f"{name}: {' and '.join(panel['title'] for panel in panels)}"
            told_ends = "; ".join(
                f"{s['name']} {s['y'][0]:.2f} to {s['y'][-1]:.2f}"
                for p in panels
                for s in p["series"]
            )
            alt = f"{title}, first to last: {told_ends}."
            if len(panels) == 1:
                panels = [{**panels[0], "title": ""}]  # which the chart's own title says
            found.append(parts.chart("lines", title, alt, panels=panels, x_title="step"))
    return found


def _tasks(run: Mapping[str, Any]) -> Mapping[str, Any]:
    return (run["config"].get("suite") or {}).get("tasks") or {}


def _logged(
    log: Sequence[Mapping[str, Any]], pattern: str, tasks: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in log:
        for key, value in line.items():
            named = re.fullmatch(pattern, key)
            # What is logged of a task is `eval_TASK`, and `eval_TASK_METRIC` of each metric.
            if (
                named
                and (tasks is None or named[1] in tasks)
                and isinstance(value, int | float)
                and math.isfinite(value)
            ):
                found.setdefault(named[1], []).append((line["step"], float(value)))
    return [
        {"name": name, "x": list(x), "y": list(y), "low": None, "high": None}
        for name, seen in found.items()
        for x, y in [zip(*seen, strict=True)]
    ]
