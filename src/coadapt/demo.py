"""The embedded default: a real encoder, seven real tasks; diagnose, plan, adapt, compare, ship."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coadapt._demo_tables import print_comparison
from coadapt._files import read_json, write_json
from coadapt.backbone import ModelConfig
from coadapt.config import to_plain
from coadapt.diagnosis import Diagnosis, DiagnosisConfig, examine, load_diagnosis
from coadapt.diagnosis.sheets import pair_sheet
from coadapt.evaluation import TaskScores, overall
from coadapt.exporting import verify_peft
from coadapt.fitting import fit
from coadapt.loading import Loader
from coadapt.planners import propose, write_plan
from coadapt.planning import Plan
from coadapt.reporting import write_report
from coadapt.runs import Run
from coadapt.settings import merge_for_api, resolve
from coadapt.tasks import TaskSuite, load_suite
from coadapt.tasks.render import encode

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

MODEL = "asset:minilm"
# The demo is to be short: no masks are drawn for the backbone's dropout.
BACKBONE: dict[str, Any] = {"name": MODEL, "backbone_dropout": False}
BUDGET = 8
CHECKED = 32  # test rows a task on which the export is compared
ROWS = {"train": 100, "validation": 50, "test": 250}
QUICK_ROWS = {"train": 60, "validation": 20, "test": 100}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A recipe of the demo, with a rate and a length at which its validation score levels off.

    The table shows that score halfway and at the end. Rates and lengths were found by hand in a few
    runs of seed 0, looking at validation alone: enough for a demo, not a fair comparison.
    """

    recipe: str
    learning_rate: float
    epochs: int

    def training(self, quick: bool) -> dict[str, Any]:
        """Return what TrainingArguments get; validation is scored halfway and at the end."""
        return {
            "learning_rate": self.learning_rate,
            "num_train_epochs": 1 if quick else self.epochs,
            "per_device_train_batch_size": 32,
            "lr_scheduler_type": "linear",
            "save_strategy": "epoch" if self.epochs < 5 or quick else "steps",
            "save_steps": 0.25,
            "eval_strategy": "steps",
            "eval_steps": 0.5,
            "logging_steps": 0.25,
        }


ENTRIES = (
    Entry(recipe="frozen", learning_rate=2e-2, epochs=12),
    Entry(recipe="lora", learning_rate=3e-3, epochs=12),
    Entry(recipe="private", learning_rate=6e-3, epochs=18),
    Entry(recipe="clustered", learning_rate=3e-3, epochs=12),  # by the plan that the demo makes
)


def run_demo(output: Path, *, quick: bool, seed: int, console: "Console") -> dict[str, Any]:
    """Diagnose and plan, train the demo's recipes, compare, export the clustered one and check it.

    Args:
        output: a folder; finished runs of the same demo in it are taken as they are.
        quick: fewer rows, one epoch each, far from a plateau; written to ``quick`` in the folder.
        seed: of adapters, heads, order and dropout.
        console: where to print.

    Returns:
        What is written to ``demo.json``; ``report.html`` is written beside it.
    """
    if quick:  # beside a demo proper, not instead of it
        output = output / "quick"
    limits = QUICK_ROWS if quick else ROWS
    suite = load_suite("demo", overrides=[f"max_rows={limits}"])
    _introduce(suite, quick, console)
    loader = Loader()
    plan = _plan(_diagnose(suite, output, seed, loader, console), output, console)
    runs: dict[str, Run] = {}
    scores: dict[str, dict[str, TaskScores]] = {}
    for entry in ENTRIES:
        console.print(f"[bold]{entry.recipe}[/]")
        made = plan if entry.recipe == "clustered" else None
        data = merge_for_api(
            BACKBONE,
            entry.recipe,
            made,
            budget=BUDGET if entry.recipe in ("lora", "private") else None,
            training=entry.training(quick),
            seed=seed,
        )
        config = resolve(data, suite, where="demo")
        run = fit(config, suite, output / entry.recipe, resume=True, loader=loader)
        runs[entry.recipe], scores[entry.recipe] = run, run.evaluate()
    print_comparison(suite, runs, scores, quick=quick, console=console)
    check = _ship(runs["clustered"], suite, output / "export", console)
    summary = {
        "quick": quick,
        "seed": seed,
        "rows": limits,
        "budget": BUDGET,
        "plan": to_plain(plan),
        "mean_test_score": {name: overall(found) for name, found in scores.items()},
        "export_max_difference": check,
        "runs": {name: read_json(run.path / "result.json") for name, run in runs.items()},
    }
    write_json(output / "demo.json", summary)
    report = write_report(output)
    console.print(f"everything is in {output}; numbers in {output / 'demo.json'}", markup=False)
    console.print(f"to read, with pictures: {report}", markup=False, soft_wrap=True)
    return summary


def _introduce(suite: TaskSuite, quick: bool, console: "Console") -> None:
    rows = {task: len(suite.rows(task, "train")) for task in suite.names}
    console.print(
        f"{BACKBONE['name']}: {len(rows)} tasks ({', '.join(rows)}), {min(rows.values())} "
        f"training rows each, rank budget {BUDGET}"
    )
    if quick:
        console.print("[yellow]--quick: one epoch each; the scores mean nothing[/]")


def _diagnose(
    suite: TaskSuite, output: Path, seed: int, loader: Loader, console: "Console"
) -> Diagnosis:
    """Measure how the tasks relate; a diagnosis of the same demo is taken as it is."""
    console.print("[bold]diagnose[/]: which tasks pull the model the same way?")
    config = DiagnosisConfig(model=ModelConfig(**BACKBONE), seed=seed)
    file = output / "diagnosis.json"
    if file.is_file():
        found = load_diagnosis(file)
        if found.settings == to_plain(config):
            return found
    found = examine(config, suite, console=console, loader=loader)
    output.mkdir(parents=True, exist_ok=True)
    found.save(file)
    return found


def _plan(found: Diagnosis, output: Path, console: "Console") -> Plan:
    """Say who should share; clusters are compared with even where the advice is to share."""
    console.print(pair_sheet(found, "similarity").to_rich())
    advice = propose(found, budget=BUDGET)
    console.print(f"[bold]plan[/]: {advice.sharing}")
    for reason in advice.reasons:
        console.print(f"- {reason}", markup=False, highlight=False)
    if advice.sharing != "clustered":
        advice = propose(found, budget=BUDGET, sharing="clustered")
        console.print(f"- to compare: {'; '.join(advice.reasons)}", markup=False, highlight=False)
    write_plan(advice, output / "plan.yaml")
    return advice.plan


def _ship(run: Run, suite: TaskSuite, folder: Path, console: "Console") -> dict[str, float]:
    """Export, load the export with stock PEFT on a fresh base, and compare outputs row by row."""
    run.export(folder, format="peft")
    limit = run.config.model.max_length
    rows = {
        task: encode(run.tokenizer, suite.rows(task, "test"), limit)[:CHECKED]
        for task in suite.names
    }
    differences = verify_peft(run.model, run.tokenizer, folder, rows)
    worst = max(differences.values())
    adapters = len(list(folder.glob("adapters/*/adapter_config.json")))
    console.print(
        f"exported to {folder}: {adapters} PEFT adapters; "
        f"loaded with stock PEFT, the outputs differ by at most {worst:.1e} on "
        f"{sum(map(len, rows.values()))} test rows"
    )
    if worst > 1e-4:
        raise RuntimeError(f"the export does not predict what the run predicts: {differences}")
    return differences
