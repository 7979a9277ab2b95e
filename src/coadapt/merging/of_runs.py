"""Merging finished runs: one update for all their tasks, each with the head it had."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from coadapt._environment import describe_command, describe_environment
from coadapt._errors import InputError
from coadapt._files import read_json, write_json
from coadapt._seeds import named_seed
from coadapt._sheet import Sheet, score, signed
from coadapt.config import parse, to_plain
from coadapt.evaluation import Score, TaskScores
from coadapt.inits import Start
from coadapt.loading import Loader
from coadapt.merge_methods import Merge
from coadapt.merging.combining import Merged, merge_folds
from coadapt.merging.composing import Folds
from coadapt.merging.sources import distinct_folds, open_runs, union
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import SHARED_BLOCK, Block, Plan
from coadapt.recipe import Recipe
from coadapt.runs import ADAPTER, RESULT, Run, load_run, write_config
from coadapt.saving import save_adapter
from coadapt.settings import RunConfig
from coadapt.structures import Single
from coadapt.tasks import TaskSuite


@dataclass(frozen=True, kw_only=True, eq=False)
class MergedRun:
    """A run that was merged of others.

    Args:
        run: the new run.
        merged: its update, without which it would be the base model.
        before: by task the scores of the run it came from; empty where nothing was scored.
        after: the same of the new run.
        split: which rows were scored.
    """

    run: Run
    merged: Merged
    before: dict[str, TaskScores]
    after: dict[str, TaskScores]
    split: str | None

    def sheet(self) -> Sheet:
        """Return the scores before and after as a table."""
        rows = []
        for task, scores in self.before.items():
            for metric, old in scores.metrics.items():
                new = self.after[task].metrics[metric]
                rows.append((task, metric, *map(score, (old.value, new.value))))
                rows[-1] += (signed(new.value - old.value), str(scores.num_rows))
        return Sheet(
            title=f"{self.split}: each task in its own run, and in the merged one",
            columns=("task", "metric", "before", "merged", "difference", "rows"),
            rows=tuple(rows),
            notes=self.merged.notes,
        )

    def to_plain(self) -> dict[str, Any]:
        """Return scores and what the merging cost as plain data."""
        return {
            **self.run.result["merge"],
            "split": self.split,
            "tasks": {
                task: {"before": asdict(scores), "after": asdict(self.after[task])}
                for task, scores in self.before.items()
            },
        }


def merge_runs(
    runs: Sequence[Run | str | Path],
    output: str | Path,
    merge: Merge,
    seed: int = 0,
    *,
    split: str | None = "test",
    loader: Loader | None = None,
) -> MergedRun:
    """Write a run in which one update serves the tasks of all runs.

    Each distinct update is merged once, with equal weight: one that several tasks of a run share
    counts as one. Heads are not merged; each task keeps its own. The new run has structure
    ``single``, trained nothing, and evaluates, predicts and exports like any other. What was merged
    is in its ``result.json`` under ``merge``.

    Args:
        runs: finished runs of one base model, or their folders, with different tasks; one is
            enough, if it has several updates.
        output: the new run's folder.
        merge: how.
        seed: of DARE's masks.
        split: which rows the tasks are scored on, before and after; None scores nothing. A run's
            saved scores are taken; scores that it lacks are written into its folder, as by
            :meth:`coadapt.runs.Run.evaluate`.
        loader: keeps what the runs share.

    Raises:
        InputError: if the folder is not new, a task stands in two runs, the runs have different
            base models, target modules or ways to read a row, or one has no update of low rank for
            each task.
    """
    output, loader = Path(output), loader or Loader()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already; choose another output")
    opened = open_runs(runs, loader)
    suite = union(opened)
    folds: dict[str, Folds] = {}
    heads: dict[str, Tensor] = {}
    for run in opened:
        folds |= distinct_folds(run.model)
        state = run.model.state_tensors()
        heads |= {name: state[name].clone() for name in state if name.startswith("heads/")}
    merged = merge_folds(list(folds.values()), list(folds), merge, seed)
    merged = replace(merged, notes=(*merged.notes, *_shared(opened, folds)))
    before = {task: found for run in opened for task, found in _scores(run, split).items()}
    config = merged_config(opened[0].config, suite, merged)
    model = build_merged(config, suite, merged, heads, loader)
    told = {"method": to_plain(merge), "seed": seed, "of": list(folds), **merged.to_plain()}
    _write(model, config, suite, output, told, [run.path for run in opened])
    new = load_run(output, loader=loader)
    after = new.evaluate(split) if split is not None else {}
    return MergedRun(run=new, merged=merged, before=before, after=after, split=split)


def merge_every_task(model: MultiTaskModel, merge: Merge, seed: int = 0) -> Merged:
    """Return one update merged of all that a trained model's tasks have.

    Args:
        model: with a LoRA a task, or a block a task beside common ones: what a task's blocks add up
            to is its update.
        merge: how.
        seed: of DARE's masks.

    Raises:
        InputError: if a task has no exact low-rank update.
    """
    folds = distinct_folds(model)
    return merge_folds(list(folds.values()), list(folds), merge, seed)


def _scores(run: Run, split: str | None) -> dict[str, TaskScores]:
    """Return a run's scores, the saved ones where there are any."""
    if split is None:
        return {}
    saved = run.result["metrics"].get(split)
    if saved is None:
        return run.evaluate(split)
    return {
        task: TaskScores(
            num_rows=found["num_rows"],
            metrics={
                name: parse(Score, value, str(run.path / RESULT))
                for name, value in found["metrics"].items()
            },
        )
        for task, found in saved.items()
    }


def _shared(runs: Sequence[Run], folds: dict[str, Folds]) -> list[str]:
    num_tasks = sum(len(run.suite.tasks) for run in runs)
    if len(folds) == num_tasks:
        return []
    return [f"{num_tasks} tasks have {len(folds)} updates, each of which counts once"]


def merged_config(config: RunConfig, suite: TaskSuite, merged: Merged) -> RunConfig:
    """Return what describes a merged model: nothing of how it was trained.

    Args:
        config: whose base model and seed are taken.
        suite: the tasks.
        merged: the update, from which the ranks are.
    """
    ranks = merged.ranks
    plan = Plan(
        blocks={SHARED_BLOCK: Block(rank=max(ranks.values()), tasks=suite.names)},
        ranks={module: {SHARED_BLOCK: rank} for module, rank in ranks.items()}
        if len(set(ranks.values())) > 1
        else {},
    )
    recipe = Recipe(structure=Single(scale=1.0), sharing="shared")
    return RunConfig(model=config.model, recipe=recipe, plan=plan, seed=config.seed)


def build_merged(
    config: RunConfig,
    suite: TaskSuite,
    merged: Merged,
    heads: dict[str, Tensor],
    loader: Loader,
) -> MultiTaskModel:
    """Return a model whose one block is the merged update.

    Args:
        config: see :func:`merged_config`.
        suite: the tasks.
        merged: the update.
        heads: the tasks' heads by the names of a model's state.
        loader: has the base model.
    """
    model = build_model(
        config.model,
        suite.tasks,
        config.recipe,
        config.plan,
        seed=config.seed,
        loader=loader,
        start=Start(fills=False),
    )
    tensors = dict(heads)
    for module, (A, B) in merged.factors.items():
        tensors[f"{SHARED_BLOCK}/{module}/A"] = A
        tensors[f"{SHARED_BLOCK}/{module}/B"] = B
    model.load_state_tensors(tensors, "the merged update")
    return model


def _write(
    model: MultiTaskModel,
    config: RunConfig,
    suite: TaskSuite,
    output: Path,
    merge: dict[str, Any],
    sources: Sequence[Path],
) -> None:
    """Write the run; its hash is that of no trained run."""
    whole = [config.hash(suite), *(read_json(p / RESULT)["run"]["config_hash"] for p in sources)]
    merged = named_seed(0, *whole, json.dumps(merge, sort_keys=True))
    run = {
        "command": describe_command(),
        "config_hash": f"{merged:016x}",
        "recipe": None,
        "seed": config.seed,
        "status": "finished",
        "error": None,
        "derived": f"merged ({merge['method']['method']}) of {', '.join(map(str, sources))}",
    }
    output.mkdir(parents=True, exist_ok=True)
    save_adapter(model, output / ADAPTER)
    result = {"run": run, "train": None, "metrics": {}, "environment": describe_environment()}
    write_json(output / RESULT, {**result, "merge": merge})
    write_config(output, config, suite)
