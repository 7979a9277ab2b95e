"""What may be merged: runs of one base model with different tasks, and the updates they hold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coadapt._errors import InputError
from coadapt._files import read_json
from coadapt.loading import Loader
from coadapt.merging.composing import Folds
from coadapt.model import MultiTaskModel
from coadapt.runs import ADAPTER, Run, load_run
from coadapt.saving import saved_form
from coadapt.tasks import Task, TaskSuite


def open_runs(runs: Sequence[Run | str | Path], loader: Loader) -> list[Run]:
    """Open runs whose updates can be merged.

    Args:
        runs: finished runs, or their folders.
        loader: keeps what they share.

    Raises:
        InputError: if there is none, or one has no low-rank update, another base model, or another
            way to read a row.
    """
    opened = [run if isinstance(run, Run) else load_run(run, loader=loader) for run in runs]
    if not opened:
        raise InputError("there is no run to merge; give at least one")
    for run in opened:
        _refuse_other_forms(run)
        _refuse_other_base(run, opened[0])
    return opened


def union(runs: Sequence[Run]) -> TaskSuite:
    """Return a suite of all runs' tasks with the held-out rows that they have.

    Raises:
        InputError: if a task stands twice, or the suites hold out different rows.
    """
    suites, paths = [run.suite for run in runs], [run.path for run in runs]
    first, owner = suites[0], {}
    tasks: list[Task] = []
    for suite, path in zip(suites, paths, strict=True):
        for name, a, b in (("seed", suite.seed, first.seed), ("split", suite.split, first.split)):
            if a != b:
                raise InputError(
                    f"the suites of {path} and {paths[0]} differ in {name} ({a} and {b}), which "
                    "decides the rows held out; train on suites with the same one"
                )
        for task in suite.tasks:
            if task.name in owner:
                raise InputError(
                    f"task '{task.name}' is in {owner[task.name]} and in {path}; a merged run has "
                    "one head a task: remove it from one of them (Run.remove_task)"
                )
            owner[task.name] = path
            unlimited = task.max_rows is None and task.num_shots is None
            tasks.append(replace(task, max_rows=suite.max_rows) if unlimited else task)
    if len(suites) == 1:
        return first
    names = dict.fromkeys(suite.name for suite in suites)
    return replace(first, name="+".join(names), tasks=tuple(tasks), max_rows=None)


def distinct_folds(model: MultiTaskModel) -> dict[str, Folds]:
    """Return a model's updates by the names of the tasks that use each, joined by ``+``.

    Tasks that use the same blocks have the same update.
    """
    users: dict[tuple[int, ...], list[str]] = {}
    for index, task in enumerate(model.task_names):
        blocks = tuple(k for k, tasks in enumerate(model.attached.owners) if index in tasks)
        users.setdefault(blocks, []).append(task)
    return {"+".join(tasks): model.fold(tasks[0]) for tasks in users.values()}


def _refuse_other_forms(run: Run) -> None:
    structure, _ = saved_form(run.path / ADAPTER)
    if not structure.mergeable:
        raise InputError(
            f"{run.path}: structure '{structure.kind}' ships as '{structure.ships_as}' and depends "
            f"on {structure.depends_on}, so no task has one low-rank update to merge; train a "
            "recipe that merges (coadapt methods), such as lora, private or m_lora"
        )


def _refuse_other_base(run: Run, first: Run) -> None:
    """Refuse runs whose heads or updates would not meet what they were trained on."""
    mine, theirs = (read_json(r.path / ADAPTER / "adapter.json") for r in (run, first))
    # Before the fingerprints, which differ where a pooler is not loaded.
    for name, a, b in (
        ("pooling", mine["pooling"], theirs["pooling"]),
        ("max_length", run.config.model.max_length, first.config.model.max_length),
        ("chat", run.config.model.chat, first.config.model.chat),
    ):
        if a != b:
            raise InputError(
                f"{run.path} has model.{name} {a}, {first.path} {b}; a merged run reads all "
                f"tasks' rows in one way: train with the same model.{name}"
            )
    if mine["base_fingerprint"] != theirs["base_fingerprint"]:
        raise InputError(
            f"{run.path} was trained on base model '{mine['base']}' (fingerprint "
            f"{mine['base_fingerprint']}), {first.path} on '{theirs['base']}' "
            f"({theirs['base_fingerprint']}); merge runs of one base model"
        )
