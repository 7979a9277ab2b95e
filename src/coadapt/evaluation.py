"""Scores a task, each with an interval."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from coadapt._environment import describe_device, forget_peak_memory, peak_memory_mib
from coadapt._seeds import named_seed
from coadapt._stats import bootstrap, bootstrap_mean, interval
from coadapt.backbone import compute_dtype
from coadapt.language import OPTIONS_AT_ONCE, PROMPTS_AT_ONCE, answer_rows
from coadapt.model import MultiTaskModel
from coadapt.modes import answering
from coadapt.tasks import METRICS, Metric, Task
from coadapt.tasks.language import LanguageCollator
from coadapt.tasks.render import Collator

Encoded = list[dict[str, Any]]

BATCH_SIZE = 64  # rows a forward


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric on a split with its percentile bootstrap interval over the rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """All metrics of a task; the first is the task's score."""

    num_rows: int
    metrics: dict[str, Score]

    @property
    def score(self) -> Score:
        """The task's first metric."""
        return next(iter(self.metrics.values()))


def predict_rows(
    model: MultiTaskModel,
    collate: Collator | LanguageCollator,
    encoded: Encoded,
    task: str,
    *,
    tokenizer: Any = None,
    seed: int = 0,
) -> np.ndarray:
    """Return what the model predicts for each row, in the form that the task's metrics take.

    Args:
        model: the model.
        collate: makes rows into a batch.
        encoded: rows of the task.
        task: whose head and blocks to use.
        tokenizer: what a language model's answers are written with.
        seed: of answers that are drawn.
    """
    chosen = model.tasks[model.task_id(task)]
    if model.is_language_model:
        return answer_rows(model, tokenizer, encoded, chosen, seed=seed)
    assert isinstance(collate, Collator)
    return decide(chosen, predict_outputs(model, collate, encoded, task))


def predict_measured(
    model: MultiTaskModel,
    collate: Collator | LanguageCollator,
    encoded: dict[str, Encoded],
    *,
    tokenizer: Any = None,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return every task's predictions, see :func:`predict_rows`, and what they took.

    Returns:
        The predictions; and ``tasks`` (each one's rows, seconds and batch), ``dtype``, ``device``
        and ``peak_memory_mib``: an accelerator's in here, else the process's since it began. The
        seconds are of one pass, whose first batch may have to warm up.
    """
    predicted, tasks = {}, {}
    forget_peak_memory()
    for task, rows in encoded.items():
        began = time.perf_counter()
        predicted[task] = predict_rows(model, collate, rows, task, tokenizer=tokenizer, seed=seed)
        seconds = time.perf_counter() - began
        tasks[task] = {"rows": len(rows), "seconds": seconds, "batch": _told_batch(model, task)}
    return predicted, {
        "tasks": tasks,
        "dtype": str(compute_dtype(model.model_config.dtype)).removeprefix("torch."),
        "device": describe_device(),
        "peak_memory_mib": peak_memory_mib(),
    }


def _told_batch(model: MultiTaskModel, task: str) -> str:
    """Return how much of a task :func:`predict_rows` runs at once."""
    if not model.is_language_model:
        return f"{BATCH_SIZE} rows"
    if model.tasks[model.task_id(task)].kind == "generation":
        return f"{PROMPTS_AT_ONCE} rows"
    return f"{OPTIONS_AT_ONCE} options"


@torch.no_grad()
def predict_outputs(
    model: MultiTaskModel,
    collate: Collator,
    encoded: Encoded,
    task: str,
    *,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Return (n, num_outputs) float outputs of one task's head, rows in the order given.

    Rows run in batches of like length. The model's mode is restored.

    Args:
        model: the model.
        collate: pads rows into a batch.
        encoded: rows as :func:`coadapt.tasks.encode` makes them.
        task: whose head and blocks to use.
        batch_size: rows a forward.
    """
    index = model.task_id(task)
    order = np.argsort([len(row["input_ids"]) for row in encoded], kind="stable")
    outputs = np.zeros((len(encoded), model.tasks[index].num_outputs))
    with answering(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate([{**encoded[row], "task_id": index, "label": 0.0} for row in rows])
            del batch["labels"]
            moved = {name: value.to(model.device) for name, value in batch.items()}
            outputs[rows] = model(**moved)["outputs"].double().cpu().numpy()
    return outputs


def decide(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Return (n,) predicted class indices, or values for a regression."""
    return outputs[:, 0] if task.kind == "regression" else outputs.argmax(axis=1)


def score_task(
    task: Task,
    labels: np.ndarray,
    predicted: np.ndarray,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> TaskScores:
    """Return a task's metrics with percentile bootstrap intervals over its rows.

    Args:
        task: whose metrics to compute.
        labels: (n,) what is true, see `coadapt.tasks.metrics`.
        predicted: (n,) or (n, 2) what was predicted, see there.
        num_resamples: of the rows; 0 leaves the intervals at the value.
        level: of the intervals.
        seed: of the resamples, together with the task's name.
    """
    scores = {}
    for name in task.metrics:
        generator = np.random.default_rng(named_seed(seed, "bootstrap", task.name))
        value, samples = _resampled(
            task, METRICS[name], labels, predicted, num_resamples, generator
        )
        low, high = interval(samples, level) if num_resamples else (value, value)
        scores[name] = Score(value=value, low=low, high=high)
    return TaskScores(num_rows=len(labels), metrics=scores)


def _resampled(
    task: Task,
    metric: Metric,
    labels: np.ndarray,
    predicted: np.ndarray,
    num_resamples: int,
    generator: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """Return a metric's value, and its values on resamples of the rows."""
    options: dict[str, Any] = {"num_resamples": num_resamples, "generator": generator}
    if metric.row_values is not None:
        values = metric.row_values(labels, predicted)
        samples = bootstrap_mean(values, **options) if num_resamples else np.zeros(0)
        return float(np.mean(values)), samples
    num_labels = task.num_outputs if task.kind == "classification" else None

    def function(true: np.ndarray, made: np.ndarray) -> float:
        return metric.function(true, made, num_labels)

    samples = bootstrap(function, labels, predicted, **options) if num_resamples else np.zeros(0)
    return function(labels, predicted), samples


def evaluate_model(
    model: MultiTaskModel,
    collate: Collator | LanguageCollator,
    encoded: dict[str, Encoded],
    labels: dict[str, np.ndarray],
    *,
    tokenizer: Any = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, TaskScores]:
    """Return every task's scores.

    Args:
        model: the model.
        collate: makes rows into a batch.
        encoded: each task's rows.
        labels: each task's labels.
        tokenizer: what a language model's answers are written with.
        num_resamples: of the rows, for the intervals.
        seed: of the resamples.
    """
    predicted = {
        name: predict_rows(model, collate, rows, name, tokenizer=tokenizer)
        for name, rows in encoded.items()
    }
    return score_tasks(model.tasks, labels, predicted, num_resamples=num_resamples, seed=seed)


def score_tasks(
    tasks: Sequence[Task],
    labels: dict[str, np.ndarray],
    predicted: dict[str, np.ndarray],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, TaskScores]:
    """Return the scores of the tasks that have predictions, see :func:`score_task`."""
    return {
        task.name: score_task(
            task, labels[task.name], predicted[task.name], num_resamples=num_resamples, seed=seed
        )
        for task in tasks
        if task.name in predicted
    }


def overall(scores: dict[str, TaskScores]) -> float:
    """Return the unweighted mean of the tasks' scores; for choosing, never a result on its own."""
    return float(np.mean([task.score.value for task in scores.values()]))


def flatten(scores: dict[str, TaskScores], prefix: str = "eval") -> dict[str, float]:
    """Return ``eval_overall``, ``eval_<task>`` (its score) and ``eval_<task>_<metric>``."""
    flat = {
        f"{prefix}_{task}_{name}": score.value
        for task, result in scores.items()
        for name, score in result.metrics.items()
    }
    # Last what a run may be chosen by, in case a task is called like another one's metric.
    flat |= {f"{prefix}_{task}": result.score.value for task, result in scores.items()}
    return flat | {f"{prefix}_overall": overall(scores)}
