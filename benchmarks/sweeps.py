"""What a training step costs as heads, rows and tokens grow.

    python benchmarks/sweeps.py [--rounds 9]

On the BERT of random weights of scaling.py, all linear maps: 2 to 16 routed heads of rank 8 beside
one LoRA of their summed rank; then one LoRA of rank 8 for batches of 4 to 64 rows of 16 to 256
tokens, beside the floor of as many. Processor time of one thread, every case in every round.
"""

import argparse
from typing import Any

from _harness import machine, processor_seconds, summary, threads, write
from scaling import Step, adapted, floor, stepping

from coadapt.planning import Plan
from coadapt.structures import RoutedHeads

HEADS = (2, 4, 8, 16)
ROWS, TOKENS = (4, 16, 64), (16, 64, 256)
RANK = 8


def by_heads(options: argparse.Namespace) -> dict[str, Any]:
    """Return the cost of routed heads and of one LoRA, by the number of heads."""
    cases: dict[str, Step] = {"floor": floor(options, options.layers)}
    names = ["t0"]
    for number in HEADS:
        heads = RoutedHeads(scale=2.0, num_heads=number)
        plan = Plan.shared(names, RANK)
        cases[f"{number} heads"] = stepping(options, options.layers, names, heads, plan)
        cases[f"LoRA for {number}"] = adapted(options, options.layers, 1, RANK * number)
    seconds = processor_seconds(cases, options.rounds)
    found = summary(seconds, "floor")
    return {
        str(number): {
            "heads": found[f"{number} heads"],
            "LoRA": found[f"LoRA for {number}"],
            "heads of LoRA": summary(seconds, f"LoRA for {number}")[f"{number} heads"],
        }
        for number in HEADS
    }


def by_batch(options: argparse.Namespace) -> dict[str, Any]:
    """Return the cost of one LoRA by rows and tokens."""
    found = {}
    for rows in ROWS:
        for tokens in TOKENS:
            sized = argparse.Namespace(**{**vars(options), "batch": rows, "length": tokens})
            cases = {
                "floor": floor(sized, sized.layers),
                "LoRA": adapted(sized, sized.layers, 1, RANK),
            }
            seconds = processor_seconds(cases, options.rounds)
            found[f"{rows} rows of {tokens}"] = summary(seconds, "floor")["LoRA"]
    return found


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description="a step as heads, rows and tokens grow")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    threads(1)
    options = argparse.Namespace(
        width=384,
        layers=2,
        targets="all-linear",
        batch=64,
        length=32,
        dtype="auto",
        rounds=given.rounds,
    )
    data = {"heads": by_heads(options), "batches": by_batch(options)}
    for number, row in data["heads"].items():
        print(
            f"{number} heads: {row['heads']['ratio']:.2f} of the floor, "
            f"{row['heads of LoRA']['ratio']:.2f} of one LoRA"
        )
    for size, row in data["batches"].items():
        print(f"{size} tokens: {row['ratio']:.2f} ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f})")
    path = write("sweeps.json", {"options": vars(options), **data, "machine": machine()})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
