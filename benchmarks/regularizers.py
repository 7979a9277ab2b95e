"""What the terms on factors add to a training step, and the memory that each takes.

    python benchmarks/regularizers.py [--rounds 9]

Steps are forward, backward and AdamW of a BERT of random weights, in the size of MiniLM, with a
block a task and a cooperative one; every case runs in every round, in processor time on one thread.
Memory is what a term's tensors take at the most, forward and backward, beside the factors and their
gradients. It is counted from the tensors as they come and go, which needs no quiet machine, and on
torch's meta device no memory either, so that the maps of a 7B model can be counted too.
"""

import argparse
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from _harness import machine, processor_seconds, summary, threads, write
from heads import batch, tasks_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel

from coadapt.backbone import ModelConfig
from coadapt.model import MultiTaskModel
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.regularizers import Captured, LayerFactors, OLora, Pego, Regularizer, Spr
from coadapt.structures import Single

SEED = 0
WITHOUT = "without"
TERMS: dict[str, Regularizer] = {
    "spr": Spr(),
    "spr, normalized": Spr(normalized=True),
    "o_lora": OLora(),
    "pego": Pego(),
    "pego, all rows at once": Pego(chunk=None),
}
# (out, in) of the maps of a layer of LLaMA-7B, of which it has 32.
QKV = ((4096, 4096),) * 3
LLAMA = (*QKV, (4096, 4096), (11008, 4096), (11008, 4096), (4096, 11008))
# ThanoRA's table 5, in MB, on that model in LLaVA, by tasks.
PUBLISHED = {
    "qkv": {"spr": {2: 65.16, 4: 237.39}, "pego": {2: 15360.23, 4: None}},
    "all": {"spr": {2: 206.45, 4: 751.36}, "pego": {2: None, 4: None}},
}


class Steps:
    """Steps of one base model with one plan."""

    def __init__(self, options: argparse.Namespace, target: str) -> None:
        self._options, self._tasks = options, tasks_of(options)
        self._config = ModelConfig(
            name="random", target_modules=target, dtype="float32", backbone_dropout=False
        )
        self._bert = BertConfig(
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=12,
            intermediate_size=4 * options.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    def cases(self) -> dict[str, Callable[[], object]]:
        """Return the step without a term and with SPR, and the terms alone."""
        with_spr = self._model(TERMS["spr"])
        found = {WITHOUT: self._step(self._model()), "spr": self._step(with_spr)}
        for name, part in TERMS.items():
            found[f"{name}, alone"] = self._alone(self._model(part))
        return found

    def _model(self, *regularizers: Regularizer) -> MultiTaskModel:
        torch.manual_seed(SEED)
        backbone = BertModel(self._bert, add_pooling_layer=False).requires_grad_(False)
        model = MultiTaskModel(
            backbone,
            "mean",
            self._tasks,
            recipe=Recipe(structure=Single(), regularizers=regularizers),
            plan=Plan.cooperative([task.name for task in self._tasks], self._options.rank),
            config=self._config,
            seed=SEED,
        )
        with torch.no_grad():  # the terms are 0 in B at start
            for layer in model.attached.layers.values():
                for B in layer.B:
                    B.normal_(std=0.02)
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

    def _alone(self, model: MultiTaskModel) -> Callable[[], object]:
        penalties, nothing = model.penalties, torch.zeros(0, dtype=torch.long)
        assert penalties is not None

        def term() -> None:
            penalties.of_weights(nothing)[0].backward()
            model.zero_grad()

        return term


class PeakBytes(TorchDispatchMode):
    """Counts what the tensors made under it take at the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._total = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at what it made."""
        given = {id(storage) for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            key, size = id(storage), storage.nbytes()
            if key not in given and key not in self._live:
                gone = functools.partial(self._let_go, key, size)
                self._live[key] = weakref.ref(storage, gone)
                self._total += size
        self.peak = max(self.peak, self._total)
        return found

    def _let_go(self, key: int, size: int, _: object) -> None:
        del self._live[key]
        self._total -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [part.untyped_storage() for part in tree_leaves(values) if isinstance(part, Tensor)]


def layers_of(
    shapes: Sequence[tuple[int, int]], tasks: int, rank: int, device: str
) -> dict[str, LayerFactors]:
    """Return random factors of maps of these (out, in), ranks as in ThanoRA's plan."""
    generator = torch.Generator().manual_seed(SEED) if device == "cpu" else None
    blocks = Plan.cooperative([f"t{index}" for index in range(tasks)], rank).blocks

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).requires_grad_()

    return {
        f"map{index}": LayerFactors(
            A={name: drawn(block.rank, d_in) for name, block in blocks.items()},
            B={name: drawn(d_out, block.rank) for name, block in blocks.items()},
            base=nn.Identity(),
            common=frozenset({"cooperative"}),
        )
        for index, (d_out, d_in) in enumerate(shapes)
    }


def peak_mb(part: Regularizer, layers: dict[str, LayerFactors]) -> float:
    """Return the megabytes that the term and its backward pass take.

    Beside factors and their gradients, which training has anyhow.
    """
    for layer in layers.values():
        for part_of in (*layer.A.values(), *layer.B.values()):
            part_of.grad = torch.zeros_like(part_of)
    nothing = torch.zeros(0, dtype=torch.long)
    captured = Captured(task_ids=nothing, valid=nothing[:, None].bool(), factors=layers)
    with PeakBytes() as counted:
        part.loss(captured).backward()
    return counted.peak / 1e6


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row a term, number of tasks and set of maps."""
    cases: list[tuple[str, tuple[tuple[int, int], ...], str]] = [
        (f"{options.maps} maps of {d} x {d}", ((d, d),) * options.maps, "cpu")
        for d in options.dimensions
    ]
    cases += [("LLaMA-7B, qkv", QKV * 32, "meta"), ("LLaMA-7B, all", LLAMA * 32, "meta")]
    rows = []
    for name, shapes, device in cases:
        for tasks in (2, 4):
            numbers = sum((d_out + d_in) * options.rank for d_out, d_in in shapes)
            row: dict[str, Any] = {"maps": name, "tasks": tasks, "factors_mb": 4e-6 * numbers}
            for term in ("spr", "pego", "pego, all rows at once"):
                layers = layers_of(shapes, tasks, options.rank, device)
                row[term] = peak_mb(TERMS[term], layers)
            kind = name.rpartition(", ")[2]
            if kind in PUBLISHED:
                row["published_mb"] = {of: by[tasks] for of, by in PUBLISHED[kind].items()}
            print(row)
            rows.append(row)
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", default=["attention", "all-linear"])
    parser.add_argument("--rank", type=int, default=64, help="summed over the blocks")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dimensions", nargs="+", type=int, default=[768, 2048])
    parser.add_argument("--maps", type=int, default=4, help="of the memory's dimensions")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", default="regularizers.json", help="name of the result file")
    options = parser.parse_args()
    assert options.rounds >= 7, "a median of fewer rounds says little"
    threads(1)
    steps = {}
    for target in options.targets:
        seconds = processor_seconds(Steps(options, target).cases(), options.rounds)
        steps[target] = summary(seconds, WITHOUT)
        print(f"{target}: a step takes {1e3 * steps[target][WITHOUT]['median_s']:.0f} ms")
        for name, row in steps[target].items():
            quartiles = f"{row['ratio_q1']:.4f} - {row['ratio_q3']:.4f}"
            print(f"  {name:32} {row['ratio']:8.4f} ({quartiles}) of it")
    results = {"options": vars(options), "seed": SEED, "machine": machine()}
    path = write(options.output, {**results, "steps": steps, "memory_mb": memory(options)})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
