"""Methods on a small language model, in domain and on tasks that none was trained on.

    python benchmarks/language_methods.py --output runs --data-root DIR  # resumes
    python benchmarks/language_methods.py --output runs --data-root DIR --only commonsense_prompts
    python benchmarks/language_methods.py --report  # the committed result

Trains SmolLM2-135M-Instruct by the studies that STUDIES names on tasks of
DIR/commonsense/<task>/<split>.jsonl, which takes hours. The final runs, and the model as it comes,
are then scored on four tasks of BIG-Bench Hard in DIR/bbh/<task>/test.jsonl. Differences to LoRA
are paired by seed, with Student's interval: with two seeds it is 12.7 standard errors wide, so that
by row stands beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import coadapt
from coadapt import load_run, load_suite, run_study
from coadapt._environment import describe_environment
from coadapt._files import read_json, write_json
from coadapt._sheet import Sheet
from coadapt._stats import interval, paired_bootstrap_mean, paired_difference
from coadapt.loading import Loader
from coadapt.predictions import predictions_file, read_predictions
from coadapt.study.comparison import finite
from coadapt.tasks import METRICS, TaskSuite

HERE = Path(__file__).parent
RESULT = HERE / "results" / "language_methods.json"
SEEN = ("boolq", "openbookqa", "arc_easy", "arc_challenge")
# The studies in benchmarks/studies, each with the tasks that it trains on.
STUDIES = {
    "commonsense": SEEN,
    "commonsense_rank8": SEEN,
    "commonsense_prompts": SEEN,
    "commonsense_two": ("openbookqa", "arc_challenge"),
}
UNSEEN = ("boolean_expressions", "navigate", "sports_understanding", "web_of_lies")
BASELINE = "lora"


def run(
    names: Sequence[str], output: Path, data: Path, workers: int, console: Console
) -> dict[str, Any]:
    """Run the studies, score their final runs on the unseen tasks, and add them to the result."""
    other = load_suite("bbh", data_root=data / "bbh", only=UNSEEN)
    found = read_json(RESULT) if RESULT.is_file() else {"studies": {}}
    for name in names:
        folder = output / name
        summary = run_study(
            HERE / "studies" / f"{name}.yaml",
            folder,
            resume=(folder / "study.json").is_file(),
            data_root=data / "commonsense",
            tasks=STUDIES[name],
            workers=workers,
            console=console,
        )
        found["studies"][name] = {
            "seen": summary["tables"][0],
            "unseen": unseen(folder, summary, other, console),
        }
    found["untrained"] = untrained(output / "untrained", data, other)
    found = finite(found | {"environment": describe_environment()})
    write_json(RESULT, found)
    return found


def unseen(
    folder: Path, summary: dict[str, Any], other: TaskSuite, console: Console
) -> dict[str, Any]:
    """Score every final run on the other suite, and compare each arm with the baseline by seed."""
    loader, rows, scores = Loader(), {}, {}
    for arm in summary["tables"][0]["arms"]:
        # An arm's name is the beginning of its group's, which adds rows and tasks.
        (group,) = (p for p in (folder / "runs").iterdir() if p.name.startswith(f"{arm['arm']}-n"))
        for seed in arm["seeds"]:
            path = group / f"trial{arm['chosen']}_seed{seed}"
            opened = load_run(path, loader=loader)
            if other.name not in opened.result.get("unseen", {}):
                console.print(f"{group.name}, seed {seed}: unseen tasks")
                opened.evaluate_unseen(other, rule=rule_of(opened), num_resamples=0)
            rows[arm["recipe"], seed] = values(path, other)
        scores[arm["recipe"]] = [mean(rows[arm["recipe"], seed]) for seed in arm["seeds"]]
    seeds = summary["seeds"]
    return {recipe: row(recipe, scores, rows, seeds) for recipe in scores}


def rule_of(opened: coadapt.Run) -> str | None:
    """Return which blocks serve an unseen task: the tasks' mean, or the prompt that they share."""
    by_task = opened.model.recipe.structure.depends_on == "task"
    return "mean" if by_task and not opened.model.attached.prompts else None


def values(path: Path, suite: TaskSuite) -> dict[str, np.ndarray]:
    """Return each task's metric row by row."""
    predicted = read_predictions(path / predictions_file(f"{suite.name}-test"))
    found = {}
    for task in suite.tasks:
        row_values = METRICS[task.score_metric].row_values
        assert row_values is not None, "the metrics of these tasks are means over rows"
        found[task.name] = row_values(*predicted[task.name])
    return found


def mean(by_task: dict[str, np.ndarray]) -> float:
    return float(np.mean([v.mean() for v in by_task.values()]))


def row(
    recipe: str,
    scores: dict[str, list[float]],
    rows: dict[tuple[str, int], dict[str, np.ndarray]],
    seeds: list[int],
) -> dict[str, Any]:
    """Return an arm's scores, and its difference to the baseline by seed and by row."""
    by_task = {
        task: float(np.mean([rows[recipe, seed][task].mean() for seed in seeds]))
        for task in rows[recipe, seeds[0]]
    }
    told = {"scores": scores[recipe], "tasks": by_task}
    if recipe == BASELINE:
        return told
    difference = paired_difference(np.array(scores[recipe]), np.array(scores[BASELINE]))
    drawn = []
    for task in by_task:
        ours, theirs = (
            np.mean([rows[name, seed][task] for seed in seeds], axis=0)
            for name in (recipe, BASELINE)
        )
        generator = np.random.default_rng(0)
        drawn.append(paired_bootstrap_mean(ours, theirs, num_resamples=10_000, generator=generator))
    return told | {
        "difference": difference.mean,
        "over_seeds": [difference.low, difference.high],
        "over_rows": list(interval(np.mean(drawn, axis=0))),
    }


def untrained(folder: Path, data: Path, other: TaskSuite) -> dict[str, Any]:
    """Return the scores of the model as it comes, on the same test rows."""
    study = coadapt.config.load_yaml(HERE / "studies" / "commonsense.yaml")
    held_out = study["held_out"] | {"train": study["rows"][0]}
    suite = load_suite(
        "commonsense8",
        data_root=data / "commonsense",
        only=SEEN,
        overrides=[f"max_rows={held_out}"],
    )
    opened = coadapt.train(study["model"], suite, "frozen", output=folder, resume=True)
    if "test" not in opened.result["metrics"]:
        opened.evaluate(num_resamples=0)
    if other.name not in opened.result.get("unseen", {}):
        opened.evaluate_unseen(other, num_resamples=0)
    seen = {
        task: found["metrics"][suite.task(task).score_metric]["value"]
        for task, found in opened.result["metrics"]["test"].items()
    }
    by_task = {task: float(v.mean()) for task, v in values(folder, other).items()}
    return {"seen": seen, "unseen": by_task}


def sheets(result: dict[str, Any]) -> list[Sheet]:
    """Return a table a study: in domain and unseen, with differences to LoRA."""
    found = []
    for name, study in result["studies"].items():
        rows = []
        for arm in study["seen"]["arms"]:
            other = study["unseen"][arm["recipe"]]
            seen = arm.get("difference")
            rows.append(
                (
                    arm["recipe"],
                    f"{arm['trainable']:,}",
                    f"{arm['mean']:.3f}",
                    _told(seen and seen["mean"], seen and [seen["low"], seen["high"]]),
                    f"{np.mean(other['scores']):.3f}",
                    _told(other.get("difference"), other.get("over_seeds")),
                    _told(other.get("difference"), other.get("over_rows")),
                )
            )
        columns = (
            *("", "trained values", "in domain", "less lora, over seeds"),
            *("unseen", "less lora, over seeds", "over rows"),
        )
        found.append(Sheet(title=name, columns=columns, rows=tuple(rows)))
    return found


def _told(value: float | None, ends: list[float] | None) -> str:
    if value is None or ends is None:
        return ""
    return f"{value:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})"


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description="methods on SmolLM2")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="print the committed result")
    given = parser.parse_args()
    console = Console()
    if given.report:
        result = read_json(RESULT)
    else:
        if given.data_root is None:
            parser.error("--data-root is needed to run")
        result = run(given.only, given.output, given.data_root, given.workers, console)
    for sheet in sheets(result):
        console.print(sheet.to_rich())


if __name__ == "__main__":
    main()
