"""How a study's scores depend on one setting of its recipes, or on the rank budget."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coadapt._errors import InputError, nearest
from coadapt._sheet import Sheet, missing, plus_minus, score
from coadapt.analysis._recipe_settings import Value, setting_keys, split_entry
from coadapt.analysis._studies import read_study, setting_of

BUDGET = "budget"
Arms = list[tuple[Mapping[str, Any], Value]]


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """An arm's mean test score over tasks, with its interval over seeds.

    Attributes:
        arm: its name in the study.
        value: of the setting; None of a baseline that is no part of the sweep.
        mean: over seeds.
        low: 95 % interval; None over one seed.
        high: the same.
        num_seeds: that it was run with.
    """

    arm: str
    value: Value | None
    mean: float
    low: float | None
    high: float | None
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Arms of a study that differ in nothing but one setting.

    Attributes:
        study: its name.
        key: the setting, such as ``init.temperature``, or ``budget``.
        label: the recipe whose values these are.
        setting: rows, tasks and, if it is not swept, rank budget, in words.
        points: by value, ascending.
        baseline: the study's, if it is not among the points and no budgets are swept.
    """

    study: str
    key: str
    label: str
    setting: str
    points: tuple[SweepPoint, ...]
    baseline: SweepPoint | None

    @property
    def values(self) -> tuple[Value, ...]:
        """The values of the setting, each once."""
        return tuple(dict.fromkeys(point.value for point in self.points if point.value is not None))

    @property
    def geometric(self) -> bool:
        """Whether a logarithmic axis suits the values: its steps are the more even ones."""
        values = self.values
        if len(values) < 3 or any(isinstance(v, str) or v <= 0 for v in values):
            return False
        numbers = np.array(values, dtype=float)
        uneven = [
            np.std(gaps) / np.mean(gaps) for gaps in (np.diff(numbers), np.diff(np.log(numbers)))
        ]
        return bool(uneven[1] < uneven[0])

    @property
    def reading(self) -> str:
        """The range of the scores, and how many values lie above the baseline."""
        low, high = (f(self.points, key=lambda point: point.mean) for f in (min, max))
        told = (
            f"{self.label} over {len(self.values)} values of {self.key}: from {low.mean:.3f} at "
            f"{_text(low.value)} to {high.mean:.3f} at {_text(high.value)}"
        )
        if (base := self.baseline) is None:
            return told
        above = [point for point in self.points if point.mean > base.mean]
        clear = [point for point in above if _clear(point, base)]
        return (
            f"{told}; {len(above)} of {len(self.points)} above {base.arm} ({base.mean:.3f}), "
            f"{len(clear)} of them with intervals that do not touch"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "reading": self.reading}


def sweep(study: str | Path, key: str) -> list[Sweep]:
    """Return how the score of a study's arms depends on one setting.

    Figures 3 (lambda, gamma, tau) and 5 (ranks) of ThanoRA (arXiv 2505.18640). Arms belong together
    if recipe, plan, trials and training are the same but for the setting. Each arm was tuned for
    itself: the curve is that of the best trial at each value, not at one learning rate.

    The best value of a sweep, picked on the test scores it is shown with, is no result.

    Args:
        study: the folder of a finished study.
        key: a path in a recipe: ``structure.scale``, ``init.temperature``, or
            ``regularizers.KIND.FIELD``, where a recipe without the regularizer has ``weight`` 0; or
            ``budget`` for the study's rank budgets.

    Returns:
        One for each family of arms with two values or more, at each number of rows, set of tasks
        and budget; for ``budget`` one a recipe and plan.

    Raises:
        InputError: if the folder holds no such study.
    """
    about, summary = read_study(study)
    families = _of_budgets(summary) if key == BUDGET else _of_recipes(about, summary, key, study)
    found = []
    for setting, members, base in families:
        if len({value for _, value in members}) < 2:
            continue
        apart = base is not None and all(arm is not base for arm, _ in members)
        points = [_point(arm, value) for arm, value in members]
        found.append(
            Sweep(
                study=summary["study"],
                key=key,
                label=_label(members, key),
                setting=setting,
                points=tuple(sorted(points, key=_place)),
                baseline=_point(base, None) if base is not None and apart else None,
            )
        )
    if not found:
        raise InputError(f"{study} has no two finished arms that differ in nothing but '{key}'")
    return found


def sweeps_sheet(found: Sequence[Sweep]) -> Sheet:
    """Return the scores by value, one sweep after the other."""
    rows = []
    for one in found:
        name = one.label if len({o.setting for o in found}) < 2 else f"{one.label}, {one.setting}"
        rows += [(name, one.key, _text(p.value), p.arm, _with_interval(p)) for p in one.points]
        if one.baseline is not None:
            rows.append(
                (name, one.key, "", f"{one.baseline.arm} (baseline)", _with_interval(one.baseline))
            )
    seeds = sorted({point.num_seeds for one in found for point in one.points})
    studies = ", ".join(dict.fromkeys(one.study for one in found))
    return Sheet(
        title=f"{studies}: mean test score by setting, ± 95 % over "
        f"{' or '.join(map(str, seeds))} seeds",
        columns=("sweep", "setting", "value", "arm", "score"),
        rows=tuple(rows),
        notes=tuple(one.reading for one in found),
    )


Family = tuple[str, Arms, Mapping[str, Any] | None]


def _of_budgets(summary: Mapping[str, Any]) -> Iterator[Family]:
    by_line: dict[tuple[str, str, str | None], Arms] = {}
    for table in summary["tables"]:
        if table["budget"] is None:
            continue
        setting = setting_of({**table, "budget": None})
        for arm in _finished(table):
            line = by_line.setdefault((setting, arm["recipe"], arm["plan"]), [])
            line.append((arm, float(table["budget"])))
    for (setting, _, _), members in by_line.items():
        yield setting, members, None


def _of_recipes(
    about: Mapping[str, Any], summary: Mapping[str, Any], key: str, study: str | Path
) -> Iterator[Family]:
    splits = {
        name: split_entry(entry, key, f"{study}: {name}")
        for name, entry in about["recipes"].items()
    }
    known = {name: split for name, split in splits.items() if split is not None}
    if all(split.absent for split in known.values()):
        hint = nearest(key, sorted({*setting_keys(about["recipes"].values()), BUDGET}))
        raise InputError(f"no recipe of {study} has a setting '{key}'{hint}")
    for table in summary["tables"]:
        arms = [arm for arm in _finished(table) if arm["recipe"] in known]
        base = next((arm for arm in _finished(table) if arm["arm"] == table["baseline"]), None)
        families = [(known[arm["recipe"]], arm["plan"], arm) for arm in arms]
        for (rest, settings), plan in dict.fromkeys(
            (split.family, plan) for split, plan, _ in families if not split.absent
        ):
            members = [
                (arm, split.value)
                for split, own, arm in families
                if own == plan
                and split.rest == rest
                and (split.absent or split.settings == settings)
            ]
            yield setting_of(table), members, base


def _label(members: Arms, key: str) -> str:
    """Return the name that the arms have in common, as far as words go."""
    names = list(dict.fromkeys(arm["recipe"] for arm, _ in members))
    if key == BUDGET or len(names) == 1:
        plan = members[0][0]["plan"]
        return names[0] if plan is None else f"{names[0]}, {plan}"
    common = []
    for parts in zip(*(name.split("_") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "_".join(common) or f"{names[0]}, ..."


def _finished(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [arm for arm in table["arms"] if not missing(arm["mean"])]


def _point(arm: Mapping[str, Any], value: Value | None) -> SweepPoint:
    return SweepPoint(
        arm=arm["arm"],
        value=value,
        mean=arm["mean"],
        low=arm["low"],
        high=arm["high"],
        num_seeds=len(arm["seeds"]),
    )


def _place(point: SweepPoint) -> tuple[bool, Any, str]:
    return isinstance(point.value, str), point.value, point.arm


def _clear(point: SweepPoint, base: SweepPoint) -> bool:
    if point.low is None or base.high is None:
        return False
    return point.low > base.high


def _text(value: Value | None) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_interval(point: SweepPoint) -> str:
    return plus_minus(score(point.mean), point.low, point.high)
