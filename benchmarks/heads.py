"""What several heads, and the alignments, add to a training step.

    python benchmarks/heads.py [--rounds 7] [--dtypes float32 bfloat16]

A step is forward, backward and AdamW on one batch of rows of five tasks; the floor is the frozen
backbone's forward and its backward to the embeddings. Beside the heads stand loops over heads as
the methods' published code writes them: one pair of small products after the other, with A x
computed once a map or, as HydraLoRA's code has it, once a head. The alignments are timed in a step,
against the same step without, and alone: the term and its backward, on what one forward left.
Times are of the processor, on one thread, which what else a machine does touches little; every case
runs in every round.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _harness import machine, processor_seconds, summary, threads, write
from torch import Tensor, nn
from torch.nn import functional as F

from coadapt.adapters import linear_shape, target_names
from coadapt.backbone import ModelConfig
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.regularizers import AlignKL, AlignMMD
from coadapt.structures import Experts, Frozen, Heads, RoutedHeads, Single, Structure
from coadapt.tasks import FileSource, Task

FLOOR, LORA = "floor", "LoRA"
ALIGNMENTS = (AlignKL(), AlignMMD())
# Each with the loops that it stands in for.
LOOPS = {
    "heads": ("heads, loop",),
    "heads, dropout 0.1": ("heads, loop",),
    "routed_heads": ("routed_heads, loop", "routed_heads, loop with A a head"),
    "experts": ("experts, loop",),
}


class Looped(nn.Module):
    """N heads one after the other, as in the forward of the published code.

    Args:
        base: the frozen map.
        rank: of a head.
        num_heads: N.
        routed: whether a router weighs them.
        down: ``once`` for A x once a map, ``each`` for once a head, ``own`` for an A a head.
        scale: of the update.
    """

    def __init__(
        self, base: nn.Module, *, rank: int, num_heads: int, routed: bool, down: str, scale: float
    ) -> None:
        super().__init__()
        shape = linear_shape(base)
        assert shape is not None
        d_in, d_out = shape
        self.base, self.num_heads, self.down, self.scale = base, num_heads, down, scale
        downs = num_heads if down == "own" else 1
        self.A = nn.ModuleList(nn.Linear(d_in, rank, bias=False) for _ in range(downs))
        self.B = nn.ModuleList(nn.Linear(rank, d_out, bias=False) for _ in range(num_heads))
        self.router = nn.Linear(d_in, num_heads, bias=False) if routed else None
        for B in self.B:
            nn.init.zeros_(B.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., out) for x (..., in)."""
        y = self.base(x)
        weights = None
        if self.router is not None:
            logits = _product(x, self.router)
            weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(y.dtype)
        z = _product(x, self.A[0]) if self.down == "once" else None
        for head in range(self.num_heads):
            own = self.A[head if self.down == "own" else 0]
            update = _product(_product(x, own) if z is None else z, self.B[head])
            if weights is not None:
                update = torch.unsqueeze(weights[..., head], -1) * update
            y = y + update * self.scale
        return y


def _product(x: Tensor, linear: nn.Module) -> Tensor:
    # Factors in float32, products in the backbone's dtype, as in the layer that it is beside.
    return F.linear(x, linear.get_parameter("weight").to(x.dtype))


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """Return the tasks, whose data nobody reads."""
    data = FileSource(path="unused.jsonl")
    return [
        Task(name=f"t{index}", kind="classification", data=data, labels=("a", "b"))
        for index in range(options.tasks)
    ]


def batch(options: argparse.Namespace) -> dict[str, Tensor]:
    """Return random rows, tasks in turn."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (options.batch, options.length), generator=generator)
    rows = torch.arange(options.batch)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "task_ids": rows % options.tasks,
        "labels": (rows % 2).float(),
    }


class Cases:
    """Steps on one base model in one dtype; all share its weights."""

    def __init__(self, options: argparse.Namespace, dtype: Any) -> None:
        self._options = options
        # Without the backbone's dropout, whose masks would make every share look smaller.
        self._config = ModelConfig(
            name=options.model, target_modules="all-linear", dtype=dtype, backbone_dropout=False
        )
        self._loader, self._tasks = Loader(), tasks_of(options)

    def _model(self, structure: Structure, rank: int | None, *regularizers: Any) -> MultiTaskModel:
        names = [task.name for task in self._tasks]
        plan = None if rank is None else Plan.shared(names, rank)
        recipe = Recipe(structure=structure, regularizers=regularizers)
        model = build_model(self._config, self._tasks, recipe, plan, loader=self._loader)
        return model.train()

    def _step(self, model: MultiTaskModel) -> Callable[[], object]:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        rows = batch(self._options)

        def step() -> None:
            model(**rows)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _floor(self) -> Callable[[], object]:
        model = self._model(Frozen(), None)
        model.backbone.enable_input_require_grads()
        return self._step(model)

    def _looped(self, **how: Any) -> Callable[[], object]:
        options, model = self._options, self._model(Frozen(), None)
        torch.manual_seed(0)
        for name in target_names(model.backbone, "all-linear"):
            parent, _, child = name.rpartition(".")
            base = model.backbone.get_submodule(name)
            looped = Looped(base, rank=options.rank, num_heads=options.heads, scale=2.0, **how)
            setattr(model.backbone.get_submodule(parent), child, looped)
        return self._step(model)

    def structures(self) -> dict[str, Callable[[], object]]:
        """Return what trains, at one summed rank of B."""
        rank, number = self._options.rank, self._options.heads
        structures: dict[str, Structure] = {
            "heads": Heads(num_heads=number),
            "heads, dropout 0.1": Heads(num_heads=number, dropout=0.1),
            "routed_heads": RoutedHeads(num_heads=number),
            "experts": Experts(num_experts=number),
        }
        return {
            FLOOR: self._floor(),
            LORA: self._step(self._model(Single(), rank * number)),
            **{name: self._step(self._model(part, rank)) for name, part in structures.items()},
            "heads, loop": self._looped(routed=False, down="once"),
            "routed_heads, loop": self._looped(routed=True, down="once"),
            "routed_heads, loop with A a head": self._looped(routed=True, down="each"),
            "experts, loop": self._looped(routed=True, down="own"),
        }

    def alignments(self, rank: int) -> dict[str, Callable[[], object]]:
        """Return a plain LoRA's step, the same with each alignment, and each alignment alone."""
        found = {LORA: self._step(self._model(Single(), rank))}
        for part in ALIGNMENTS:
            model = self._model(Single(), rank, part)
            found[part.kind] = self._step(model)
            found[f"{part.kind} alone"] = self._alone(model)
        return found

    def _alone(self, model: MultiTaskModel) -> Callable[[], object]:
        rows, penalties = batch(self._options), model.penalties
        assert penalties is not None
        task_ids, labels = rows.pop("task_ids"), rows.pop("labels")
        model.route.set(task_ids)
        with model.route.noting(penalties.watched) as noted:
            model.backbone(**rows)
        kept = {
            kind: {name: z.detach().clone().requires_grad_() for name, z in of.items()}
            for kind, of in noted.items()
        }

        def term() -> None:
            penalties(kept, task_ids, labels, rows, model.route)[0].backward()

        return term


def median_of(seconds: dict[str, list[float]], share: Callable[..., float], *names: str) -> float:
    """Return the median over rounds of what is made of the named cases' times."""
    rounds = zip(*(seconds[name] for name in names), strict=True)
    return statistics.median(share(*times) for times in rounds)


def of_structures(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians over rounds, with steps by LoRA's and overheads by the loops'."""
    rows = summary(seconds, FLOOR)
    for name, row in rows.items():
        row["by_lora"] = median_of(seconds, lambda a, b: a / b, name, LORA)
    loops = {
        name: {
            loop: median_of(seconds, lambda a, b, f: (a - f) / (b - f), name, loop, FLOOR)
            for loop in loops
        }
        for name, loops in LOOPS.items()
    }
    return {"rows": rows, "overhead_by_loop": loops}


def show(dtype: str, found: dict[str, Any]) -> None:
    """Print tables."""
    print(f"{dtype:34} {'median ms':>10} {'x floor':>8} {'quartiles':>13} {'x LoRA':>7}")
    for name, row in found["rows"].items():
        quartiles = f"{row['ratio_q1']:.2f} - {row['ratio_q3']:.2f}"
        print(
            f"{name:34} {1e3 * row['median_s']:10.0f} {row['ratio']:8.3f} {quartiles:>13} "
            f"{row['by_lora']:7.3f}"
        )
    for name, loops in found["overhead_by_loop"].items():
        for loop, share in loops.items():
            print(f"  overhead of {name} by that of {loop}: {share:.2f}")
    for rank, rows in found["alignments"].items():
        print(f"  LoRA of rank {rank}, {1e3 * rows[LORA]['median_s']:.0f} ms, by its step:")
        for name, row in rows.items():
            print(
                f"    {name:18} {row['ratio']:.3f} ({row['ratio_q1']:.3f} - {row['ratio_q3']:.3f})"
            )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="asset:minilm")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rank", type=int, default=8, help="of a head or expert")
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", default="heads.json", help="name of the result file")
    options = parser.parse_args()
    assert options.rounds >= 7, "a median of fewer rounds says little"
    threads(1)
    results = {}
    for dtype in options.dtypes:
        cases = Cases(options, dtype)
        found = of_structures(processor_seconds(cases.structures(), options.rounds))
        found["alignments"] = {}
        for rank in (options.rank, options.rank * options.heads):
            seconds = processor_seconds(cases.alignments(rank), options.rounds)
            found["alignments"][rank] = summary(seconds, LORA)
        show(dtype, found)
        results[dtype] = found
    path = write(options.output, {"options": vars(options), "machine": machine(), **results})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
