"""Does one shared LoRA on four tasks beat the language model as it comes, also on unseen tasks?

    python benchmarks/smollm2.py --output runs/smollm2 --data-root DIR    # resumes
    python benchmarks/smollm2.py --report                                 # the committed result

SmolLM2-135M-Instruct is trained on BoolQ, OpenBookQA, ARC easy and ARC challenge, read from
DIR/commonsense/<task>/<split>.jsonl, by one LoRA for all. It and the untrained model are scored on
test rows of these tasks, and on four tasks of BIG-Bench Hard that neither was trained on, from
DIR/bbh/<task>/test.jsonl. Differences are paired by row.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import coadapt
from coadapt._environment import describe_environment
from coadapt._files import read_json, write_json
from coadapt._seeds import named_seed
from coadapt._sheet import Sheet
from coadapt._stats import interval, paired_bootstrap_mean
from coadapt.predictions import predictions_file, read_predictions
from coadapt.tasks import METRICS, TaskSuite, load_suite

RESULT = Path(__file__).parent / "results" / "smollm2.json"
SEEN = ("boolq", "openbookqa", "arc_easy", "arc_challenge")
UNSEEN = ("boolean_expressions", "navigate", "sports_understanding", "web_of_lies")
MODEL = {"name": "asset:smollm2", "target_modules": "all-linear", "max_length": 384}
TRAINING = {
    "learning_rate": 5e-4,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "logging_steps": 25,
}
BUDGET = 8


def measure(output: Path, data: Path, rows: int, test_rows: int, seed: int) -> dict[str, Any]:
    """Train, score both models on both suites, and compare them row by row."""
    limits = f'max_rows={{"train": {rows}, "validation": 100, "test": {test_rows}}}'
    suite = load_suite(
        "commonsense8", data_root=data / "commonsense", only=SEEN, overrides=[limits]
    )
    other = load_suite("bbh", data_root=data / "bbh", only=UNSEEN)
    timed = output / "seconds.json"
    seconds: dict[str, float] = read_json(timed) if timed.is_file() else {}
    folders = {}
    for name in ("frozen", "lora"):
        began = time.perf_counter()
        folders[name] = output / name
        run = coadapt.train(
            MODEL,
            suite,
            name,
            output=folders[name],
            budget=BUDGET if name == "lora" else None,
            training=TRAINING,
            seed=seed,
            resume=True,
        )
        if "test" not in run.result["metrics"]:
            run.evaluate()
        if other.name not in run.result.get("unseen", {}):
            run.evaluate_unseen(other)
        if name not in seconds:  # a run that is there already takes none
            seconds[name] = time.perf_counter() - began
            write_json(timed, seconds)
    results = {name: read_json(folder / "result.json") for name, folder in folders.items()}
    return {
        "model": MODEL,
        "training": TRAINING,
        "budget": BUDGET,
        "seed": seed,
        "rows": {"train": rows, "test": test_rows},
        "seconds": seconds,
        "train": results["lora"]["train"],
        "seen": compare(folders, suite, "test"),
        "unseen": compare(folders, other, f"{other.name}-test"),
        "environment": describe_environment(),
    }


def compare(folders: dict[str, Path], suite: TaskSuite, split: str) -> dict[str, Any]:
    """Return each task's two scores and their paired difference, and the mean over tasks."""
    base, trained = (
        read_predictions(folders[name] / predictions_file(split)) for name in ("frozen", "lora")
    )
    found: dict[str, Any] = {}
    drawn = []
    for task in suite.tasks:
        row_values = METRICS[task.score_metric].row_values
        assert row_values is not None, "the metrics of these tasks are means over rows"
        ours, theirs = (row_values(*side[task.name]) for side in (trained, base))
        generator = np.random.default_rng(named_seed(0, "smollm2", task.name))
        samples = paired_bootstrap_mean(ours, theirs, num_resamples=10_000, generator=generator)
        drawn.append(samples)
        found[task.name] = {
            "metric": task.score_metric,
            "num_rows": len(ours),
            "base": float(np.mean(theirs)),
            "trained": float(np.mean(ours)),
            "difference": float(np.mean(ours) - np.mean(theirs)),
            "interval": list(interval(samples)),
            "majority": commonest(base[task.name][0]),
            "same_answer": {
                name: commonest(side[task.name][1])
                for name, side in (("base", base), ("trained", trained))
            },
        }
    mean = {
        key: float(np.mean([row[key] for row in found.values()])) for key in ("base", "trained")
    }
    return {
        "tasks": found,
        "mean": {
            **mean,
            "difference": mean["trained"] - mean["base"],
            "interval": list(interval(np.mean(drawn, axis=0))),
        },
    }


def commonest(answers: np.ndarray) -> float:
    """Return the share of the commonest of answers, of which a choice has two kinds a row."""
    chosen = answers[:, 0] if answers.ndim == 2 else answers
    return float(np.unique(chosen, return_counts=True)[1].max() / len(chosen))


def sheets(result: dict[str, Any]) -> list[Sheet]:
    """Return the tables of a result."""
    return [
        _sheet(title, result[key]) for title, key in (("trained on", "seen"), ("unseen", "unseen"))
    ]


def _sheet(title: str, part: dict[str, Any]) -> Sheet:
    rows = [
        (
            name,
            str(row["num_rows"]),
            f"{row['majority']:.3f}",
            f"{row['base']:.3f}",
            f"{row['trained']:.3f}",
            _difference(row),
            f"{row['same_answer']['base']:.2f}, {row['same_answer']['trained']:.2f}",
        )
        for name, row in part["tasks"].items()
    ]
    mean = part["mean"]
    rows.append(
        ("mean", "", "", f"{mean['base']:.3f}", f"{mean['trained']:.3f}", _difference(mean), "")
    )
    columns = (
        *("", "test rows", "commonest answer", "untrained", "trained", "difference"),
        "rows given one answer: untrained, trained",
    )
    return Sheet(title=title, columns=columns, rows=tuple(rows))


def _difference(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(
        description="SmolLM2 trained on four tasks, against itself untrained"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--rows", type=int, default=1000, help="training rows a task")
    parser.add_argument("--test-rows", type=int, default=500, help="test rows a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="print the committed result")
    options = parser.parse_args()
    if options.report:
        result = read_json(RESULT)
    elif options.data_root is None:
        parser.error("give --data-root, or --report")
    else:
        result = measure(
            options.output, options.data_root, options.rows, options.test_rows, options.seed
        )
        write_json(RESULT, result)
    console = Console()
    for sheet in sheets(result):
        console.print(sheet.to_rich())
    console.print(
        f"{result['train']['tokens']:,} tokens trained in {result['train']['seconds']:.0f} s; "
        f"with scoring {result['seconds']['lora']:.0f} s, the untrained model "
        f"{result['seconds']['frozen']:.0f} s; {result['environment']['device']}"
    )


if __name__ == "__main__":
    main()
