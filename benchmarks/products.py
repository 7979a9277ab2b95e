"""A step with products made together and in place, beside those that autograd makes map by map.

    python benchmarks/products.py [--rounds 9]

One LoRA on 64 rows of 32 tokens, all-MiniLM-L6-v2, all linear maps, in bfloat16 where the processor
has it: with query, key and value in one product and gradients added where they lie
(``coadapt.adapters.products`` and ``together``), and the same layers without either. Both give the
same gradients. Processor time of one thread; every case in every round.
"""

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from _harness import machine, processor_seconds, summary, threads, write
from step import coadapt_model, floor, optimizer_step
from torch import Tensor

RANKS = (8, 64)


def add_plainly(y: Tensor, h: Tensor, B: Tensor, scale: float, *, into: bool = False) -> Tensor:
    """Return y + s B h as torch's own product and sum, whose gradients autograd makes."""
    assert not into
    flat, columns = y.reshape(-1, y.shape[-1]), h.reshape(-1, h.shape[-1])
    return torch.addmm(flat, columns, B.to(y.dtype).t(), alpha=scale).view(y.shape)


def by_autograd(step: Callable[[], object]) -> Callable[[], object]:
    """Return a step in which no map's products are made by us."""

    def run() -> None:
        with mock.patch.multiple(
            "coadapt.adapters.layer", is_plain=lambda *_: False, add_update=add_plainly
        ):
            step()

    return run


def measured(rank: int, rounds: int) -> dict[str, Any]:
    """Return the ratios of a rank."""
    options = argparse.Namespace(
        model="asset:minilm",
        targets="all-linear",
        rank=rank,
        batch=64,
        length=32,
        dtype="auto",
        attention=None,
    )
    ours, theirs = (coadapt_model(options, 1, bank=False) for _ in range(2))
    for layer in theirs.attached.layers.values():
        layer.together = None  # pyright: ignore[reportArgumentType]
    cases = {
        "floor": floor(options),
        "ours": optimizer_step(options, ours, ours, 1),
        "by autograd": by_autograd(optimizer_step(options, theirs, theirs, 1)),
    }
    seconds = processor_seconds(cases, rounds)
    return {"floor": summary(seconds, "floor"), "by autograd": summary(seconds, "by autograd")}


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="products together and in place, and not")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    threads(1)
    found = {str(rank): measured(rank, given.rounds) for rank in RANKS}
    for rank, rows in found.items():
        print(
            f"rank {rank}: {rows['floor']['ours']['ratio']:.2f} of the floor, by autograd "
            f"{rows['floor']['by autograd']['ratio']:.2f}; a step of it "
            f"{rows['by autograd']['ours']['ratio']:.2f}"
        )
    path = write("products.json", {"rounds": given.rounds, "ranks": found, "machine": machine()})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
