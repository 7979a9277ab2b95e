"""Folders of studies in the form of a committed one, with recipes and scores of the tests' own."""

import json
from pathlib import Path
from typing import Any

from coadapt._files import read_json

SHARING = Path(__file__).parents[2] / "benchmarks/results/sharing"


def aligned(weight: float | None, *, scale: float = 2.0, **settings: Any) -> dict[str, Any]:
    """Return a study's entry: a LoRA, with alignment of that weight; None: without."""
    parts = [{"kind": "align_kl", "weight": weight, "pool": "token", **settings}]
    recipe: dict[str, Any] = {"structure": {"kind": "single", "scale": scale}}
    if weight is not None:
        recipe["regularizers"] = parts
    return {"recipe": recipe, "recipe_name": None, "plans": [], "trials": [], "training": {}}


def write_study(
    folder: Path,
    recipes: dict[str, dict[str, Any]],
    scores: dict[str, float],
    *,
    baseline: str,
    sites: Any = "attention",
    differences: dict[str, float] | None = None,
    budgets: tuple[int, ...] = (8,),
    **summary: Any,
) -> Path:
    """Write a folder; arms without a score were not finished.

    Intervals reach 0.02 to either side of a score and 0.03 of a difference.
    """
    study, template = read_json(SHARING / "study.json"), read_json(SHARING / "summary.json")
    about = {**study["study"], "name": folder.name, "recipes": recipes, "baseline": baseline}
    about["model"] = {**about["model"], "target_modules": sites}
    tables = [
        {
            **template["tables"][0],
            "budget": budget,
            "baseline": f"{baseline}-R{budget}",
            "arms": [
                _arm(template["tables"][0]["arms"][1], name, budget, scores.get(name), differences)
                for name in recipes
            ],
        }
        for budget in budgets
    ]
    found = {**template, "study": folder.name, "tables": tables, **summary}
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({**study, "study": about}), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def _arm(
    template: dict[str, Any],
    name: str,
    budget: int,
    mean: float | None,
    differences: dict[str, float] | None,
) -> dict[str, Any]:
    known = {"mean": mean, "low": None, "high": None}
    if mean is not None:
        known = {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}
    arm = {**template, **known, "recipe": name, "plan": None, "arm": f"{name}-R{budget}"}
    if differences and name in differences:
        value = differences[name]
        low, high = value - 0.03, value + 0.03
        outcome = "win" if low > 0 else "loss" if high < 0 else "tie"
        arm["difference"] = {"mean": value, "low": low, "high": high, "outcome": outcome}
    return arm
