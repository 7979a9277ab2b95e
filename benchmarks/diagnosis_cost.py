"""What a diagnosis takes beside one training run of the same suite.

    python benchmarks/diagnosis_cost.py [--rows 100] [--rounds 3]

The demo's suite and its ``lora`` recipe; each round does both, in turn. Loading the base model and
tokenising, which both need, are done before.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import machine, write

from coadapt import load_suite
from coadapt.backbone import ModelConfig, compute_dtype
from coadapt.demo import BACKBONE, BUDGET, ENTRIES
from coadapt.diagnosis import DiagnosisConfig, examine
from coadapt.fitting import fit
from coadapt.loading import Loader
from coadapt.settings import merge_for_api, resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    limits = {"train": given.rows, "validation": 50, "test": 50}
    suite = load_suite("demo", overrides=[f"max_rows={limits}"])
    entry = next(entry for entry in ENTRIES if entry.recipe == "lora")
    training = {**entry.training(False), "eval_strategy": "no", "save_strategy": "no"}
    training["disable_tqdm"] = True
    data = merge_for_api(BACKBONE, "lora", None, budget=BUDGET, training=training, seed=0)
    config, loader = resolve(data, suite, where="diagnosis_cost"), Loader()
    model = ModelConfig(**BACKBONE)
    loader.backbone(model, compute_dtype(model.dtype), trains=False)
    for task in suite.names:
        loader.encoded(model, suite, task, "train")
    rounds: list[dict[str, Any]] = []
    for _ in range(given.rounds):
        start = time.perf_counter()
        found = examine(DiagnosisConfig(model=model), suite, loader=loader)
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            fit(config, suite, Path(folder) / "run", loader=loader)
        trained = time.perf_counter() - middle
        rounds.append(
            {
                "diagnosis_s": middle - start,
                "training_s": trained,
                "share": (middle - start) / trained,
                "parts_s": found.seconds,
            }
        )
    share = statistics.median(row["share"] for row in rounds)
    print(f"diagnosis: {100 * share:.0f} % of a training run of {entry.epochs} epochs (median)")
    write(
        f"diagnosis_cost_{given.rows}.json",
        {"rows": given.rows, "epochs": entry.epochs, "rounds": rounds, "machine": machine()},
    )


if __name__ == "__main__":
    main()
