"""A study's report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coadapt._files import read_json
from coadapt._folders import STUDY, SUMMARY
from coadapt._sheet import Sheet, missing, plus_minus, score, signed
from coadapt.config import dump_yaml
from coadapt.diagnosis.measures import Diagnosis
from coadapt.reporting import parts
from coadapt.reporting.costs import of_cells
from coadapt.reporting.of_diagnosis import find, section_of
from coadapt.reporting.parts import Part
from coadapt.study.sheet import num_seeds, short_names
from coadapt.study.tables import cells_sheets, detail_sheets, heading, main_sheets

SHOWN = 0.05  # of the p-value after Holm
FEW = 2  # settings that are told one by one at the top
MEASURE = "similarity"
_LOOKS = {"win": "better", "loss": "worse", "tie": "not shown"}
PANELS = 12  # tasks with a picture of their own


def of_study(folder: Path, given: Sequence[Path]) -> dict[str, Any]:
    """Return the report's data."""
    told = read_json(folder / STUDY)
    title = f"Study '{told['study']['name']}'"
    setup = parts.section("Configuration", parts.fold("study and suite", dump_yaml(told)))
    if not (folder / SUMMARY).is_file():
        number = len(list((folder / "cells").glob("*/*.json")))
        said = f"This study has not been finished: {number} files of cells, and no {SUMMARY}."
        answer = [said, "`coadapt study FILE --output DIR --resume` goes on with it."]
        return {"title": title, "kind": "study", "status": "unfinished", "answer": answer,
                "sections": [setup]}  # fmt: skip
    summary = read_json(folder / SUMMARY)
    records = [read_json(file) for file in sorted((folder / "cells").glob("*/*.json"))
               if not file.name.endswith(".predictions.json")]  # fmt: skip
    diagnoses = find([folder], given)
    status = "with cells that failed" if summary["missing"] else "finished"
    return {
        "title": title,
        "kind": "study",
        "status": status,
        "answer": [*_answer(summary), *_reliance(summary)],
        "sections": [
            parts.section("Setting by setting", _settings(summary)),
            parts.section("Scores", *_differences(summary), *_tables(main_sheets(summary))),
            parts.section("By task", *map(_by_task, summary["tables"])),
            parts.section("Score against rank budget", *_against(summary, "budget", "rank budget")),
            parts.section("Score against rows", *_against(summary, "rows", "training rows")),
            parts.section("Plans against chance", *_nulls(summary)),
            *(section_of(found) for found in diagnoses),
            parts.section("Benefit of sharing", *_benefits(folder, summary, diagnoses)),
            parts.section("What it took", *of_cells(records), *_costs(summary)),
            parts.section("What failed", *_tables(cells_sheets(summary)), _errors(records)),
            setup,
            parts.section("Made with", _environment(records)),
        ],
    }  # fmt: skip


def _answer(summary: dict[str, Any]) -> list[str]:
    """Return what should be shipped, and how sure that is; of many settings how often."""
    tables = summary["tables"]
    if len(tables) <= FEW:
        return [_verdict(table) for table in tables]
    base = summary["baseline"]
    won: dict[str, int] = {}
    for table in tables:
        for arm in table["arms"]:
            if _is_shown(arm):
                name = short_names(table)[arm["arm"]]
                won[name] = won.get(name, 0) + 1
    number = f"{len(tables)} settings"
    if not won:
        return [f"In none of {number} anything is shown to beat **{base}**: ship that."]
    told = ", ".join(f"**{name}** in {count}" for name, count in won.items())
    return [
        f"Shown to beat **{base}**: {told} of {number}. In the others nothing is; there, ship "
        f"**{base}**."
    ]


def _settings(summary: dict[str, Any]) -> Part | None:
    tables = summary["tables"]
    return parts.points([_verdict(table) for table in tables]) if len(tables) > FEW else None


def _verdict(table: dict[str, Any]) -> str:
    """Return what a table says should be shipped, and how sure that is."""
    names, base = short_names(table), table["baseline"]
    scored = [arm for arm in table["arms"] if not missing(arm["mean"])]
    about = heading(table)
    if not scored:
        return f"{about}: nothing has finished."
    best = max(scored, key=lambda arm: arm["mean"])
    told = f"**{names[best['arm']]}** {plus_minus(score(best['mean']), best['low'], best['high'])}"
    if base is None or base not in {arm["arm"] for arm in scored}:
        return f"{about}: highest is {told}; there is no baseline to compare it with."
    if best["arm"] == base:
        return f"{about}: ship {told}, the baseline: nothing scored above it."
    shown = [arm for arm in scored if _is_shown(arm)]
    if shown:
        winner = max(shown, key=lambda arm: arm["mean"])
        return (
            f"{about}: ship **{names[winner['arm']]}**: {_difference(winner, names[base])}, shown."
        )
    return (
        f"{about}: nothing is shown to beat **{names[base]}**; highest is {told}, "
        f"{_difference(best, names[base])}{_needed(best)}."
    )


def _is_shown(arm: dict[str, Any]) -> bool:
    return _outcome(arm) == "win"


def _outcome(arm: dict[str, Any]) -> str:
    """Return win or loss where interval and corrected p-value both bear it, else tie."""
    found = arm.get("difference")
    if not found or found["p_holm"] is None or found["p_holm"] >= SHOWN:
        return "tie"
    return found["outcome"]


def _difference(arm: dict[str, Any], base: str) -> str:
    found = arm.get("difference")
    if not found:
        return f"not compared with {base}"
    told = plus_minus(signed(found["mean"]), found["low"], found["high"])
    p = "" if missing(found["p_holm"]) else f", p {found['p_holm']:.3f} after Holm"
    return f"{told} to {base}{p}"


def _needed(arm: dict[str, Any]) -> str:
    number = arm.get("seeds_needed")
    if not number or number <= len(arm["seeds"]):
        return ""
    return f"; some {number} seeds would show a difference worth having"


def _reliance(summary: dict[str, Any]) -> list[str]:
    number = len(summary["seeds"])
    if number < 2:
        return ["One seed: no interval over seeds can be given, and nothing can be shown."]
    told = f"Intervals are 95 % over {number} seeds, differences paired by seed; p-values are "
    return [told + "corrected over the recipes of one table (Holm), not over tables."]


def _differences(summary: dict[str, Any]) -> list[Part]:
    """Return a picture a table: every arm's difference to the baseline."""
    found = []
    for table in summary["tables"]:
        names = short_names(table)
        arms = [arm for arm in table["arms"] if arm.get("difference")]
        if not arms:
            continue
        rows = [
            {"name": names[arm["arm"]], "value": arm["difference"]["mean"],
             "low": arm["difference"]["low"], "high": arm["difference"]["high"],
             "mark": _outcome(arm)}
            for arm in arms
        ]  # fmt: skip
        told = "; ".join(f"{row['name']} {signed(row['value'])}" for row in rows)
        base = names.get(table["baseline"], table["baseline"])
        title = f"{heading(table)}: difference to {base}"
        axis = {"looks": _LOOKS, "x_title": f"difference to {base} (95 % interval)"}
        found.append(parts.chart("intervals", title, f"{title}: {told}.", rows=rows, **axis))
    return found


def _by_task(table: dict[str, Any]) -> Part:
    """Return scores with a row a task, which many tasks need; marks say what is shown."""
    names = short_names(table)
    marks = {"win": " +", "loss": " -", "tie": ""}
    rows = []
    for task in table["tasks"]:
        cells = [task]
        for arm in table["arms"]:
            found = arm["tasks"][task]
            outcome = arm.get("task_differences", {}).get(task, {}).get("outcome", "tie")
            told = plus_minus(score(found["mean"]), found["low"], found["high"])
            cells.append(told + marks[outcome])
        rows.append(tuple(cells))
    base = table["baseline"]
    note = f"+ or -: better or worse than {base}; all intervals of the difference exclude 0"
    return parts.table(
        Sheet(
            title=f"{heading(table)}: test score by task, ± 95 % over {num_seeds(table)} seeds",
            columns=("task", *(names[arm["arm"]] for arm in table["arms"])),
            rows=tuple(rows),
            notes=(note,) if base else (),
        )
    )


def _against(summary: dict[str, Any], key: str, what: str) -> list[Part]:
    """Return scores by a number that differs between tables: the mean, and a panel a task."""
    kinds: dict[Any, list[dict[str, Any]]] = {}
    for table in summary["tables"]:
        other = table["rows"] if key == "budget" else table["budget"]
        kinds.setdefault((table["subset"], other), []).append(table)
    found = []
    for tables in kinds.values():
        places = sorted({table[key] for table in tables if table[key] is not None})
        if len(places) < 2:
            continue
        tasks = tables[0]["tasks"]
        panels = [{"title": "mean", "series": _series(tables, key, None)}]
        panels += [{"title": t, "series": _series(tables, key, t)} for t in tasks[:PANELS]]
        about = heading({**tables[0], key: None})
        title = f"{about}: score by {what}, bands of 95 % over {num_seeds(tables[0])} seeds"
        told = "; ".join(
            f"{one['name']} {' to '.join(score(one['y'][i]) for i in (0, -1))}"
            for one in panels[0]["series"]
        )
        alt = f"{title}. Means, from {what} {places[0]} to {places[-1]}: {told}."
        left = (
            f"{len(tasks) - PANELS} further tasks are in the tables." if len(tasks) > PANELS else ""
        )
        found.append(
            parts.chart("lines", title, alt, panels=panels, x_title=what, log=True, caption=left)
        )
    return found  # fmt: skip


def _series(tables: list[dict[str, Any]], key: str, task: str | None) -> list[dict[str, Any]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    for table in sorted(tables, key=lambda table: table[key] or 0):
        names = short_names(table)
        for arm in table["arms"]:
            at = arm if task is None else arm["tasks"][task]
            if not missing(at["mean"]):
                point = (table[key], at["mean"], at["low"], at["high"])
                found.setdefault(names[arm["arm"]], []).append(point)
    return [
        dict(zip(("name", "x", "y", "low", "high"), (name, *zip(*seen, strict=True)), strict=True))
        for name, seen in found.items()
    ]


def _nulls(summary: dict[str, Any]) -> list[Part]:
    """Return where each plan stands among random ones of the same sizes."""
    found = []
    for table in summary["tables"]:
        for plan in table["partitions"]:
            title = f"{heading(table)}: plan '{plan['plan']}' among random plans of the same sizes"
            alt = (
                f"{title}: it scores {score(plan['score'])}, {len(plan['null'])} others "
                f"{score(min(plan['null']))} to {score(max(plan['null']))}; "
                f"p {plan['p_value']:.3f} by rank."
            )
            null = list(plan["null"])
            found.append(
                parts.chart("strip", title, alt, null=null, value=plan["score"], name=plan["plan"])
            )
    return found  # fmt: skip


def _benefits(folder: Path, summary: dict[str, Any], diagnoses: Sequence[Diagnosis]) -> list[Part]:
    """Return how the benefit of sharing goes with similarity, where random plans were run."""
    tasks = {task for table in summary["tables"] if table["partitions"] for task in table["tasks"]}
    about = [d for d in diagnoses if tasks <= set(d.tasks) and MEASURE in d.pairs]
    if not tasks or not about:
        return []
    from coadapt.study.benefit import benefit_sheet, relate  # SciPy's tests take a second

    found: list[Part] = []
    for diagnosis in about:
        for one in relate(folder, diagnosis, measure=MEASURE):
            sheet = benefit_sheet(one)
            known = [pair for pair in one["pairs"] if pair["benefit"] is not None]
            groups = [
                {"name": name, "points": [[pair["similarity"], pair[key]] for pair in known]}
                for key, name in (("benefit", "mean over all tasks"), ("local", "the two tasks"))
            ]
            alt = f"{sheet.title}. {' '.join(sheet.notes)}"
            axes = {"x_title": one["measure"], "y_title": "score together less apart"}
            found.append(parts.chart("scatter", sheet.title, alt, groups=groups, **axes))
            found.append(parts.table(sheet))
    return found


def _costs(summary: dict[str, Any]) -> list[Part]:
    return _tables([s for s in detail_sheets(summary) if "what it took" in s.title])


def _tables(sheets: Sequence[Sheet]) -> list[Part]:
    return [parts.table(sheet) for sheet in sheets]


def _errors(records: list[dict[str, Any]]) -> Part | None:
    lines = [
        f"{record['cell']['id']}: {record['run']['status']}: {record['run']['error']}"
        for record in records
        if record["run"]["error"]
    ]
    return parts.points(lines) if lines else None


def _environment(records: list[dict[str, Any]]) -> Part | None:
    kinds = {json.dumps(r["environment"], sort_keys=True) for r in records if r.get("environment")}
    if not kinds:
        return None
    told = (json.dumps(json.loads(kind), indent=2) for kind in sorted(kinds))
    return parts.fold("packages and machine", "\n".join(told))
