"""Every benchmark of speed and memory, one after the other, and the page of their results.

    make bench                                     # about an hour and a half
    make bench BENCH_ARGS="--only step scaling"
    make bench BENCH_ARGS="--data-root DIR"        # and init.py on DIR/<task>/train.jsonl

Each answers one question and writes one file of results, which says on what machine it was taken.
Then docs/benchmarks.md is made of all files.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
QUESTIONS = (
    "step",
    "products",
    "thin_products",
    "scaling",
    "sweeps",
    "heads",
    "regularizers",
    "prompts",
    "compiling",
    "tokenizing",
    "inference",
    "mixed_inference",
    "evaluation",
    "shipping",
    "language",
    "diagnosis_cost",
    "end_to_end",
)
WITH_DATA = ("init",)


def main() -> None:
    """Run what was asked for; a failure stops it."""
    parser = argparse.ArgumentParser(description="every benchmark of speed and memory")
    parser.add_argument("--only", nargs="+", choices=(*QUESTIONS, *WITH_DATA))
    parser.add_argument("--data-root", type=Path, help="of the commonsense tasks, for init")
    given = parser.parse_args()
    asked = given.only or (*QUESTIONS, *(WITH_DATA if given.data_root else ()))
    for name in asked:
        command = [sys.executable, str(HERE / f"{name}.py")]
        if name in WITH_DATA:
            if given.data_root is None:
                parser.error(f"{name} reads the commonsense tasks; give --data-root")
            command += ["--data-root", str(given.data_root)]
        start = time.perf_counter()
        print(f"::: {name}", flush=True)
        subprocess.run(command, check=True)
        print(f"::: {name}: {time.perf_counter() - start:.0f} s", flush=True)
    subprocess.run([sys.executable, str(HERE / "page.py")], check=True)


if __name__ == "__main__":
    main()
