"""What inference costs: merged, as adapters, gated by task, routed by token.

    python benchmarks/inference.py [--rounds 7]

ThanoRA's table 3 on processors: the base model, one LoRA merged into it or beside it, one with a
frozen start (as ThanoRA's, of twice the rank), DoRA, a LoRA a task for a batch of one task and of
all, and HydraLoRA with three and four heads of as many trained values. All linear maps, summed rank
64, random factors; asset:minilm on 16 rows of 128 tokens, and asset:smollm2 on 4 rows of 128: a
forward of all of them, in float32 and bfloat16, and eight more tokens after them, one by one. Times
are of the processor, on one thread; every case runs in every round, and ratios are to the base of
that round. Before, in float32, merged and unmerged outputs are compared.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from _harness import machine, processor_seconds, summary, threads, write
from torch import Tensor

from coadapt.adapters import eject
from coadapt.adapters.linear import linear_weight
from coadapt.backbone import ModelConfig
from coadapt.inits import Default, RLora
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel, build_model
from coadapt.modes import answering
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Bank, Dora, RoutedHeads, Single, Structure
from coadapt.study.budget import Counter
from coadapt.tasks import FileSource, Task

RANK, TASKS = 64, ("a", "b", "c", "d")
LENGTH, WRITTEN = 128, 8


@dataclass(frozen=True)
class Work:
    """A base model, the rows of a batch, and what is done with them."""

    model: str
    rows: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    writes: bool = False

    @property
    def name(self) -> str:
        parts = [self.model] + [self.dtype] * (self.dtype != "float32")
        return ", ".join(parts + ["token by token"] * self.writes)


WORK = (
    Work("asset:minilm", 16),
    Work("asset:smollm2", 4),
    Work("asset:smollm2", 4, "bfloat16"),
    Work("asset:smollm2", 4, "bfloat16", writes=True),
)


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
    """Forwards of one base model."""

    def __init__(self, work: Work) -> None:
        self.work, self.rows, self.loader = work, work.rows, Loader()
        self.answering = ExitStack()
        self.config = ModelConfig(name=work.model, dtype=work.dtype, target_modules="all-linear")
        self.encoder = self.loader.kind(self.config) == "encoder"
        self.counter = Counter(self.config)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 20000, (work.rows, LENGTH), generator=generator)
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
        """Return what is done, for rows of one task or of all in turn.

        Factors last, as in evaluation and generation.
        """
        self.answering.enter_context(answering(model))
        task_ids = torch.arange(self.rows) % (len(TASKS) if mixed else 1)
        if self.work.writes:
            return self.writing(model, task_ids)

        @torch.no_grad()
        def run() -> Tensor:
            model.route.set(task_ids)
            return model.backbone.base_model(**self.batch).last_hidden_state

        return run

    @torch.no_grad()
    def writing(self, model: MultiTaskModel, task_ids: Tensor) -> Callable[[], Tensor]:
        """Return eight steps of a token a row after the batch, which is cached."""
        model.route.set(task_ids)
        cache = model.backbone.base_model(**self.batch, use_cache=True).past_key_values
        token = self.batch["input_ids"][:, :1]

        @torch.no_grad()
        def run() -> Tensor:
            model.route.set(task_ids)
            if (written := cache.get_seq_length() - LENGTH) > 0:
                cache.crop(-written)
            logits = [
                model.backbone(input_ids=token, past_key_values=cache, use_cache=True).logits
                for _ in range(WRITTEN)
            ]
            return logits[-1]

        return run

    def merged(self) -> Callable[[], Tensor]:
        """Return a forward of the base model with a LoRA's update in its weights."""
        model = self.model(Single())
        layers = model.attached.layers
        eject(model.backbone, layers)
        for name, layer in layers.items():
            map_ = model.backbone.get_submodule(name)
            old = linear_weight(map_)
            whole = (old + layer.delta(0)).to(old.dtype)  # a new tensor: others share the old one
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
        if self.work.dtype == "float32":
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
    for work in WORK:
        bench = Bench(work)
        with bench.answering:
            seconds = processor_seconds(bench.cases(), options.rounds)
        found[work.name] = summary(seconds, "base")
        print(f"{work.name}: {work.rows} rows of {LENGTH} tokens")
        for case, row in found[work.name].items():
            speed = work.rows * (WRITTEN if work.writes else 1) / row["median_s"]
            print(
                f"  {case:<32} {row['ratio']:.2f} ({row['ratio_q1']:.2f} - {row['ratio_q3']:.2f}), "
                f"{speed:.1f} {'tokens' if work.writes else 'rows'} a second"
            )
    path = write(
        "inference.json",
        {"rank": RANK, "tasks": len(TASKS), "rounds": options.rounds}
        | {"models": found, "machine": machine()},
    )
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
