"""A study's statistics, slow and plain: SciPy, definitions and loops, none of our own code."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from coadapt._seeds import named_seed  # which stream is drawn from is no statistic
from tests.reference.slow_stats import (
    holm_smallest_alphas,
    paired_bootstrap_by_loops,
    power_by_quadrature,
)

NAN = float("nan")


@dataclass(kw_only=True)
class SlowArm:
    """What an arm scored and predicted, by seed and task."""

    name: str
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    predictions: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)


# Metrics -----------------------------------------------------------------------------------


def accuracy(true: Sequence[float], predicted: Sequence[float]) -> float:
    return sum(t == p for t, p in zip(true, predicted, strict=True)) / len(true)


def f1(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Of the second of two classes."""
    pairs = list(zip(true, predicted, strict=True))
    hit = sum(t == 1 and p == 1 for t, p in pairs)
    wrong = sum(t != p for t, p in pairs)
    return 2 * hit / (2 * hit + wrong) if hit + wrong else 0.0


def pearson(true: Sequence[float], predicted: Sequence[float]) -> float:
    if len(set(true)) == 1 or len(set(predicted)) == 1:
        return 0.0
    return float(np.corrcoef(true, predicted)[0, 1])


def score(metric: str, true: Any, predicted: Any) -> float:
    return float({"accuracy": accuracy, "f1": f1, "pearson": pearson}[metric](true, predicted))


# Means and differences ---------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if len(values) else NAN


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        return NAN, NAN
    s = math.sqrt(sum((v - mean(values)) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * s / math.sqrt(n)
    return mean(values) - half, mean(values) + half


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def over_seeds(values: list[float]) -> dict[str, Any]:
    low, high = t_interval(values)
    return {"mean": mean(values), "low": low, "high": high, "scores": values}


def describe(arm: SlowArm, tasks: Sequence[str]) -> dict[str, Any]:
    seeds = sorted(arm.scores)
    return {
        "arm": arm.name,
        "seeds": seeds,
        **over_seeds([mean([arm.scores[s][t] for t in tasks]) for s in seeds]),
        "tasks": {t: over_seeds([arm.scores[s][t] for s in seeds]) for t in tasks},
    }


def p_value(ours: list[float], theirs: list[float]) -> float:
    if len(ours) < 2:
        return NAN
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if max(differences) - min(differences) < 1e-12:
        return float(abs(differences[0]) < 1e-12)
    found: Any = stats.ttest_rel(ours, theirs)
    return float(found.pvalue)


def row_samples(
    arm: SlowArm, base: SlowArm, task: str, metric: str, seeds: list[int], num: int
) -> list[float] | None:
    """Return the task's difference on resamples of its rows, if all predictions are there."""
    if not seeds or any(s not in a.predictions for s in seeds for a in (arm, base)):
        return None
    labels = base.predictions[seeds[0]][task][0]
    generator = np.random.default_rng(named_seed(0, "paired", task))
    resamples = generator.integers(0, len(labels), size=(num, len(labels)))
    ours, theirs = (np.array([a.predictions[s][task][1] for s in seeds]) for a in (arm, base))
    return paired_bootstrap_by_loops(
        lambda true, predicted: score(metric, true.tolist(), predicted.tolist()),
        labels, ours, theirs, resamples,
    )  # fmt: skip


def difference(
    arm: SlowArm,
    base: SlowArm,
    seeds: list[int],
    tasks: Sequence[str],
    samples: dict[str, list[float] | None],
) -> dict[str, Any]:
    ours, theirs = ([mean([a.scores[s][t] for t in tasks]) for s in seeds] for a in (arm, base))
    low, high = t_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    intervals = [(low, high)] if len(seeds) > 1 else []
    rows = None
    drawn = [samples[t] for t in tasks]
    if seeds and None not in drawn:
        means = [mean(values) for values in zip(*[v for v in drawn if v], strict=True)]
        rows = [percentile(means, 0.025), percentile(means, 0.975)]
        intervals.append((rows[0], rows[1]))
    outcome = "tie"
    if intervals and all(ends[0] > 0 for ends in intervals):
        outcome = "win"
    if intervals and all(ends[1] < 0 for ends in intervals):
        outcome = "loss"
    return {
        "mean": mean([a - b for a, b in zip(ours, theirs, strict=True)]),
        "low": low,
        "high": high,
        "p_value": p_value(ours, theirs),
        "num": len(seeds),
        "rows": rows,
        "outcome": outcome,
    }


def seeds_needed(effect: float, sd: float, most: int = 400) -> int | None:
    """Return the first number with a power of 0.8, looking no further than ``most``."""
    if math.isnan(sd):
        return None
    if sd == 0:
        return 2
    for number in range(2, most):
        if power_by_quadrature(effect / sd, number, 0.95) >= 0.8:
            return number
    return None


def compare(
    arms: Sequence[SlowArm],
    base: SlowArm,
    metrics: dict[str, str],
    *,
    effect: float = 0.01,
    num_resamples: int,
) -> dict[str, dict[str, Any]]:
    """Return what `coadapt.study.compare_arms` should, with the first metric of each task."""
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        seeds = [seed for seed in sorted(arm.scores) if seed in base.scores]
        samples = {
            task: row_samples(arm, base, task, metric, seeds, num_resamples)
            for task, metric in metrics.items()
        }
        by_task = {task: difference(arm, base, seeds, [task], samples) for task in metrics}
        whole = [
            mean([arm.scores[s][t] for t in metrics]) - mean([base.scores[s][t] for t in metrics])
            for s in seeds
        ]
        sd = float(np.std(whole, ddof=1)) if len(seeds) > 1 else NAN
        found[arm.name] = {
            "difference": difference(arm, base, seeds, list(metrics), samples),
            "sd": sd,
            "seeds_needed": seeds_needed(effect, sd),
            **{o: sum(d["outcome"] == o for d in by_task.values()) for o in ("win", "tie", "loss")},
            "task_differences": by_task,
        }
    adjusted = holm_smallest_alphas([row["difference"]["p_value"] for row in found.values()])
    for row, p in zip(found.values(), adjusted, strict=True):
        row["difference"]["p_holm"] = p
    return found


# Policies and partitions -------------------------------------------------------------------


def mean_score(arm: SlowArm, tasks: Sequence[str]) -> float:
    return mean([mean([arm.scores[s][t] for t in tasks]) for s in sorted(arm.scores)])


def regret(value: float, policies: dict[str, float]) -> dict[str, float]:
    best = max([value, *policies.values()])
    return {**{name: other - value for name, other in policies.items()}, "best": best - value}


def against_null(
    observed: SlowArm, null: list[SlowArm], tasks: Sequence[str], existing: int
) -> dict[str, Any]:
    """Return where a plan stands; its rank is among all there are, itself among them."""
    value, others = mean_score(observed, tasks), [mean_score(arm, tasks) for arm in null]
    spread = float(np.std(others, ddof=1)) if len(others) > 1 else None
    by_seed = [
        [mean([arm.scores[s][t] for t in tasks]) for s in sorted(arm.scores)] for arm in null
    ]
    spreads = [float(np.std(values, ddof=1)) for values in by_seed if len(values) > 1]
    return {
        "plan": observed.name,
        "score": value,
        "null": others,
        "existing": existing,
        "all": len(others) + 1 == existing,
        "p_value": (1 + sum(other >= value for other in others)) / (1 + len(others)),
        "z": (value - mean(others)) / spread if spread else NAN,
        "sd_partitions": spread,
        "sd_seeds": mean(spreads) if spreads else None,
    }
