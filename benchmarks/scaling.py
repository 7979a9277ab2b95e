"""What a training step costs as tasks, rank and layers grow, and where products by row pay.

    python benchmarks/scaling.py [--rounds 9] [--dtype auto]

Private adapters of ``--rank`` each, one for every task, so that the rank of all grows with the
tasks; all blocks' entries for every row (joint) beside each row's own (by row), and what the layer
chooses. Then one LoRA of growing rank, and growing layers. Every case runs in every round. Ratios
are to the frozen model's forward and backward; exponents are of what is added to it.
Processor time of one thread.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from _harness import machine, processor_seconds, summary, threads, write
from torch import Tensor
from transformers import AutoModel, BertConfig

from coadapt.adapters import TaskGate
from coadapt.backbone import ModelConfig, compute_dtype
from coadapt.model import MultiTaskModel
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Bank, Single, Structure
from coadapt.tasks import FileSource, Task

TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RANKS = (4, 16, 64, 256)
LAYERS = (2, 4, 8, 12)
PATHS = {"joint": 10**9, "by row": 0}  # -> the least rank from which products are by row
Step = Callable[[], object]


def backbone(options: argparse.Namespace, layers: int) -> Any:
    """Return a frozen BERT of random weights."""
    config = BertConfig(
        hidden_size=options.width,
        num_hidden_layers=layers,
        num_attention_heads=options.width // 32,
        intermediate_size=4 * options.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(
        config, attn_implementation="eager", dtype=compute_dtype(options.dtype)
    )
    return model.requires_grad_(False).train()


def batch(options: argparse.Namespace, num_tasks: int) -> dict[str, Tensor]:
    """Return random rows, tasks in turn."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (options.batch, options.length), generator=generator)
    rows = torch.arange(options.batch)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "task_ids": rows % num_tasks,
        "labels": (rows % 2).float(),
    }


def floor(options: argparse.Namespace, layers: int) -> Step:
    """Frozen forward and the backward to the embeddings."""
    model = backbone(options, layers)
    model.enable_input_require_grads()
    rows = batch(options, 1)

    def step() -> None:
        out = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
        out.last_hidden_state.float().mean().backward()

    return step


def stepping(
    options: argparse.Namespace, layers: int, names: Sequence[str], structure: Structure, plan: Plan
) -> Step:
    """Forward, backward and AdamW, of any structure."""
    data = FileSource(path="unused.jsonl")
    tasks = [Task(name=n, kind="classification", data=data, labels=("a", "b")) for n in names]
    model = MultiTaskModel(
        backbone(options, layers),
        "mean",
        tasks,
        recipe=Recipe(structure=structure),
        plan=plan,
        config=ModelConfig(name="random", target_modules=options.targets, dtype=options.dtype),
    ).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    rows = batch(options, len(names))

    def step() -> None:
        model(**rows)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def adapted(
    options: argparse.Namespace, layers: int, num_tasks: int, rank: int, least: int | None = None
) -> Step:
    """Forward, backward and AdamW, of private adapters or of one for a single task.

    Args:
        options: sizes.
        layers: of the backbone.
        num_tasks: each with an adapter of its own.
        rank: of all adapters together.
        least: the rank from which products are by row; None leaves the choice to the layer.
    """
    names = [f"t{index}" for index in range(num_tasks)]
    if num_tasks > 1:
        step = stepping(options, layers, names, Bank(scale=2.0), Plan.private(names, rank))
    else:
        step = stepping(options, layers, names, Single(scale=2.0), Plan.shared(names, rank))

    def forced() -> None:
        with mock.patch.multiple(TaskGate, min_rank=least, min_share=0):
            step()

    return step if least is None else forced


def exponent(sizes: Sequence[float], ratios: Sequence[float]) -> float | None:
    """Return b of a fit of ratio - 1 = a size^b, or None where nothing is added."""
    points = [(size, ratio - 1) for size, ratio in zip(sizes, ratios, strict=True) if ratio > 1.01]
    if len(points) < 3:
        return None
    logs = [(math.log(size), math.log(added)) for size, added in points]
    return float(np.polyfit(*zip(*logs, strict=True), deg=1)[0])


def measured(cases: Mapping[str, Step], rounds: int) -> dict[str, dict[str, float]]:
    """Return the cases' ratios to the floor, from interleaved rounds."""
    return summary(processor_seconds(dict(cases), rounds), "floor")


def by_tasks(options: argparse.Namespace, rank: int) -> dict[str, Any]:
    """Return the cost of private adapters of a rank each, by path and number of tasks."""
    cases: dict[str, Step] = {"floor": floor(options, options.layers)}
    for tasks in TASKS:
        for path, least in {**PATHS, "chosen": None}.items():
            cases[f"{path}, {tasks}"] = adapted(
                options, options.layers, tasks, rank * tasks, least=least
            )
    rows = measured(cases, options.rounds)
    found: dict[str, Any] = {"rank of each": rank, "rows": rows, "exponent": {}}
    for path in (*PATHS, "chosen"):
        ratios = [rows[f"{path}, {tasks}"]["ratio"] for tasks in TASKS]
        found["exponent"][path] = exponent(TASKS, ratios)
    cheaper = [t for t in TASKS if rows[f"by row, {t}"]["ratio"] < rows[f"joint, {t}"]["ratio"]]
    above = [t for t in TASKS if t not in cheaper]
    found["by row is cheaper from"] = next((t for t in cheaper if t > max(above, default=0)), None)
    return found


def by_size(options: argparse.Namespace) -> dict[str, Any]:
    """Return the cost of one LoRA by its rank, and of one by the number of layers."""
    cases = {"floor": floor(options, options.layers)}
    cases |= {f"rank {r}": adapted(options, options.layers, 1, r) for r in RANKS}
    ranks = measured(cases, options.rounds)
    layers = {
        str(n): measured(
            {"floor": floor(options, n), "LoRA": adapted(options, n, 1, 64)}, options.rounds
        )
        for n in LAYERS
    }
    return {
        "ranks": {
            "rows": ranks,
            "exponent": exponent(RANKS, [ranks[f"rank {r}"]["ratio"] for r in RANKS]),
        },
        "layers": {
            "rows": layers,
            "exponent of seconds": float(
                np.polyfit(
                    np.log(LAYERS), np.log([layers[str(n)]["LoRA"]["median_s"] for n in LAYERS]), 1
                )[0]
            ),
        },
    }


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", default="scaling.json", help="name of the result file")
    options = parser.parse_args()
    threads(1)
    data: dict[str, Any] = {"options": vars(options), "machine": machine(), "tasks": []}
    for rank in options.ranks:
        found = by_tasks(options, rank)
        data["tasks"].append(found)
        print(f"rank {rank} each; exponents {found['exponent']}")
        for tasks in TASKS:
            told = [
                f"{p} {found['rows'][f'{p}, {tasks}']['ratio']:.2f}" for p in (*PATHS, "chosen")
            ]
            print(f"  {tasks:4d} tasks: {', '.join(told)}", flush=True)
    data |= by_size(options)
    for name, row in data["ranks"]["rows"].items():
        print(f"  {name}: {row['ratio']:.2f}")
    for name, rows in data["layers"]["rows"].items():
        print(f"  {name} layers: {rows['LoRA']['ratio']:.2f}")
    print(write(options.output, data))


if __name__ == "__main__":
    main()
