"""What torch.compile takes and gives in a training step.

    python benchmarks/compiling.py [--rounds 15]

The step of step.py (64 rows of 32 tokens, all linear maps of all-MiniLM-L6-v2, bfloat16 where the
processor has it): the floor, one LoRA and 16 private ones, each as it stands and compiled
(``training: {torch_compile: true}``), with the seconds that the first two steps took.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from _harness import machine, processor_seconds, summary, threads, write
from step import coadapt_model, optimizer_step

CASES = {"one LoRA": (1, 8), "16 private LoRAs": (16, 64)}


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="a step as it stands, and compiled")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    threads(1)
    found: dict[str, Any] = {}
    for name, (blocks, rank) in CASES.items():
        options = argparse.Namespace(
            model="asset:minilm",
            targets="all-linear",
            rank=rank,
            batch=64,
            length=32,
            dtype="auto",
            attention=None,
        )
        steps: dict[str, Callable[[], object]] = {}
        for kind in ("as it stands", "compiled"):
            model = coadapt_model(options, blocks, bank=blocks > 1)
            run = model if kind == "as it stands" else torch.compile(model)
            steps[kind] = optimizer_step(options, model, run, blocks)
        start = time.perf_counter()
        steps["compiled"]()
        steps["compiled"]()
        seconds = time.perf_counter() - start
        rows = summary(processor_seconds(steps, given.rounds), "as it stands")
        found[name] = {"first_two_steps_s": seconds, "rows": rows}
        row = rows["compiled"]
        print(
            f"{name}: {row['ratio']:.2f} ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}) of the "
            f"step as it stands, {row['median_s']:.3f} s; the first two took {seconds:.0f} s"
        )
    path = write("compiling.json", {"rounds": given.rounds, "cases": found, "machine": machine()})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
