"""What a run was asked to do: one resolved file that holds everything."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt.backbone import ModelConfig
from coadapt.config import LATER, apply_overrides, load_yaml, parse, to_plain
from coadapt.model import LossMean
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES, find_recipe
from coadapt.tasks import TaskSuite, load_suite
from coadapt.tasks.mixing import Composition, Mixing, Proportional


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result but the suite.

    Args:
        model: the base model, see :class:`coadapt.backbone.ModelConfig`.
        recipe: what is trained.
        recipe_name: the row of ``coadapt methods`` that it came from, if any.
        plan: who shares, with ranks.
        mixing: how often each task is drawn.
        batches: a step's rows are of any tasks (``mixed``), of every task alike (``balanced``,
            taken by itself where a regularizer compares tasks), or of a single one
            (``single_task``).
        bucket: rows are sorted by length within windows of that many steps (at most a quarter of
            an epoch), so that batches pad little; 1 leaves the order random.
        packing: a decoder's rows stand one after the other in one sequence a micro-batch, without
            padding, and do not see each other.
        loss_mean: a step's loss is the mean over its tasks, its rows, or its labels (``tokens``).
        best: which checkpoint is kept: None the last; ``overall`` the one of the best mean
            validation score; a task's name the one of that task's best validation score.
        seed: of adapters, heads, order and dropout.
        training: handed to ``transformers.TrainingArguments`` untouched.
        adapted_from: the hash of the adapter of the run that this one takes frozen parts from.
    """

    model: ModelConfig
    recipe: Recipe
    recipe_name: str | None = None
    plan: Plan | None = None
    mixing: Mixing = Proportional()
    batches: Composition = "mixed"
    bucket: int = 16
    packing: bool = field(default=False, metadata=LATER)
    loss_mean: LossMean = "tasks"
    best: str | None = None
    seed: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    adapted_from: str | None = field(default=None, metadata=LATER)

    def hash(self, suite: TaskSuite) -> str:
        """Return a short hash of everything that decides the result."""
        plain = [to_plain(self, hashed=True), suite.to_plain(hashed=True)]
        text = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_train_file(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    seed: int | None = None,
    plan: Plan | None = None,
    data_root: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> tuple[RunConfig, TaskSuite]:
    """Read ``train.yaml`` and the suite it names.

    Args:
        path: the file; ``suite:`` in it is a path beside it, a ready suite's name, or a mapping.
        overrides: ``key=value`` assignments, dotted.
        seed: replaces the file's.
        plan: replaces the file's plan and budget.
        data_root: reads ``DIR/<task>/<split>.jsonl`` instead of the suite's sources.
        only: the tasks to take; all if not given.

    Raises:
        InputError: naming the file and key.
    """
    path = Path(path)
    data = load_yaml(path)
    if "suite" not in data:
        raise InputError(f"{path}: 'suite' is missing; name a suite file or a ready suite")
    ready, suite_overrides = split_overrides(overrides)
    if plan is not None:
        data = {k: v for k, v in data.items() if k != "budget"} | {"plan": to_plain(plan)}
    data = apply_overrides(_expand(data, str(path), ready), ready)
    if seed is not None:
        data["seed"] = seed
    suite = load_suite(
        beside(path, data.pop("suite")),
        overrides=suite_overrides,
        data_root=data_root,
        only=only,
    )
    return resolve(data, suite, where=str(path)), suite


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide ``key=value`` assignments into the run's and, without its prefix, the suite's."""
    suite = [text.removeprefix("suite.") for text in overrides if text.startswith("suite.")]
    return [text for text in overrides if not text.startswith("suite.")], suite


def beside(path: Path, suite: Any) -> Any:
    """A suite file is looked for beside the file that names it; a ready suite has no suffix."""
    if not isinstance(suite, (str, dict)):
        raise InputError(f"{path}: suite: found {suite!r}; give a file, a ready suite or a mapping")
    if isinstance(suite, str) and Path(suite).suffix in (".yaml", ".yml"):
        return path.parent / suite
    return suite


def _expand(data: dict[str, Any], where: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Spell out the short forms that an override may reach into."""
    data = dict(data)
    if isinstance(data.get("model"), str):
        data["model"] = {"name": data["model"]}
    recipe = data.get("recipe")
    if isinstance(recipe, str) and any(text.startswith("recipe.") for text in overrides):
        data["recipe"] = to_plain(find_recipe(recipe))
        data["recipe_name"] = recipe
    if isinstance(data.get("plan"), str):
        file = Path(where).parent / data["plan"]
        data["plan"] = load_yaml(file)
    return data


def resolve(data: dict[str, Any], suite: TaskSuite, *, where: str) -> RunConfig:
    """Return the configuration that plain data mean, with the plan made from the budget.

    Args:
        data: the keys of :class:`RunConfig`, with ``recipe`` a name or a mapping, ``model`` a name
            or a mapping, and ``budget`` (the summed rank, default 8) where no plan is given.
        suite: the tasks.
        where: what to call the data in errors.
    """
    data = _expand(data, where, ())
    budget = data.pop("budget", None)
    if isinstance(data.get("recipe"), str):
        data["recipe_name"] = data["recipe"]
        data["recipe"] = to_plain(find_recipe(data["recipe"]))
    plan = data.get("plan")
    if plan is not None and not (isinstance(plan, dict) and "blocks" in plan):
        raise InputError(f"{where}: plan has no 'blocks'; see 'who shares' in the README")
    config = parse(RunConfig, data, where)
    _check_best(config, suite, where)
    if any(part.several_tasks for part in config.recipe.regularizers):
        if config.batches == "single_task":
            raise InputError(
                f"{where}: batches: a regularizer compares tasks, which a batch of one task has "
                "none of; take 'balanced' or 'mixed'"
            )
        config = replace(config, batches=data.get("batches", "balanced"))
    if config.batches == "balanced" and config.mixing.kind == "temperature":
        raise InputError(
            f"{where}: mixing: balanced batches draw every task alike; drop it, or take batches: "
            "mixed"
        )
    if config.recipe.balancing is not None and config.loss_mean != "tasks":
        raise InputError(
            f"{where}: loss_mean: a balancing weighs the tasks' mean losses; take 'tasks', not "
            f"'{config.loss_mean}'"
        )
    return replace(config, plan=_plan(config, suite, budget, where))


def _check_best(config: RunConfig, suite: TaskSuite, where: str) -> None:
    rules = ["overall", *suite.names]
    if config.best is not None and config.best not in rules:
        hint = nearest(config.best, rules)
        raise InputError(f"{where}: best: '{config.best}' is neither 'overall' nor a task{hint}")


def _plan(config: RunConfig, suite: TaskSuite, budget: Any, where: str) -> Plan | None:
    if not config.recipe.structure.divides:
        if config.plan is not None or budget is not None:
            what = "plan" if config.plan is not None else "budget"
            name = config.recipe_name or config.recipe.structure.kind
            raise InputError(f"{where}: recipe '{name}' has no rank axis; drop {what}")
        return None
    if config.plan is not None:
        if budget is not None and budget != config.plan.budget:
            raise InputError(
                f"{where}: budget is {budget} but the plan's ranks sum to {config.plan.budget}; "
                "drop one of the two"
            )
        config.plan.check(suite.names)
        return config.plan
    budget = 8 if budget is None else budget
    if not isinstance(budget, int) or isinstance(budget, bool):
        raise InputError(f"{where}: budget must be a whole number, not {budget!r}")
    return default_plan(config.recipe, suite.names, budget, config.recipe_name)


def default_plan(recipe: Recipe, tasks: Sequence[str], budget: int, name: str | None) -> Plan:
    """Return the plan that a recipe's way of sharing makes of a rank budget.

    Raises:
        InputError: for clusters, which only a plan can name.
    """
    match recipe.sharing:
        case "shared":
            return Plan.shared(tasks, budget)
        case "private":
            return Plan.private(tasks, budget)
        case "shared_private":
            return Plan.shared_private(tasks, budget)
        case "cooperative":
            return Plan.cooperative(tasks, budget)
    raise InputError(
        f"recipe '{name or recipe.structure.kind}' needs a plan that says which tasks share; write "
        "plan: {blocks: {NAME: {rank: R, tasks: [...]}, ...}} or name a plan.yaml"
    )


def merge_for_api(
    model: str | dict[str, Any] | ModelConfig,
    recipe: str | dict[str, Any] | Recipe,
    plan: str | Path | dict[str, Any] | Plan | None,
    **rest: Any,
) -> dict[str, Any]:
    """Return the plain data that arguments of :func:`coadapt.train` mean."""
    data: dict[str, Any] = {k: v for k, v in rest.items() if v is not None}
    data["model"] = to_plain(model) if isinstance(model, ModelConfig) else model
    data["recipe"] = to_plain(recipe) if isinstance(recipe, Recipe) else recipe
    named = recipe if isinstance(recipe, str) else _name_of(recipe)
    if named is not None:
        data["recipe_name"] = named
    if plan is not None:
        data["plan"] = to_plain(plan) if isinstance(plan, Plan) else plan
        if isinstance(plan, (str, Path)):
            data["plan"] = load_yaml(plan)
    return data


def _name_of(recipe: dict[str, Any] | Recipe) -> str | None:
    return next((name for name, row in RECIPES.items() if row.recipe == recipe), None)
