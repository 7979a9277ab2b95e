"""How a study's scores depend on the weight of a regularizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt._sheet import Sheet, missing, plus_minus, score
from coadapt.analysis._studies import read_study, setting_of


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An arm's mean test score over tasks, with its interval over seeds.

    Attributes:
        arm: its name in the study.
        weight: of the regularizer; None of an arm that is no part of the sweep.
        mean: over seeds.
        low: 95 % interval; None over one seed.
        high: the same.
        num_seeds: that it was run with.
    """

    arm: str
    weight: float | None
    mean: float
    low: float | None
    high: float | None
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class WeightSweep:
    """Arms of a study that differ in nothing but a regularizer's weight.

    Attributes:
        study: its name.
        kind: of the regularizer.
        setting: rows and rank budget, in words.
        points: by weight, ascending.
        baseline: the study's, if it is not among the points.
    """

    study: str
    kind: str
    setting: str
    points: tuple[Scored, ...]
    baseline: Scored | None


def weight_sweep(study: str | Path, kind: str) -> list[WeightSweep]:
    """Return how the score of a study's arms depends on the weight of a regularizer.

    Figure 3 of "Align, Don't Divide" (arXiv 2508.05078). An arm belongs to a sweep if its recipe,
    plan, trials and training are those of the others but for the weight; one without the
    regularizer has weight 0. Each arm was tuned for itself, so the curve is that of the best trial
    at each weight, not of the weight at fixed learning rate.

    The best weight of a sweep, picked on test scores, is no result: report it with its neighbours.

    Args:
        study: the folder of a finished study.
        kind: of the regularizer, such as ``align_kl``.

    Returns:
        One for each number of rows, budget and family of arms of two weights or more.

    Raises:
        InputError: if the folder holds no such study.
    """
    about, summary = read_study(study)
    parts = {name: _split(entry, kind) for name, entry in about["recipes"].items()}
    found = []
    for table in summary["tables"]:
        arms = [arm for arm in table["arms"] if not missing(arm["mean"])]
        base = next((arm for arm in arms if arm["arm"] == table["baseline"]), None)
        families = [(parts[arm["recipe"]], arm["plan"]) for arm in arms]
        for part, plan in dict.fromkeys((p.family, plan) for p, plan in families if p.weight > 0):
            members = [
                (arm, p.weight)
                for arm, (p, own) in zip(arms, families, strict=True)
                if own == plan and p.rest == part[0] and (p.family == part or p.weight == 0)
            ]
            if len({weight for _, weight in members}) < 2:
                continue
            apart = all(arm is not base for arm, _ in members)
            points = (_scored(arm, weight) for arm, weight in members)
            found.append(
                WeightSweep(
                    study=summary["study"],
                    kind=kind,
                    setting=setting_of(table),
                    points=tuple(sorted(points, key=lambda point: (point.weight, point.arm))),
                    baseline=_scored(base, None) if base is not None and apart else None,
                )
            )
    if not found:
        kinds = {
            part["kind"]
            for entry in about["recipes"].values()
            for part in entry["recipe"].get("regularizers", ())
        }
        hint = "" if kind in kinds else nearest(kind, sorted(kinds))
        raise InputError(
            f"{study} has no two finished arms that differ in nothing but the weight of "
            f"'{kind}'{hint}"
        )
    return found


def sweep_sheet(found: WeightSweep) -> Sheet:
    """Return the scores by weight."""
    rows = [(f"{point.weight:g}", point.arm, _with_interval(point)) for point in found.points]
    if found.baseline is not None:
        rows.append(("", f"{found.baseline.arm} (baseline)", _with_interval(found.baseline)))
    seeds = sorted({point.num_seeds for point in found.points})
    return Sheet(
        title=f"{found.study}, {found.setting}: mean test score by the weight of {found.kind}, "
        f"± 95 % over {' or '.join(map(str, seeds))} seeds",
        columns=("weight", "arm", "score"),
        rows=tuple(rows),
    )


@dataclass(frozen=True, kw_only=True)
class _Split:
    """A recipe's weight of a regularizer, and all else of its entry, as text.

    Attributes:
        weight: 0 without the regularizer.
        rest: of the entry, less the regularizer.
        settings: of the regularizer, less its weight.
    """

    weight: float
    rest: str
    settings: str

    @property
    def family(self) -> tuple[str, str]:
        """What arms of one sweep have in common, where their weight is not 0."""
        return self.rest, self.settings


def _split(entry: Mapping[str, Any], kind: str) -> _Split:
    recipe = dict(entry["recipe"])
    parts = recipe.pop("regularizers", ())
    mine = [part for part in parts if part["kind"] == kind]
    rest = {key: value for key, value in entry.items() if key not in ("recipe", "recipe_name")}
    others = [part for part in parts if part["kind"] != kind]
    return _Split(
        weight=float(sum(part["weight"] for part in mine)),
        rest=json.dumps([recipe, others, rest], sort_keys=True),
        settings=json.dumps([{**part, "weight": None} for part in mine], sort_keys=True),
    )


def _scored(arm: Mapping[str, Any], weight: float | None) -> Scored:
    return Scored(
        arm=arm["arm"],
        weight=weight,
        mean=arm["mean"],
        low=arm["low"],
        high=arm["high"],
        num_seeds=len(arm["seeds"]),
    )


def _with_interval(point: Scored) -> str:
    return plus_minus(score(point.mean), point.low, point.high)
