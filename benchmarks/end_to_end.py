"""Seconds from nothing to a mean accuracy on the demo suite, beside what a user would write.

    python benchmarks/end_to_end.py --output runs/end_to_end   # about an hour of one core; resumes
    python benchmarks/end_to_end.py --report                   # from the committed result

Seven tasks of 600 training rows, all-MiniLM-L6-v2, query and value. Three comparisons:

shared: one LoRA of rank 8 for all tasks, against a plain PEFT loop in float32 on shuffled batches;
private: a LoRA of rank 8 for each task in one run, against one ``transformers.Trainer`` with PEFT
a task (its defaults, with batches of 8), and against one PEFT model with an adapter a task, each
batch a task at a time; bfloat16 autocast as ours is bfloat16, the rate of ours;
heads: HydraLoRA's routed heads of rank 8, against a loop over them as its code has it.

A case is run with schedules of several lengths, each a run of its own from loading the model to
the last step; its time is that of the shortest schedule whose mean accuracy over tasks and seeds,
on 400 test rows a task, is at least the target. Scoring is not timed. Time is the processor's, of
one thread, since the machine does other work.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import RESULTS, machine, threads, write
from against_peft import DECAY, SCALE, TEST_ROWS, WARMUP, Plain
from loops import AdapterLoop, HeadLoop
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from coadapt import Plan, TaskSuite, load_suite, train
from coadapt._files import read_json, write_json
from coadapt.assets import resolve_model
from coadapt.demo import BUDGET, MODEL
from coadapt.recipes import RECIPES
from coadapt.structures import RoutedHeads

ROWS, TARGET, SEEDS = 600, 0.86, (0, 1)
RATES = {"shared": 2e-3, "private": 3e-3, "heads": 7e-4}
NAMES = {"shared": "lora", "private": "private", "heads": "hydra_lora"}
EPOCHS = (4, 6)
PEERS = (
    ("shared", "plain PEFT loop"),
    ("private", "a Trainer a task"),
    ("private", "a loop over adapters"),
    ("heads", "a loop over heads"),
)
Scores = dict[str, float]


def ours(regime: str, suite: TaskSuite, epochs: int, seed: int, folder: Path) -> Callable:
    """Train with coadapt; return what scores the run."""
    names = suite.names
    plan = Plan.shared(names, BUDGET)
    if regime == "private":
        plan = Plan.private(names, BUDGET * len(names))
    run = train(
        MODEL,
        suite,
        recipe=NAMES[regime],
        plan=plan,
        output=folder / "run",
        seed=seed,
        training={
            "learning_rate": RATES[regime],
            "num_train_epochs": epochs,
            "per_device_train_batch_size": 32,
            "warmup_steps": WARMUP,
            "weight_decay": DECAY,
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_strategy": "no",
        },
    )

    def score() -> Scores:
        found = run.evaluate(num_resamples=0)
        return {task: of.metrics["accuracy"].value for task, of in found.items()}

    return score


def plain_loop(suite: TaskSuite, epochs: int, seed: int, _: Path) -> Callable:
    """Train by the loop of against_peft.py in float32."""
    plain = Plain(suite, suite.names, BUDGET, seed, as_ours=False)
    plain.fit(epochs, RATES["shared"], seed)
    return lambda: {task: plain.accuracy(task) for task in suite.names}


def looped(regime: str, suite: TaskSuite, epochs: int, seed: int) -> Callable:
    """Train by a loop over adapters or heads."""
    if regime == "private":
        loop: Plain = AdapterLoop(suite, BUDGET, seed)
    else:
        heads = RECIPES[NAMES["heads"]].recipe.structure
        assert isinstance(heads, RoutedHeads)
        loop = HeadLoop(suite, BUDGET, heads.num_heads, heads.scale, seed)
    loop.fit(epochs, RATES[regime], seed)
    return lambda: {task: loop.accuracy(task) for task in suite.names}


def trainers(suite: TaskSuite, epochs: int, seed: int, folder: Path) -> Callable:
    """Train a PEFT model a task with stock Trainer."""
    made = {task: one_trainer(suite, task, epochs, seed, folder / task) for task in suite.names}

    def score() -> Scores:
        found = {}
        for task, (trainer, rows) in made.items():
            predicted = trainer.predict(rows("test")).predictions.argmax(axis=1)
            found[task] = float((predicted == suite.rows(task, "test").labels).mean())
        return found

    return score


def one_trainer(
    suite: TaskSuite, task: str, epochs: int, seed: int, folder: Path
) -> tuple[Trainer, Callable[[Any], list[dict[str, Any]]]]:
    """Return a trainer that has trained a task, and what makes rows of a split."""
    source = resolve_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=suite.task(task).num_outputs
    )
    config = LoraConfig(
        r=BUDGET,
        lora_alpha=int(SCALE * BUDGET),
        target_modules=["query", "value"],
        task_type=TaskType.SEQ_CLS,
    )

    def rows(split: Any) -> list[dict[str, Any]]:
        found = suite.rows(task, split)
        ids = tokenizer(list(found.texts), truncation=True, max_length=256)["input_ids"]
        return [{"input_ids": i, "label": int(y)} for i, y in zip(ids, found.labels, strict=True)]

    trainer = Trainer(
        get_peft_model(model, config),
        TrainingArguments(
            output_dir=str(folder),
            learning_rate=RATES["private"],
            num_train_epochs=epochs,
            seed=seed,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows("train"),  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    return trainer, rows


CASES: dict[str, Callable[[TaskSuite, int, int, Path], Callable]] = {
    "shared, coadapt": lambda *given: ours("shared", *given),
    "shared, plain PEFT loop": plain_loop,
    "private, coadapt": lambda *given: ours("private", *given),
    "private, a Trainer a task": trainers,
    "private, a loop over adapters": lambda suite, epochs, seed, _: looped(
        "private", suite, epochs, seed
    ),
    "heads, coadapt": lambda *given: ours("heads", *given),
    "heads, a loop over heads": lambda suite, epochs, seed, _: looped("heads", suite, epochs, seed),
}


def cell(case: str, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run a cell, or read it."""
    path = folder / "cells" / f"{case.replace(', ', '_').replace(' ', '_')}-{epochs}-{seed}.json"
    if not path.is_file():
        limits = {"train": ROWS, "test": TEST_ROWS}
        suite = load_suite("demo", overrides=[f"max_rows={limits}"])
        suite.rows(suite.names[0], "train")  # reading files is the same work for all
        scratch = folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        start = time.process_time(), time.perf_counter()
        score = CASES[case](suite, epochs, seed, scratch)
        row = {
            "processor_s": time.process_time() - start[0],
            "wall_s": time.perf_counter() - start[1],
        }
        scores = score()
        write_json(path, {**row, "scores": scores, "mean": float(np.mean(list(scores.values())))})
        print(f"{path.stem}: {row['processor_s']:.0f} s, {np.mean(list(scores.values())):.3f}")
    return read_json(path)


def experiment(folder: Path) -> None:
    """Run longer and longer schedules of each case until it is there; write the result."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for case in CASES:
        schedules = {}
        for epochs in EPOCHS:
            cells = [cell(case, epochs, seed, folder) for seed in SEEDS]
            schedules[epochs] = {
                "accuracy": [c["mean"] for c in cells],
                "processor_s": [c["processor_s"] for c in cells],
                "wall_s": [c["wall_s"] for c in cells],
            }
            if np.mean(schedules[epochs]["accuracy"]) >= TARGET:
                break
        found[case] = schedules
    settings = {"rows": ROWS, "target": TARGET, "seeds": SEEDS, "epochs": EPOCHS, "rates": RATES}
    write("end_to_end.json", {**settings, "cases": found, "machine": machine()})


def report() -> None:
    """Print each schedule, and the ratios where both sides are there."""
    data = read_json(RESULTS / "end_to_end.json")
    for case, schedules in data["cases"].items():
        for epochs, row in schedules.items():
            print(
                f"{case:<28} {epochs:>2} epochs: {np.mean(row['accuracy']):.3f} accuracy, "
                f"{np.median(row['processor_s']):.0f} s of the processor"
            )
    for regime, other in PEERS:
        mine, theirs = (arrival(data, f"{regime}, {name}") for name in ("coadapt", other))
        if mine is not None and theirs is not None:
            ratios = np.divide(mine["processor_s"], theirs["processor_s"])
            told = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{regime}, of {other}: {told}")
        else:
            print(f"{regime}, {other}: not both reached {data['target']}")


def arrival(data: dict[str, Any], case: str) -> dict[str, Any] | None:
    """Return a case's shortest schedule that reached the target."""
    for row in data["cases"][case].values():
        if np.mean(row["accuracy"]) >= data["target"]:
            return row
    return None


def main() -> None:
    """Run, or read, and print."""
    parser = argparse.ArgumentParser(description="seconds to a mean accuracy")
    parser.add_argument("--output", type=Path, default=Path("runs/end_to_end"))
    parser.add_argument("--report", action="store_true", help="read the committed result")
    given = parser.parse_args()
    threads(1)
    if not given.report:
        experiment(given.output)
    report()


if __name__ == "__main__":
    main()
