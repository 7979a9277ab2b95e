"""Does a plan made before training name the way of sharing that turns out best?

    python benchmarks/predicts.py --output runs/predicts --data-root DIR    # hours; resumes
    python benchmarks/predicts.py --report                                  # from committed results

Suites are random draws of 3 to 6 tasks out of the demo's seven or of six GLUE tasks, each with
scarce and with more rows. On each, a diagnosis of the training rows gives a plan (auto), and a
study with equal tuning trains shared, private and clustered adapters of one rank budget on three
seeds. The clusters are those of ``--sharing clustered``, whatever auto advises.
Half of the suites (``tune``) may be looked at to improve the planner, the others (``held out``)
judge it: the thresholds with the least regret on the one half are reported on both.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from coadapt import load_suite, run_study
from coadapt._environment import describe_environment
from coadapt._files import read_json, write_json, write_text
from coadapt._sheet import Sheet
from coadapt._stats import mean_interval, outcome, paired_difference
from coadapt.config import dump_yaml, parse
from coadapt.diagnosis import Diagnosis, DiagnosisConfig, examine, load_diagnosis
from coadapt.planners import propose
from coadapt.planners.auto import DEFAULT, Thresholds, advise
from coadapt.planners.evidence import gather
from coadapt.study.comparison import finite

RESULTS = Path(__file__).parent / "results" / "predicts"
BUDGET = 8
SEEDS = (0, 1, 2)
REGIMES = ("shared", "private", "clustered")
RECIPE_OF = {"shared": "lora", "private": "private", "clustered": "clustered"}
TASKS = {
    "demo": ("trec6", "trec50", "spam", "tweets", "amazon", "movie", "nyt"),
    "glue_local": ("sst2", "mrpc", "rte", "qnli", "cola", "stsb"),
}
NUM_SETS = {"demo": 6, "glue_local": 4}
ROWS = {"demo": (30, 300), "glue_local": (60, 300)}
# As in studies/sharing.yaml: a moderate rate, a high one, and the moderate one for twice as long.
TRIALS = {30: 15, 60: 12, 300: 5}
MODEL = {"name": "asset:minilm", "backbone_dropout": False, "max_length": 96}
HELD_OUT = {"validation": 100, "test": 300}


@dataclass(frozen=True)
class Draw:
    """A suite of the experiment."""

    source: str
    number: int
    tasks: tuple[str, ...]
    rows: int

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number}-n{self.rows}"

    @property
    def part(self) -> str:
        """Sets of tasks, not suites, are parted: a set's two amounts of rows stay together.

        In turn, but so that each size of sets, which repeats after four, comes into both parts.
        """
        return "tune" if (self.number + self.number // 4) % 2 == 0 else "held out"


def draws() -> Iterator[Draw]:
    """Yield the suites, the same on every machine; sizes 3 to 6 in turn, sets all different."""
    for source, tasks in TASKS.items():
        generator = np.random.default_rng(7)
        seen: set[tuple[str, ...]] = set()
        while len(seen) < NUM_SETS[source]:
            size = 3 + len(seen) % 4
            chosen = set(generator.choice(tasks, size=min(size, len(tasks)), replace=False))
            kept = tuple(task for task in tasks if task in chosen)
            if kept in seen:
                continue
            number = len(seen)
            seen.add(kept)
            for rows in ROWS[source]:
                yield Draw(source, number, kept, rows)


def study_of(draw: Draw, clusters: dict[str, list[str]]) -> dict[str, Any]:
    epochs = TRIALS[draw.rows]
    return {
        "name": draw.name,
        "model": MODEL,
        "suite": draw.source,
        "rows": [draw.rows],
        "held_out": HELD_OUT,
        "budgets": [BUDGET],
        "seeds": list(SEEDS),
        "baseline": "lora",
        "tasks": {"drawn": list(draw.tasks)},
        "training": {"per_device_train_batch_size": 32, "save_strategy": "no"},
        "trials": [
            {"learning_rate": 3e-3, "epochs": epochs},
            {"learning_rate": 8e-3, "epochs": epochs},
            {"learning_rate": 3e-3, "epochs": 2 * epochs},
        ],
        "recipes": {"lora": None, "private": None, "clustered": {"plans": ["diagnosed"]}},
        "plans": {"diagnosed": {"kind": "clusters", "clusters": clusters}},
    }


def diagnosed(draw: Draw, folder: Path, data_root: Path | None) -> Diagnosis:
    """Diagnose the training rows that the study's first seed draws."""
    file = folder / "diagnosis.json"
    if not file.is_file():
        root = data_root if draw.source == "glue_local" else None
        limits = {"train": draw.rows} | HELD_OUT
        suite = load_suite(draw.source, data_root=root, overrides=[f"max_rows={limits}"])
        config = parse(DiagnosisConfig, {"model": MODEL}, "predicts")
        folder.mkdir(parents=True, exist_ok=True)
        examine(config, suite.subset(draw.tasks)).save(file)
    return load_diagnosis(file)


def run(draw: Draw, folder: Path, data_root: Path | None, workers: int, console: Console) -> None:
    found = diagnosed(draw, folder, data_root)
    plan = propose(found, budget=BUDGET, sharing="clustered").plan
    clusters = {f"c{k}": list(block.tasks) for k, block in enumerate(plan.blocks.values())}
    write_text(folder / "study.yaml", dump_yaml(study_of(draw, clusters)))
    summary = run_study(
        folder / "study.yaml",
        folder / "study",
        resume=(folder / "study").is_dir(),
        data_root=data_root if draw.source == "glue_local" else None,
        workers=workers,
        console=console,
    )
    arms = {arm["recipe"]: arm for arm in summary["tables"][0]["arms"]}
    result = {
        "name": draw.name,
        "part": draw.part,
        "tasks": draw.tasks,
        "rows": draw.rows,
        "clusters": clusters,
        "seeds": SEEDS,
        "scores": {regime: arms[RECIPE_OF[regime]]["scores"] for regime in REGIMES},
        "by_task": {
            regime: {t: v["scores"] for t, v in arms[RECIPE_OF[regime]]["tasks"].items()}
            for regime in REGIMES
        },
        "diagnosis": found.to_plain(),
        "missing": summary["missing"],
        "environment": describe_environment(),
    }
    write_json(RESULTS / f"{draw.name}.json", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/predicts"))
    parser.add_argument("--data-root", type=Path, help="of the GLUE tasks; without it, the hub")
    parser.add_argument("--only", help="one draw, such as demo-0-n30")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="read the committed results")
    given = parser.parse_args()
    console = Console()
    if not given.report:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for draw in draws():
            if given.only in (None, draw.name) and not _done(draw):
                console.print(f"[bold]{draw.name}[/]: {', '.join(draw.tasks)}")
                run(draw, given.output / draw.name, given.data_root, given.workers, console)
    sys.stdout.write(json.dumps(report(console), indent=2) + "\n")


def _done(draw: Draw) -> bool:
    return (RESULTS / f"{draw.name}.json").is_file()


def report(console: Console) -> dict[str, Any]:
    """Print and return how often the plan's regime is the best, and what it costs where not."""
    results = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    found = {}
    for part in ("tune", "held out"):
        mine = [row for row in map(judge, results) if row["part"] == part]
        if mine:
            found[part] = summed(mine)
            console.print(_sheet(part, mine).to_rich())
    limits = tuned([row for row in results if row["part"] == "tune"])
    found["thresholds tuned on tune"] = {
        "limits": {name: str(value) for name, value in vars(limits).items()},
        **{
            part: summed([judge(row, limits) for row in results if row["part"] == part])
            for part in ("tune", "held out")
        },
    }
    found = finite(found)  # one suite has no interval
    write_json(RESULTS.parent / "predicts_summary.json", found)
    return found


def tuned(results: list[dict[str, Any]]) -> Thresholds:
    """Return the thresholds of a grid with the least mean regret, the defaults first of equals."""

    def regret(limits: Thresholds) -> float:
        return float(np.mean([judge(row, limits)["regret"]["oracle"] for row in results]))

    grid = [
        Thresholds(reliability=reliability, stability=stability, separation=separation)
        for reliability, stability, separation in product(
            (0.5, 0.2, -np.inf), (0.6, 0.3, -np.inf), (0.1, 0.2, -np.inf)
        )
    ]
    return min(grid, key=regret)


def judge(result: dict[str, Any], limits: Thresholds = DEFAULT) -> dict[str, Any]:
    """Compare the regime that the plan takes with the others, by paired differences over seeds."""
    evidence = gather(Diagnosis.from_plain(result["diagnosis"]))
    advice = advise(evidence, BUDGET, limits=limits)
    scores = {regime: np.array(result["scores"][regime]) for regime in REGIMES}
    mean = {regime: float(values.mean()) for regime, values in scores.items()}
    chosen = advice.sharing
    best = max(REGIMES, key=lambda regime: mean[regime])
    outcomes = {}
    for regime in REGIMES:
        if regime != chosen:
            difference = paired_difference(scores[chosen], scores[regime])
            outcomes[regime] = outcome((difference.low, difference.high))
    return {
        "name": result["name"],
        "part": result["part"],
        "num_tasks": len(result["tasks"]),
        "rows": result["rows"],
        "chosen": chosen,
        "best": best,
        "mean": mean,
        "outcomes": outcomes,
        "regret": {regime: mean[regime] - mean[chosen] for regime in REGIMES}
        | {"oracle": mean[best] - mean[chosen]},
    }


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts and mean regrets with their intervals over suites."""

    def spread(values: list[float]) -> dict[str, float]:
        low, high = mean_interval(values)
        return {"mean": float(np.mean(values)), "low": low, "high": high}

    return {
        "suites": len(rows),
        "seeds": len(SEEDS),
        "chosen": {regime: sum(row["chosen"] == regime for row in rows) for regime in REGIMES},
        "best_by_mean": sum(row["chosen"] == row["best"] for row in rows),
        "never_beaten": sum("loss" not in row["outcomes"].values() for row in rows),
        "beats_another": sum("win" in row["outcomes"].values() for row in rows),
        "gain_over": {
            regime: spread([-row["regret"][regime] for row in rows]) for regime in REGIMES
        },
        "regret_to_oracle": {
            "plan": spread([row["regret"]["oracle"] for row in rows]),
            **{
                regime: spread([row["mean"][row["best"]] - row["mean"][regime] for row in rows])
                for regime in REGIMES
            },
        },
    }


def _sheet(part: str, rows: list[dict[str, Any]]) -> Sheet:
    return Sheet(
        title=f"{part}: mean test score by regime, {len(SEEDS)} seeds; * the plan's choice",
        columns=("suite", "tasks", *REGIMES, "against the others"),
        rows=tuple(
            (
                row["name"],
                str(row["num_tasks"]),
                *(f"{row['mean'][r]:.3f}{'*' if r == row['chosen'] else ''}" for r in REGIMES),
                ", ".join(f"{found} {r}" for r, found in row["outcomes"].items()),
            )
            for row in rows
        ),
    )


if __name__ == "__main__":
    main()
