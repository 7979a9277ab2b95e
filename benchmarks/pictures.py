"""What an image-text model learns of pictures: the example of easy-VQA, with several seeds.

    python benchmarks/pictures.py --output runs/pictures    # minutes a seed; finished runs are kept

A LLaVA of random weights stays frozen, so what a LoRA in its language part learns it reads from
random features of the pictures. Beside each score the share of the most frequent answer.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _harness import machine, write

import coadapt
from coadapt._stats import mean_interval
from coadapt.runs import Run

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/pictures"
SEEDS = (0, 1, 2)


def trained(output: Path, seed: int) -> Run:
    """Return the example's run with a seed, trained if it is not there."""
    folder = output / f"seed{seed}"
    if not (folder / "result.json").is_file():
        command = [sys.executable, "-m", "coadapt", "train", str(EXAMPLE / "train.yaml")]
        command += ["--output", str(folder), "--seed", str(seed), "--resume"]
        command += ["--set", f"model.name={output / 'llava'}", "--set", "training.use_cpu=true"]
        subprocess.run(command, check=True)
    return coadapt.load_run(folder)


def main() -> None:
    """Train, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output.resolve()
    if not (output / "llava").is_dir():
        make = [sys.executable, str(EXAMPLE / "make_model.py"), str(output / "llava")]
        subprocess.run(make, check=True)
    scores: dict[str, list[dict[str, float]]] = {}
    majority: dict[str, float] = {}
    for seed in SEEDS:
        run = trained(output, seed)
        for task, found in run.evaluate().items():
            score = found.metrics["accuracy"]
            told = {"value": score.value, "low": score.low, "high": score.high}
            scores.setdefault(task, []).append(told)
            labels = run.suite.rows(task, "test").labels.tolist()
            majority[task] = max(Counter(labels).values()) / len(labels)
    tasks: dict[str, Any] = {}
    for task, found in scores.items():
        values = [score["value"] for score in found]
        low, high = mean_interval(values)
        mean = {"value": float(np.mean(values)), "low": low, "high": high}
        tasks[task] = {"majority": majority[task], "over seeds": mean, "over rows, by seed": found}
        beats = sum(score["low"] > majority[task] for score in found)
        print(
            f"{task}: {mean['value']:.3f} ({low:.3f} to {high:.3f}), most frequent answer "
            f"{majority[task]:.3f}; above it with {beats} of {len(SEEDS)} seeds"
        )
    print(write("pictures.json", {"seeds": SEEDS, "tasks": tasks, "machine": machine()}))


if __name__ == "__main__":
    main()
