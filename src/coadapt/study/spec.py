"""study.yaml: what is compared with what, on which data, how often and how it is tuned."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from coadapt._errors import InputError, nearest
from coadapt.backbone import ModelConfig
from coadapt.config import apply_overrides, load_yaml, parse, to_plain
from coadapt.recipe import Recipe
from coadapt.recipes import find_recipe
from coadapt.settings import beside, split_overrides
from coadapt.tasks import TaskSuite, load_suite

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,39}")
_HELD_OUT = ("validation", "test")
# What the study itself decides for each cell.
_FIXED = ("learning_rate", "num_train_epochs", "max_steps", "seed", "data_seed", "output_dir")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting that is tried for a recipe on validation.

    Args:
        learning_rate: peak rate, positive.
        epochs: passes over the training rows, positive; or by number of training rows a task.
    """

    learning_rate: float
    epochs: float | dict[str, float]

    def __post_init__(self) -> None:
        """Check the ranges."""
        epochs = self.epochs.values() if isinstance(self.epochs, dict) else (self.epochs,)
        if not all(0 < number < math.inf for number in (self.learning_rate, *epochs)):
            raise InputError(f"learning_rate and epochs must be positive, not {to_plain(self)}")

    def epochs_at(self, rows: int | None) -> float:
        """Return the epochs for that many training rows a task."""
        if not isinstance(self.epochs, dict):
            return self.epochs
        if str(rows) not in self.epochs:
            known = ", ".join(self.epochs)
            wanted = f"{rows} rows" if rows is not None else "a study without rows"
            raise InputError(f"given for {known} rows, not for {wanted}")
        return self.epochs[str(rows)]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A recipe of the study.

    Args:
        recipe: its parts.
        recipe_name: the row of ``coadapt methods`` that they came from, if any.
        plans: for a recipe that needs to be told who shares: names under ``plans``.
        trials: in place of the study's; as many as every other recipe has.
        training: for its ``TrainingArguments``, on top of the study's.
    """

    recipe: Recipe
    recipe_name: str | None = None
    plans: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """A plan by name: which tasks share; ranks come from the budget."""

    kind: Literal["clusters"] = "clusters"
    clusters: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Check that there is something to share."""
        if not self.clusters:
            raise InputError("clusters: there is none; give one or more, each with its tasks")
        for name, tasks in self.clusters.items():
            _check_tasks(f"clusters.{name}", tasks)


@dataclass(frozen=True, kw_only=True)
class RandomPartitions:
    """Plans with the cluster sizes of another, tasks dealt at random: the null to beat.

    All partitions of these sizes but that one are taken if they are not more than ``count``.
    """

    kind: Literal["random"] = "random"
    like: str
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the range."""
        if self.count < 1:
            raise InputError(f"count must be at least 1, not {self.count}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, not {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Recipes x budgets x plans x seeds over one suite, at each number of rows and set of tasks.

    Args:
        name: what to call it.
        model: the base model.
        recipes: by the name they have in the tables.
        baseline: the recipe that the others are compared with.
        budgets: summed ranks; recipes without a rank axis run once.
        seeds: of adapters, heads, order, dropout and, with ``redraw``, of the training rows.
        redraw: each seed draws its own training rows where the suite limits them, so that an
            interval over seeds covers that too; held-out rows stay.
        rows: training rows a task; empty: what the suite says.
        held_out: rows a task of the ``validation`` and ``test`` splits, at most.
        tasks: named subsets of the suite's tasks; empty: all of them.
        plans: who shares, for the recipes that need to be told.
        trials: what is tried for each recipe on the validation rows of ``tuning_seeds``.
        tuning_seeds: by default the first seed.
        training: for the ``TrainingArguments`` of every cell.
        run: other keys of a train.yaml, such as ``batches`` or ``mixing``.
        effect: the difference in the mean score that the study is to be able to show.
        threads: of each worker; a result may depend on it in the last bit.
    """

    name: str = "study"
    model: ModelConfig
    recipes: dict[str, Entry]
    baseline: str
    trials: tuple[Trial, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seeds: tuple[int, ...] = ()
    redraw: bool = True
    budgets: tuple[int, ...] = (8,)
    rows: tuple[int, ...] = ()
    held_out: dict[Literal["validation", "test"], int] = field(default_factory=dict)
    tasks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plans: dict[str, Clusters | RandomPartitions] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    effect: float = 0.01
    threads: int = 1

    def __post_init__(self) -> None:
        """Check what can be checked without the suite."""
        for key in ("recipes", "plans", "tasks"):
            _check_names(key, getattr(self, key))
        for name, tasks in self.tasks.items():
            _check_tasks(f"tasks.{name}", tasks)
        _check_lists(self)
        if self.baseline not in self.recipes:
            hint = nearest(self.baseline, self.recipes)
            raise InputError(f"baseline '{self.baseline}' is not among the recipes{hint}")
        counts = {name: len(self.trials_of(name)) for name in self.recipes}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(
                f"every recipe gets the same number of trials, one or more; found {found}"
            )
        for name, entry in self.recipes.items():
            _check_plans(name, entry, self)
            _check_training(f"recipes.{name}.training", entry.training)
            _check_epochs(f"recipes.{name}.trials", entry.trials, self.rows)
        _check_random(self.plans)
        _check_training("training", self.training)
        _check_epochs("trials", self.trials, self.rows)

    def trials_of(self, recipe: str) -> tuple[Trial, ...]:
        """Return what is tried for a recipe."""
        return self.recipes[recipe].trials or self.trials

    @property
    def tuned_on(self) -> tuple[int, ...]:
        """The seeds whose validation rows choose the trial."""
        return self.tuning_seeds or self.seeds[:1]


def _check_names(key: str, names: Iterable[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{key}: '{name}' cannot be a name in a study, where it becomes part of file "
                "names; take up to 40 letters, digits and '_', a letter or digit first"
            )


def _check_tasks(where: str, tasks: tuple[str, ...]) -> None:
    if not tasks:
        raise InputError(f"{where} names no task; name one or more")
    for index, task in enumerate(tasks):
        if task in tasks[:index]:
            raise InputError(f"{where} names task '{task}' twice; remove one")


def _check_lists(study: Study) -> None:
    for key in ("seeds", "tuning_seeds", "budgets", "rows"):
        values = getattr(study, key)
        if len(set(values)) < len(values):
            raise InputError(f"{key}: a value stands twice in {list(values)}")
    if not study.seeds or not study.recipes or not study.budgets:
        raise InputError("a study needs at least one recipe, one seed and one budget")
    counts = (*study.budgets, *study.rows, *study.held_out.values(), study.threads)
    if min(counts) < 1:
        raise InputError("budgets, rows, held_out and threads must be at least 1")
    for key in ("seeds", "tuning_seeds"):
        for seed in getattr(study, key):
            if not 0 <= seed < 2**32:  # what every library's generator takes
                raise InputError(f"{key}: a seed must be 0 or more and below 2^32, not {seed}")
    if not 0 < study.effect < math.inf:
        raise InputError(f"effect must be positive, not {study.effect}")


def _check_plans(name: str, entry: Entry, study: Study) -> None:
    needs = entry.recipe.structure.divides and entry.recipe.sharing in (None, "clustered")
    if entry.plans and not needs:
        raise InputError(f"recipes.{name}.plans: this recipe makes its plan itself; drop plans")
    if needs and not entry.plans:
        known = f"; known: {', '.join(study.plans)}" if study.plans else ", and add it there"
        raise InputError(f"recipes.{name} needs plans: names under 'plans'{known}")
    for index, plan in enumerate(entry.plans):
        if plan not in study.plans:
            raise InputError(f"recipes.{name}.plans: no plan '{plan}'{nearest(plan, study.plans)}")
        if plan in entry.plans[:index]:
            raise InputError(f"recipes.{name}.plans names '{plan}' twice; remove one")


def _check_random(plans: dict[str, Clusters | RandomPartitions]) -> None:
    proposed = [name for name, plan in plans.items() if isinstance(plan, Clusters)]
    for name, plan in plans.items():
        if not isinstance(plan, RandomPartitions):
            continue
        like = plans.get(plan.like)
        if not isinstance(like, Clusters):
            hint = nearest(plan.like, proposed)
            raise InputError(
                f"plans.{name}.like: '{plan.like}' is no plan of kind 'clusters'{hint}"
            )
        tasks = [task for cluster in like.clusters.values() for task in cluster]
        for task in tasks:
            if tasks.count(task) > 1:
                raise InputError(f"plans.{name}.like: '{plan.like}' has '{task}' in two clusters")


def _check_training(where: str, training: dict[str, Any]) -> None:
    for key in _FIXED:
        if key in training:
            raise InputError(f"{where}.{key} is decided by the study (trials, seeds); drop it")


def _check_epochs(where: str, trials: tuple[Trial, ...], rows: tuple[int, ...]) -> None:
    for index, trial in enumerate(trials):
        for number in rows or (None,):
            try:
                trial.epochs_at(number)
            except InputError as error:
                raise InputError(f"{where}.{index}.epochs: {error}") from error


def read_study(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    data_root: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> tuple[Study, TaskSuite]:
    """Read ``study.yaml`` and the suite it names.

    Args:
        path: the file; ``suite:`` in it is a path beside it, a ready suite's name, or a mapping.
        overrides: ``key=value`` assignments, dotted; ``suite.key=value`` for the suite.
        data_root: reads ``DIR/<task>/<split>.jsonl`` instead of the suite's sources.
        only: the suite's tasks to take; all if not given.

    Raises:
        InputError: naming the file and key.
    """
    path, data = Path(path), load_yaml(path)
    own, suite_overrides = split_overrides(overrides)
    if isinstance(data.get("model"), str):  # an override may reach into it
        data["model"] = {"name": data["model"]}
    data = apply_overrides(data, own)
    if "suite" not in data:
        raise InputError(f"{path}: 'suite' is missing; name a suite file or a ready suite")
    named = beside(path, data.pop("suite"))
    suite = load_suite(named, overrides=suite_overrides, data_root=data_root, only=only)
    return parse_study(data, suite, str(path)), suite


def parse_study(data: dict[str, Any], suite: TaskSuite, where: str) -> Study:
    """Return the study that plain data mean, checked against its suite.

    Raises:
        InputError: naming the key.
    """
    data = dict(data)
    if isinstance(data.get("model"), str):
        data["model"] = {"name": data["model"]}
    if isinstance(data.get("recipes"), list):
        data["recipes"] = _by_name(data["recipes"], where)
    if isinstance(data.get("held_out"), dict):
        for split in data["held_out"]:
            if split not in _HELD_OUT:
                hint = nearest(split, _HELD_OUT)
                raise InputError(f"{where}: unknown key 'held_out.{split}'{hint}")
    if isinstance(data.get("recipes"), dict):
        data["recipes"] = {
            name: _expand(name, entry, where) for name, entry in data["recipes"].items()
        }
    study = parse(Study, data, where)
    places = {f"tasks.{name}": names for name, names in study.tasks.items()}
    for name, plan in study.plans.items():
        for cluster, names in plan.clusters.items() if isinstance(plan, Clusters) else ():
            places[f"plans.{name}.clusters.{cluster}"] = names
    for place, names in places.items():
        for task in names:
            if task not in suite.names:
                hint = nearest(task, suite.names)
                raise InputError(f"{where}: {place}: the suite has no task '{task}'{hint}")
    return study


def _by_name(recipes: list[Any], where: str) -> dict[str, None]:
    for index, name in enumerate(recipes):
        if not isinstance(name, str):
            hint = "give a name, or a mapping in place of the list"
            raise InputError(f"{where}: recipes.{index}: found {name!r}; {hint}")
        if name in recipes[:index]:
            raise InputError(f"{where}: recipes: '{name}' stands twice; remove one")
    return dict.fromkeys(recipes)


def _expand(name: str, entry: Any, where: str) -> Any:
    """Spell out a recipe that is named, by the entry's own name if by no other."""
    if entry is not None and not isinstance(entry, dict):
        raise InputError(f"{where}: recipes.{name}: found {entry!r}; give a mapping or nothing")
    entry = dict(entry or {})
    recipe = entry.setdefault("recipe", name)
    if isinstance(recipe, str):
        try:
            entry["recipe"] = to_plain(find_recipe(recipe))
        except InputError as error:
            raise InputError(f"{where}: recipes.{name}: {error}") from error
        entry["recipe_name"] = recipe
    return entry
