"""A study's cells: every run that it takes, which of them cannot be, and why."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coadapt._errors import InputError
from coadapt._stats import random_partitions
from coadapt.arguments import training_arguments
from coadapt.config import to_plain
from coadapt.planning import InfeasibleBudget, Plan
from coadapt.settings import RunConfig, default_plan, resolve
from coadapt.study.budget import Counter, Spent
from coadapt.study.spec import Clusters, Study
from coadapt.tasks import TaskSuite

Role = Literal["trial", "final"]
Clustering = dict[str, tuple[str, ...]]
SPLIT: dict[Role, str] = {"trial": "validation", "final": "test"}

# What every cell starts from; the study's own `training` goes on top. Validation is scored halfway,
# and at the end by the Trainer itself, so that a table can show whether a plateau was reached.
TRAINING: dict[str, Any] = {
    "disable_tqdm": True,
    "eval_strategy": "steps",
    "eval_steps": 0.500001,  # 0.5 would do; it is part of the hash of results that are there
}
_RUN_KEYS = ("mixing", "batches", "bucket", "loss_mean")


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is tuned together and then run for every seed: an arm in a setting.

    Attributes:
        recipe: its name in the study.
        plan: the plan's name, for a recipe that is told who shares.
        budget: the summed rank, for a recipe that divides one.
        rows: training rows a task; None: as the suite says.
        tasks: the subset's name; None: all.
    """

    recipe: str
    plan: str | None
    budget: int | None
    rows: int | None
    tasks: str | None

    @property
    def arm(self) -> str:
        """What is compared: recipe, plan and budget."""
        parts = (self.recipe, self.plan, f"R{self.budget}" if self.budget else None)
        return "-".join(part for part in parts if part)

    @property
    def name(self) -> str:
        """A name that no other group of the study has, fit for a folder."""
        parts = (self.arm, f"n{self.rows}" if self.rows else None, self.tasks)
        return "-".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One run of a group: a trial scored on validation, or a final run scored on test."""

    group: Group
    role: Role
    trial: int
    seed: int
    config: RunConfig
    suite: TaskSuite
    num_rows: int  # of training, all tasks

    @property
    def id(self) -> str:
        """Where its result lies, below ``cells``."""
        number = self.trial if self.role == "trial" else ""
        return f"{self.group.name}/{self.role}{number}_seed{self.seed}"

    @property
    def run_id(self) -> str:
        """Where its run lies, below ``runs``: a final run may have been trained as a trial."""
        return f"{self.group.name}/trial{self.trial}_seed{self.seed}"

    @cached_property
    def hash(self) -> str:
        """Of everything that decides its result."""
        return f"{self.config.hash(self.suite)}-{SPLIT[self.role]}"

    @property
    def cost(self) -> float:
        """Training rows it goes through, what its time is guessed from."""
        return self.num_rows * self.config.training["num_train_epochs"]


class Grid:
    """All groups of a study.

    Args:
        study: the study.
        suite: its suite.
        where: what to call the study file in errors.

    Attributes:
        groups: those that can be run, in the order in which they are.
        infeasible: those that cannot, with the reason.
        spent: what each group of ``groups`` trains.
        num_weights: values of the base model.

    Raises:
        InputError: if any cell's configuration cannot be used; a budget that is too small for a
            plan is no error but a reason.
    """

    def __init__(self, study: Study, suite: TaskSuite, where: str) -> None:
        self.study, self.suite, self.where = study, suite, where
        self._suites: dict[tuple[int | None, str | None, int], TaskSuite] = {}
        self.groups: list[Group] = []
        self.infeasible: dict[Group, str] = {}
        self.spent: dict[Group, Spent] = {}
        self._refuse_bad_keys()
        # By subset of the tasks: its random partitions have the sizes that a plan has on it.
        self._plans = {
            tasks: {name: plan for key in study.plans for name, plan in self._named(key, tasks)}
            for tasks in study.tasks or (None,)
        }
        try:
            self._counter = Counter(study.model)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        self.num_weights = self._counter.num_weights
        for group in self._all_groups():
            self._place(group)
        self._check_arguments()

    def trials(self, group: Group) -> list[Cell]:
        """Return the runs by which a group is tuned."""
        count = len(self.study.trials_of(group.recipe))
        seeds = self.study.tuned_on
        return [self.cell(group, "trial", t, seed) for t in range(count) for seed in seeds]

    def finals(self, group: Group, trial: int) -> list[Cell]:
        """Return the runs of a group's chosen trial, one a seed."""
        return [self.cell(group, "final", trial, seed) for seed in self.study.seeds]

    def cell(self, group: Group, role: Role, trial: int, seed: int) -> Cell:
        """Return one cell."""
        study, entry = self.study, self.study.recipes[group.recipe]
        tried = study.trials_of(group.recipe)[trial]
        suite = self.suite_of(group, seed)
        plan = self._plan(group)
        data: dict[str, Any] = {
            **study.run,
            "model": to_plain(study.model),
            "recipe": to_plain(entry.recipe),
            "recipe_name": entry.recipe_name,
            "plan": to_plain(plan) if plan is not None else None,
            "seed": seed,
            "training": {
                **TRAINING,
                **study.training,
                **entry.training,
                "learning_rate": tried.learning_rate,
                "num_train_epochs": tried.epochs_at(group.rows),
            },
        }
        config = resolve(data, suite, where=f"{self.where}: run")  # the rest has been parsed
        return Cell(
            group=group,
            role=role,
            trial=trial,
            seed=seed,
            config=config,
            suite=suite,
            num_rows=self._num_rows(group),
        )

    def suite_of(self, group: Group, seed: int) -> TaskSuite:
        """Return the tasks and rows of a group for a seed."""
        draw = seed if self.study.redraw else 0
        key = (group.rows, group.tasks, draw)
        if key not in self._suites:
            whole = (group.rows, None, draw)
            if whole not in self._suites:
                self._suites[whole] = replace(
                    self.suite, draw=draw, max_rows=self._max_rows(group.rows)
                ).resolved()
            subset = self.tasks_of(group.tasks)
            if set(subset) == set(self.suite.names):
                self._suites[key] = self._suites[whole]
            else:
                self._suites[key] = self._suites[whole].subset(subset)
        return self._suites[key]

    def tasks_of(self, subset: str | None) -> tuple[str, ...]:
        """Return the tasks of a subset, or all."""
        return self.study.tasks[subset] if subset else self.suite.names

    def _num_rows(self, group: Group) -> int:
        # Every seed draws as many, so that only one seed's data are read here.
        suite = self.suite_of(group, self.study.seeds[0])
        return sum(len(suite.rows(task, "train")) for task in suite.names)

    def short_tasks(self) -> dict[str, int]:
        """Return the tasks that have fewer training rows than asked, with how many they have."""
        found: dict[str, int] = {}
        for group in self.groups:
            suite = self.suite_of(group, self.study.seeds[0])
            counts = {task: len(suite.rows(task, "train")) for task in suite.names}
            found |= {t: n for t, n in counts.items() if group.rows and n < group.rows}
        return found

    # Making ----------------------------------------------------------------------------------

    def _all_groups(self) -> Iterator[Group]:
        study = self.study
        for rows in study.rows or (None,):
            for tasks in study.tasks or (None,):
                for recipe, entry in study.recipes.items():
                    divides = entry.recipe.structure.divides
                    for budget in study.budgets if divides else (None,):
                        for plan in self._plans_of(entry.plans, tasks) or (None,):
                            yield Group(
                                recipe=recipe, plan=plan, budget=budget, rows=rows, tasks=tasks
                            )

    def _plans_of(self, names: tuple[str, ...], tasks: str | None) -> list[str]:
        """Return the plans' names, in place of random partitions those that were drawn."""
        found = self._plans[tasks]
        drawn = {name: [p for p in found if p.partition(".")[0] == name] for name in names}
        return [plan for name in names for plan in drawn[name] or [name]]

    def clusters_of(self, group: Group) -> Clustering:
        """Return who shares in a group that a plan was given to."""
        return self._plans[group.tasks][group.plan or ""]

    def _named(self, name: str, tasks: str | None) -> Iterator[tuple[str, Clustering]]:
        """Yield the clusters under a plan's name: one set of them, or as many as are drawn."""
        plan = self.study.plans[name]
        if isinstance(plan, Clusters):
            yield name, self._restricted(plan, tasks)
            return
        like = self.study.plans[plan.like]
        assert isinstance(like, Clusters)
        proposed = tuple(self._restricted(like, tasks).values())
        items = [t for t in self.tasks_of(tasks) if any(t in cluster for cluster in proposed)]
        drawn = random_partitions(
            items,
            [len(cluster) for cluster in proposed],
            plan.count,
            generator=np.random.default_rng(plan.seed),
            exclude=(proposed,),
        )
        for index, partition in enumerate(drawn):
            yield f"{name}.{index}", {f"c{i}": cluster for i, cluster in enumerate(partition)}

    def _restricted(self, plan: Clusters, tasks: str | None) -> Clustering:
        """Return what is left of the clusters on a subset of the tasks."""
        kept = {
            name: tuple(task for task in members if task in self.tasks_of(tasks))
            for name, members in plan.clusters.items()
        }
        return {name: members for name, members in kept.items() if members}

    def _plan(self, group: Group) -> Plan | None:
        if group.budget is None:
            return None
        tasks = self.tasks_of(group.tasks)
        if group.plan is None:
            recipe, rank = self.study.recipes[group.recipe].recipe, group.budget
            if recipe.structure.multiplies:
                rank = self._counter.matched_rank(recipe, tasks, group.budget)
            return default_plan(recipe, tasks, rank, group.recipe)
        plan = Plan.clustered(self._plans[group.tasks][group.plan], group.budget)
        try:
            plan.check(tasks)
        except InputError as error:
            raise InputError(f"plans.{group.plan}: {error}") from error
        return plan

    def _place(self, group: Group) -> None:
        if group.plan is not None and group.plan not in self._plans[group.tasks]:
            self.infeasible[group] = "no other partition of the tasks has these sizes"
            return
        try:
            plan = self._plan(group)
        except InfeasibleBudget as error:
            self.infeasible[group] = str(error)
            return
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error
        recipe = self.study.recipes[group.recipe].recipe
        try:
            spent = self._counter.spent(recipe, self.tasks_of(group.tasks), plan, group.budget)
        except InputError as error:
            raise InputError(f"{self.where}: recipes.{group.recipe}: {error}") from error
        if spent.fits:
            self.groups.append(group)
            self.spent[group] = spent
        else:
            self.infeasible[group] = (
                f"it trains {spent.trainable:,} values where rank {group.budget} allows "
                f"{spent.allowed:,} (2 % more or less); change its ranks"
            )

    # Checking --------------------------------------------------------------------------------

    def _refuse_bad_keys(self) -> None:
        for key in self.study.run:
            if key not in _RUN_KEYS:
                known = ", ".join(_RUN_KEYS)
                raise InputError(f"{self.where}: run.{key} cannot be set in a study; {known} can")
        for key in ("rows", "held_out"):
            for task in self.suite.tasks if getattr(self.study, key) else ():
                if task.max_rows is not None or task.num_shots is not None:
                    raise InputError(
                        f"{self.where}: {key}: task '{task.name}' limits its rows itself; drop its "
                        "max_rows or num_shots"
                    )

    def _max_rows(self, rows: int | None) -> dict[str, int]:
        limits = self.suite.max_rows
        given = limits if isinstance(limits, dict) else {"train": limits} if limits else {}
        return {**given, **self.study.held_out, **({"train": rows} if rows else {})}

    def _check_arguments(self) -> None:
        """Refuse what a cell would refuse when it starts: its data and its arguments."""
        for group in self.groups:
            for trial in range(len(self.study.trials_of(group.recipe))):
                cell = self.cell(group, "trial", trial, self.study.seeds[0])
                try:
                    training_arguments(cell.config, cell.suite, Path("unused"))
                except InputError as error:
                    own = self.study.recipes[group.recipe].training
                    place = f"{self.where}: recipes.{group.recipe}" if own else self.where
                    raise InputError(f"{place}: {error}") from error
            suite = self.suite_of(group, self.study.seeds[0])
            for split in ("validation", "test"):  # the same for all seeds
                for task in suite.names:
                    if not len(suite.rows(task, split)):
                        raise InputError(f"{self.where}: task '{task}' has no {split} rows")
