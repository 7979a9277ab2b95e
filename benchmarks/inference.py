"""What a forward costs without gradients: merged, as adapters, gated by task, routed by token.

    python benchmarks/inference.py [--rounds 7]

ThanoRA's table 3 on processors: the base model, one LoRA merged into it or beside it, one with a
frozen start (as ThanoRA's, of twice the rank), DoRA, a LoRA a task for a batch of one task and of
all, and HydraLoRA with three and four heads of as many trained values. All linear maps, summed rank
64, random factors; asset:minilm on 16 rows of 128 tokens, and asset:smollm2 on 4 rows of 128. Times
are of the processor, on one thread; every case runs in every round, and ratios are to the base of
that round. Before, merged and unmerged outputs are compared.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _harness import machine, processor_seconds, summary, threads, write
from torch import Tensor

from coadapt.adapters import eject
from coadapt.adapters.linear import linear_weight
from coadapt.backbone import ModelConfig
from coadapt.inits import Default, RLora
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Bank, Dora, RoutedHeads, Single, Structure
from coadapt.study.budget import Counter
from coadapt.tasks import FileSource, Task

RANK, TASKS = 64, ("a", "b", "c", "d")
MODELS = {"asset:minilm": 16, "asset:smollm2": 4}
LENGTH = 128


def task_of(name: str, encoder: bool) -> Task:
    nowhere = FileSource(path="never-read.jsonl")
    if encoder:
        return Task(name=name, kind="classification", data=nowhere, labels=("no", "yes"))
    return Task(name=name, kind="generation", data=nowhere, label="answer")


@torch.no_grad()
def randomized(model: MultiTaskModel) -> MultiTaskModel:
    """Fill the factors: B = 0 would hide what merging gets wrong."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.attached.tensors().items():
        if name.endswith(("/A", "/B")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.01)
    return model.eval()


class Bench:
    """Forwards of one base model.

    Args:
        name: of the model.
        rows: of a batch.
    """

    def __init__(self, name: str, rows: int) -> None:
        self.config = ModelConfig(name=name, dtype="float32", target_modules="all-linear")
        self.loader, self.rows = Loader(), rows
        self.encoder = self.loader.kind(self.config) == "encoder"
        self.counter = Counter(self.config)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 20000, (rows, LENGTH), generator=generator)
        self.batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def model(self, structure: Structure, init: Any = None) -> MultiTaskModel:
        """Return a model with random factors, heads at the rank that trains no more than a LoRA."""
        recipe = Recipe(structure=structure, init=init or Default())
        plan = Plan.shared(TASKS, RANK)
        if structure.kind == "bank":
            plan = Plan.private(TASKS, RANK)
        elif structure.multiplies:
            plan = Plan.shared(TASKS, self.counter.matched_rank(recipe, TASKS, RANK))
        tasks = [task_of(name, self.encoder) for name in TASKS]
        return randomized(build_model(self.config, tasks, recipe, plan, loader=self.loader))

    def forward(self, model: MultiTaskModel, mixed: bool = False) -> Callable[[], Tensor]:
        """Return a forward of the backbone for rows of one task, or of all in turn."""
        task_ids = torch.arange(self.rows) % (len(TASKS) if mixed else 1)

        @torch.no_grad()
        def run() -> Tensor:
            model.route.set(task_ids)
            return model.backbone.base_model(**self.batch).last_hidden_state

        return run

    def merged(self) -> Callable[[], Tensor]:
        """Return a forward of the base model with a LoRA's update in its weights."""
        model = self.model(Single())
        layers = model.attached.layers
        eject(model.backbone, layers)
        for name, layer in layers.items():
            map_ = model.backbone.get_submodule(name)
            whole = linear_weight(map_) + layer.delta(0)  # a new tensor: others share the old one
            map_.weight = torch.nn.Parameter(whole, requires_grad=False)
        return self.forward(model)

    def cases(self) -> dict[str, Any]:
        """Return every forward."""
        base = self.model(Single())
        eject(base.backbone, base.attached.layers)
        bank = self.model(Bank())
        found: dict[str, Any] = {
            "base": self.forward(base),
            "merged": self.merged(),
            "LoRA": self.forward(self.model(Single())),
            "LoRA with a frozen start": self.forward(self.model(Single(), RLora())),
            "DoRA": self.forward(self.model(Dora())),
            "LoRA a task, one task a batch": self.forward(bank),
            "LoRA a task, all in a batch": self.forward(bank, mixed=True),
            "HydraLoRA 3B1A": self.forward(self.model(RoutedHeads(num_heads=3))),
            "HydraLoRA 4B1A": self.forward(self.model(RoutedHeads(num_heads=4))),
        }
        off = float((found["merged"]() - found["LoRA"]()).abs().max())
        assert off < 1e-3, f"merged and unmerged differ by {off}"
        assert float((found["merged"]() - found["base"]()).abs().max()) > 10 * off
        return found


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="forwards without gradients")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    threads(1)
    found: dict[str, Any] = {}
    for name, rows in MODELS.items():
        seconds = processor_seconds(Bench(name, rows).cases(), options.rounds)
        found[name] = summary(seconds, "base")
        print(f"{name}: {rows} rows of {LENGTH} tokens")
        for case, row in found[name].items():
            speed = rows / row["median_s"]
            print(
                f"  {case:<32} {row['ratio']:.2f} ({row['ratio_q1']:.2f} - {row['ratio_q3']:.2f}), "
                f"{speed:.1f} rows a second"
            )
    path = write(
        "inference.json",
        {"rank": RANK, "tasks": len(TASKS), "rounds": options.rounds}
        | {"models": found, "machine": machine()},
    )
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
