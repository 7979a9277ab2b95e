"""`coadapt compare`: finished runs or studies, paired by seed and test row."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coadapt._errors import InputError, nearest
from coadapt._files import read_json
from coadapt._folders import STUDY, kind_of
from coadapt.config import changed_keys, to_plain
from coadapt.loading import Loader
from coadapt.predictions import Predictions, predictions_file, read_predictions
from coadapt.runs import Run, load_run
from coadapt.study.comparison import Arm, compare_arms, describe_arm, finite
from coadapt.study.records import CELLS
from coadapt.tasks import METRICS, Task, TaskSuite, load_suite

logger = logging.getLogger(__name__)

_FEW = 3  # differing keys are named, so many at most


def compare(
    paths: Sequence[str | Path], *, baseline: str | None = None, effect: float = 0.01
) -> dict[str, Any]:
    """Compare finished runs, or studies, on the test rows that they share.

    Runs that differ in nothing but the seed are one arm. A run that was not scored on test yet is
    scored. Studies are compared arm by arm, each with the first one's arm of the same name.

    Args:
        paths: folders of runs, or of studies.
        baseline: the arm that runs are compared with; the first one's if None. Studies are always
            compared with the first.
        effect: see :func:`coadapt.study.compare_arms`.

    Returns:
        ``tables`` as of :func:`coadapt.study.summarize`, less what only a study knows, and
        ``notes``: which folders an arm is made of, and what was left out. None stands where a
        number cannot be told, as for an interval over one seed.

    Raises:
        InputError: if a folder is neither, has not finished, or was tested on other rows.
    """
    folders = [Path(path) for path in paths]
    kinds = {kind_of(folder) for folder in folders}
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a folder is named twice")
    if kinds == {"study"} and len(folders) > 1:
        if baseline is not None:
            raise InputError(
                f"baseline '{baseline}': studies are compared with the first one; drop it, or name "
                "another study first"
            )
        return finite(_compare_studies(folders, effect))
    if kinds != {"run"} or len(folders) < 2:
        raise InputError("give two runs or more, or two studies or more, not some of each")
    return finite(_compare_runs(folders, baseline, effect))


# Runs --------------------------------------------------------------------------------------------


def _compare_runs(folders: list[Path], baseline: str | None, effect: float) -> dict[str, Any]:
    loader = Loader()
    runs = [load_run(folder, loader=loader) for folder in folders]
    names = [t for t in runs[0].suite.names if all(t in run.suite.names for run in runs)]
    if not names:
        raise InputError("the runs have no task in common")
    predictions = [_predictions(run) for run in runs]
    _refuse_other_rows(folders, predictions, names)
    tasks = [runs[0].suite.task(name) for name in names]
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(json.dumps(_without_seed(run), sort_keys=True), []).append(index)
    labels = _labels([runs[members[0]] for members in groups.values()])
    arms = []
    for label, members in zip(labels, groups.values(), strict=True):
        seeds = [runs[i].config.seed for i in members]
        if len(set(seeds)) < len(seeds):
            twice = ", ".join(str(folders[i]) for i in members)
            raise InputError(f"the same run stands more than once: {twice}")
        found = {runs[i].config.seed: predictions[i] for i in members}
        arms.append(_arm(label, found, tasks))
    base = _find(arms, baseline)
    notes = [
        f"{label}: {', '.join(str(folders[i]) for i in members)}"
        for label, members in zip(labels, groups.values(), strict=True)
    ]
    dropped = sorted({t for run in runs for t in run.suite.names} - set(names))
    if dropped:
        notes.append(f"left out, since not every run has it: {', '.join(dropped)}")
    others = [arm for arm in arms if arm is not base]
    return {"tables": [_table(arms, base, others, tasks, effect)], "notes": notes}


def _predictions(run: Run) -> Predictions:
    path = run.path / predictions_file("test")
    if not path.is_file():
        logger.warning("%s has not been scored on test; doing so", run.path)
        run.evaluate("test", num_resamples=0)
    return read_predictions(path)


def _refuse_other_rows(
    folders: Sequence[Path], predictions: Sequence[Predictions], names: Sequence[str]
) -> None:
    for folder, found in zip(folders[1:], predictions[1:], strict=True):
        for name in names:
            if name not in found or not np.array_equal(found[name][0], predictions[0][name][0]):
                raise InputError(
                    f"{folder} and {folders[0]} were tested on other rows of task '{name}'; only "
                    "runs on the same test rows can be paired"
                )


def _without_seed(run: Run) -> dict[str, Any]:
    plain = {**to_plain(run.config), "suite": run.suite.to_plain()}
    plain["suite"].pop("draw")
    return {key: value for key, value in plain.items() if key != "seed"}


def _labels(runs: Sequence[Run]) -> list[str]:
    """Name arms by recipe and budget, and where that is not enough by what else differs."""
    plains = [_without_seed(run) for run in runs]
    short = []
    for run in runs:
        plan = run.config.plan
        name = run.config.recipe_name or run.config.recipe.structure.kind
        short.append(f"{name}-R{plan.budget}" if plan is not None else name)
    labels = []
    for index, name in enumerate(short):
        first = short.index(name)
        label = name
        if first != index:
            old, new = plains[first], plains[index]
            keys = [found for key in new for found in _differing(key, old, new)]
            label = f"{name} ({', '.join(keys[:_FEW])}{', ...' if len(keys) > _FEW else ''})"
        labels.append(label if label not in labels else f"{label} #{index + 1}")
    return labels


def _differing(key: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return ``key=value`` for what is new, below and with a key."""
    found = []
    for name in changed_keys(key, old.get(key), new.get(key)):
        value: Any = new
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        short = name.rpartition(".")[2]
        found.append(f"{short}={value}" if value is not None else f"{short} not set")
    return found


def _find(arms: Sequence[Arm], name: str | None) -> Arm:
    if name is None:
        return arms[0]
    names = [arm.name for arm in arms]
    if name not in names:
        raise InputError(f"no arm is called '{name}'{nearest(name, names)}")
    return arms[names.index(name)]


# Studies -----------------------------------------------------------------------------------------


def _compare_studies(folders: list[Path], effect: float) -> dict[str, Any]:
    suites = [load_suite(read_json(folder / STUDY)["suite"]) for folder in folders]
    found = [_groups(folder) for folder in folders]
    common = [name for name in found[0] if all(name in groups for groups in found)]
    if not common:
        raise InputError("the studies have no finished group of the same name")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    tables = []
    for name in common:
        tasks = _tasks_of(name, suites[0], found)
        _refuse_other_rows(
            folders,
            [next(iter(groups[name].values())) for groups in found],
            [t.name for t in tasks],
        )
        arms = [
            _arm(f"{study}: {name}", groups[name], tasks)
            for study, groups in zip(names, found, strict=True)
        ]
        tables.append(_table(arms, arms[0], arms[1:], tasks, effect))
    alone = sorted({name for groups in found for name in groups} - set(common))
    notes = [f"not in every study: {', '.join(alone)}"] if alone else []
    return {"tables": tables, "notes": notes}


def _groups(folder: Path) -> dict[str, dict[int, Predictions]]:
    """Return what a study's final cells predicted, by group and seed."""
    found: dict[str, dict[int, Predictions]] = {}
    for path in sorted((folder / CELLS).glob("*/final_seed*.predictions.json")):
        record = read_json(path.with_name(path.name.replace(".predictions", "")))
        if record["run"]["status"] == "finished":
            cell = record["cell"]
            found.setdefault(cell["group"], {})[cell["seed"]] = read_predictions(path)
    return found


def _tasks_of(
    name: str, suite: TaskSuite, found: Sequence[dict[str, dict[int, Predictions]]]
) -> list[Task]:
    there = next(iter(found[0][name].values()))
    return [task for task in suite.tasks if task.name in there]


# Both --------------------------------------------------------------------------------------------


def _arm(name: str, predictions: dict[int, Predictions], tasks: Sequence[Task]) -> Arm:
    scores = {
        seed: {task.name: _score(task, *found[task.name]) for task in tasks}
        for seed, found in predictions.items()
    }
    return Arm(name=name, scores=scores, predictions=predictions)


def _score(task: Task, labels: np.ndarray, predicted: np.ndarray) -> float:
    num_labels = task.num_outputs if task.kind == "classification" else None
    return METRICS[task.metrics[0]].function(labels, predicted, num_labels)


def _table(
    arms: Sequence[Arm], base: Arm, others: Sequence[Arm], tasks: Sequence[Task], effect: float
) -> dict[str, Any]:
    names = [task.name for task in tasks]
    compared = compare_arms(others, base, tasks, effect=effect)
    return {
        "rows": None,
        "subset": None,
        "budget": None,
        "tasks": names,
        "baseline": base.name,
        "arms": [{**describe_arm(arm, names), **compared.get(arm.name, {})} for arm in arms],
        "partitions": [],
    }
