"""A batch of rows of 16 tasks, each with an adapter of its own, through one model.

    python benchmarks/mixed_inference.py [--rounds 15]

A forward of all-MiniLM-L6-v2 without gradients on 64 rows of 32 tokens, four of each task: the base
model, ours with the rows gated by task, PEFT with ``adapter_names`` a row, and the tasks one after
the other with the adapter set for each. Adapters of one rank on query and value, or on all linear
maps. Processor time of one thread; every case in every round. Before, ours and PEFT's outputs are
compared, with the same factors in both.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from _harness import machine, processor_seconds, summary, threads, write
from step import backbone, batch, peft_model
from torch import Tensor

from coadapt.backbone import ModelConfig
from coadapt.model import MultiTaskModel, build_model
from coadapt.modes import answering
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Bank
from coadapt.tasks import FileSource, Task

TASKS = 16
SETTINGS = {
    f"rank {rank}, {targets}, {dtype}": {"rank": rank, "targets": targets, "dtype": dtype}
    for dtype in ("float32", "bfloat16")
    for targets in ("attention", "all-linear")
    for rank in (4, 16)
}


def ours(options: argparse.Namespace) -> MultiTaskModel:
    """Return a private adapter a task, with random factors."""
    nowhere = FileSource(path="never-read.jsonl")
    names = [f"t{index:02}" for index in range(TASKS)]
    tasks = [Task(name=n, kind="classification", data=nowhere, labels=("no", "yes")) for n in names]
    config = ModelConfig(
        name=options.model, dtype=options.dtype, target_modules=options.targets, pooling="mean"
    )
    plan = Plan.private(names, TASKS * options.rank)
    model = build_model(config, tasks, Recipe(structure=Bank(scale=2.0)), plan).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.attached.tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return model


def same_factors(peft: Any, model: MultiTaskModel) -> None:
    """Copy our factors into PEFT's adapters."""
    mine = model.attached.tensors()
    with torch.no_grad():
        for name in model.attached.layers:
            theirs = peft.get_submodule(f"base_model.model.{name}")
            for index, block in enumerate(model.attached.blocks_in(name)):
                theirs.lora_A[f"a{index}"].weight.copy_(mine[f"{block}/{name}/A"])
                theirs.lora_B[f"a{index}"].weight.copy_(mine[f"{block}/{name}/B"])


def cases(options: argparse.Namespace, lasting: ExitStack) -> dict[str, Callable[[], Tensor]]:
    """Return every forward, having checked that they give the same."""
    rows = batch(options, TASKS)
    task_ids = rows["task_ids"]
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    base, gated = backbone(options).eval(), ours(options)
    peft = peft_model(options, options.rank, TASKS, 0.0).eval()
    same_factors(peft, gated)
    names = [f"a{task}" for task in task_ids.tolist()]
    lasting.enter_context(answering(gated))

    @torch.no_grad()
    def one_after_the_other() -> Tensor:
        out = []
        for task in range(TASKS):
            own = task_ids == task
            peft.set_adapter(f"a{task}")
            out.append(peft(**{n: v[own] for n, v in inputs.items()}).last_hidden_state)
        return torch.cat(out)

    @torch.no_grad()
    def by_row() -> Tensor:
        gated.route.set(task_ids)
        return gated.backbone(**inputs).last_hidden_state

    found: dict[str, Callable[[], Tensor]] = {
        "base": torch.no_grad()(lambda: base(**inputs).last_hidden_state),
        "coadapt": by_row,
        "PEFT adapter_names": torch.no_grad()(
            lambda: peft(**inputs, adapter_names=names).last_hidden_state
        ),
        "PEFT, a task at a time": one_after_the_other,
    }
    if options.dtype == "float32":  # in bfloat16 rounding alone is of the updates' size
        mine, theirs, plain = (found[n]() for n in ("coadapt", "PEFT adapter_names", "base"))
        away = (mine - plain).abs().max()
        assert (mine - theirs).abs().max() < 1e-3 * away, "ours and PEFT's outputs differ"
    return found


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="one batch of rows of 16 tasks")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    threads(1)
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        options = argparse.Namespace(
            model="asset:minilm", batch=64, length=32, attention=None, **setting
        )
        with ExitStack() as lasting:  # as while scoring
            seconds = processor_seconds(cases(options, lasting), given.rounds)
        found[name] = {
            "of the base": summary(seconds, "base"),
            "of PEFT adapter_names": summary(seconds, "PEFT adapter_names"),
        }
        print(name)
        for case, row in found[name]["of the base"].items():
            other = found[name]["of PEFT adapter_names"][case]
            print(
                f"  {case:<24} {row['ratio']:.2f} ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f})"
                f" of the base, {other['ratio']:.2f} of PEFT"
            )
    path = write(
        "mixed_inference.json",
        {"tasks": TASKS, "rows": 64, "tokens": 32, "rounds": given.rounds}
        | {"settings": found, "machine": machine()},
    )
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
