"""What we want of speed, and what the committed results say: ratios, each in one run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """Return a result file's content."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def measured_aims() -> Iterator[tuple[str, str, float, float]]:
    """Yield what is compared with what, the ratio aimed at and the one found."""
    step = read("step.json")["settings"]
    for rank in (8, 64):
        yield from step_aims(step, rank)
    bank = step["attention, rank 64"]["16 private LoRAs"]
    yield "16 gated adapters, mixed batches", "one LoRA of that rank", 1.03, bank["of"]["one LoRA"]
    for dtype in ("float32", "bfloat16"):
        found = read("heads.json")[dtype]["rows"]
        routed, loop = found["routed_heads"], found["routed_heads, loop with A a head"]
        added = (routed["ratio"] - 1) / (loop["ratio"] - 1)
        yield f"five routed heads, {dtype}", "one LoRA of that rank", 1.05, routed["by_lora"]
        yield f"five routed heads, {dtype}, what is added", "a loop's", 0.25, added
    ends = read("end_to_end.json")
    for regime, other, aim in (
        ("private", "a Trainer a task", 0.70),
        ("shared", "plain PEFT loop", 0.33),
    ):
        mine, there = arrival(ends, f"{regime}, coadapt")
        theirs, reached = arrival(ends, f"{regime}, {other}")
        assert there >= ends["target"], "ours has to arrive"
        told = other if reached >= ends["target"] else f"{other}, which stays at {reached:.3f}"
        yield f"{regime}, to {ends['target']} accuracy", told, aim, mine / theirs
    init = read("init.json")["PEFT over HASI"]["all"]["median"]
    yield "HASI of 4 tasks", "PEFT's CorDA four times", 0.20, 1 / init
    for setting, found in read("mixed_inference.json")["settings"].items():
        mine = found["of the base"]["coadapt"]["ratio"]
        yield f"rows of 16 tasks, {setting}", "the base model", 1.05, mine
        mine = found["of PEFT adapter_names"]["coadapt"]["ratio"]
        yield f"rows of 16 tasks, {setting}", "PEFT `adapter_names`", 0.95, mine
    for name, found in read("inference.json")["models"].items():
        mine = found["merged"]["ratio"]
        yield f"merged, {name} (1.00 within noise)", "the base model", 1.05, mine
    choice = read("language.json")["choice"]["rows"]["prompt with every option"]["ratio"]
    yield "a choice of four options", "one option at a time", 0.50, 1 / choice


def step_aims(step: Mapping[str, Any], rank: int) -> Iterator[tuple[str, str, float, float]]:
    """Yield the aims of a step of one LoRA."""
    found = step[f"attention, rank {rank}"]["one LoRA"]
    yield f"`lora` step of rank {rank}, attention", "floor", 1.05, found["ratio"]
    found, what = step[f"all-linear, rank {rank}"]["one LoRA"], f"`lora` step of rank {rank}, all"
    yield what, "floor", 1.15, found["ratio"]
    yield what, "PEFT without dropout", 0.95, found["of"]["PEFT LoRA"]
    yield what, "PEFT with its dropout", 0.80, found["of"]["PEFT LoRA, its dropout 0.05"]


def arrival(data: Mapping[str, Any], case: str) -> tuple[float, float]:
    """Return seconds and accuracy of the shortest schedule that reached the target, or the last."""
    row = {}
    for row in data["cases"][case].values():
        if mean(row["accuracy"]) >= data["target"]:
            break
    return median(row["processor_s"]), mean(row["accuracy"])
