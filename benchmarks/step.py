"""What a training step costs beside a frozen backbone and beside PEFT.

    python benchmarks/step.py [--targets attention all-linear] [--rank 8 64] [--rounds 9]

A step is forward, backward and AdamW on one batch of rows of mixed tasks; the floor is the frozen
backbone's forward and its backward to the embeddings. Every case runs in every round, so ratios
hold on a noisy machine. Memory is a fresh process's peak for each case.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _harness import machine, processor_seconds, summary, threads, write
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from coadapt.adapters import target_names
from coadapt.backbone import ModelConfig, compute_dtype, load_backbone
from coadapt.model import MultiTaskModel
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Bank, Single
from coadapt.tasks import FileSource, Task

SCALE = 2.0


def backbone(options: argparse.Namespace) -> nn.Module:
    """Return a fresh frozen base model."""
    config = ModelConfig(name=options.model, attn_implementation=options.attention)
    return load_backbone(config, compute_dtype(options.dtype))[0]


def batch(options: argparse.Namespace, num_tasks: int) -> dict[str, Tensor]:
    """Return random rows, tasks in turn."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.length)
    ids = torch.randint(1000, 20000, shape, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "task_ids": torch.arange(options.batch) % num_tasks,
        "labels": (torch.arange(options.batch) % 2).float(),
    }


def floor(options: argparse.Namespace) -> Callable[[], object]:
    """Frozen forward and the backward to the embeddings: what no adapter can undercut."""
    model = backbone(options).train()
    model.enable_input_require_grads()
    rows = batch(options, 1)

    def step() -> None:
        out = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
        out.last_hidden_state.float().mean().backward()

    return step


def coadapt_model(options: argparse.Namespace, num_tasks: int, *, bank: bool) -> MultiTaskModel:
    """One LoRA, or a bank of ``num_tasks`` private blocks, at one total rank."""
    names = [f"t{index}" for index in range(num_tasks)]
    data = FileSource(path="unused.jsonl")
    tasks = [Task(name=n, kind="classification", data=data, labels=("a", "b")) for n in names]
    plan = Plan.private(names, options.rank) if bank else Plan.shared(names, options.rank)
    structure = Bank(scale=SCALE) if bank else Single(scale=SCALE)
    return MultiTaskModel(
        backbone(options),  # pyright: ignore[reportArgumentType]
        "mean",
        tasks,
        recipe=Recipe(structure=structure),
        plan=plan,
        config=ModelConfig(name=options.model, target_modules=options.targets, dtype=options.dtype),
    ).train()


def optimizer_step(
    options: argparse.Namespace, model: nn.Module, run: Callable[..., Any], num_tasks: int
) -> Callable[[], object]:
    """Return a step of ``model``, whose forward is ``run``: itself, or compiled."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    rows = batch(options, num_tasks)

    def step() -> None:
        run(**rows)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def coadapt_step(
    options: argparse.Namespace, num_tasks: int, *, bank: bool
) -> Callable[[], object]:
    """A step of one LoRA, or of a bank of private blocks."""
    model = coadapt_model(options, num_tasks, bank=bank)
    return optimizer_step(options, model, model, num_tasks)


def peft_model(options: argparse.Namespace, rank: int, adapters: int, dropout: float) -> nn.Module:
    """Return stock PEFT with one or more LoRAs on the same modules."""
    base = backbone(options)
    config = LoraConfig(
        r=rank,
        lora_alpha=int(SCALE * rank),
        lora_dropout=dropout,
        target_modules=list(target_names(base, options.targets)),
    )
    model = get_peft_model(base, config, adapter_name="a0")  # pyright: ignore[reportArgumentType]
    for index in range(1, adapters):
        model.add_adapter(f"a{index}", config)
    return model.train()


def peft_step(options: argparse.Namespace, dropout: float) -> Callable[[], object]:
    """One LoRA of the whole rank."""
    model = peft_model(options, options.rank, 1, dropout)
    head = nn.Linear(model.config.hidden_size, 2)
    parameters = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    rows = batch(options, 1)

    def step() -> None:
        _loss(model, head, rows).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peft_by_task(options: argparse.Namespace, num_tasks: int) -> Callable[[], object]:
    """A LoRA a task by set_adapter, a sub-batch a task, gradients summed."""
    model = peft_model(options, max(1, options.rank // num_tasks), num_tasks, 0.0)
    head = nn.Linear(model.config.hidden_size, 2)
    # set_adapter turns the other adapters' gradients off, so all are listed here by name.
    parameters = [p for n, p in model.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW([*parameters, *head.parameters()], fused=True)
    rows = batch(options, num_tasks)

    def step() -> None:
        for task in range(num_tasks):
            own = rows["task_ids"] == task
            model.set_adapter(f"a{task}")
            _loss(model, head, {name: value[own] for name, value in rows.items()}).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _loss(model: nn.Module, head: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    out = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
    logits = head(out.last_hidden_state.float().mean(dim=1))
    return nn.functional.cross_entropy(logits, rows["labels"].long())


def all_cases(options: argparse.Namespace) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return what is compared, each made when asked for."""
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "floor": lambda: floor(options),
        "PEFT LoRA": lambda: peft_step(options, 0.0),
        "PEFT LoRA, its dropout 0.05": lambda: peft_step(options, 0.05),
        "one LoRA": lambda: coadapt_step(options, 1, bank=False),
    }
    for tasks in (4, 16):
        if tasks > options.rank:
            continue
        makers[f"{tasks} private LoRAs"] = lambda n=tasks: coadapt_step(options, n, bank=True)
        makers[f"PEFT by task, {tasks} tasks"] = lambda n=tasks: peft_by_task(options, n)
    return makers


def peak_memory(name: str, options: argparse.Namespace) -> float:
    """Return a fresh process's peak resident memory over three steps, in MiB."""
    command = [sys.executable, __file__, "--only", name, "--targets", options.targets]
    for key in ("model", "rank", "batch", "length", "dtype"):
        command += [f"--{key}", str(vars(options)[key])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def _only(options: argparse.Namespace) -> None:
    step = all_cases(options)[options.only]()
    step()
    # Loading peaks higher than stepping: start the kernel's high-water mark anew.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)  # pyright: ignore[reportOptionalSubscript]


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return a setting's rows, having printed them."""
    makers = all_cases(options)
    seconds = processor_seconds({name: make() for name, make in makers.items()}, options.rounds)
    rows: dict[str, Any] = summary(seconds, "floor")
    print(f"\n{options.targets}, rank {options.rank}, of the floor, and peak MiB")
    for name, row in rows.items():
        row["peak_mib"] = peak_memory(name, options)
        # What an aim compares with, from the same rounds.
        row["of"] = {
            other: summary(seconds, other)[name]["ratio"] for other in makers if other != name
        }
        print(
            f"  {name:<32} {row['ratio']:.2f} ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}) "
            f"{row['peak_mib']:9.0f}"
        )
    return rows


def main() -> None:
    """Run every setting and write."""
    parser = argparse.ArgumentParser(description="what a training step costs")
    parser.add_argument("--model", default="asset:minilm")
    parser.add_argument("--targets", nargs="+", default=["attention", "all-linear"])
    parser.add_argument("--rank", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--attention", default=None, help="attention implementation")
    parser.add_argument("--output", default="step.json", help="name of the result file")
    parser.add_argument("--only", default=None, help="run one case and print its peak memory")
    given = parser.parse_args()
    threads(1)
    settings = [
        argparse.Namespace(**{**vars(given), "targets": targets, "rank": rank})
        for targets in given.targets
        for rank in given.rank
    ]
    if given.only:
        _only(settings[0])
        return
    found = {f"{options.targets}, rank {options.rank}": measured(options) for options in settings}
    path = write(given.output, {"options": vars(given), "machine": machine(), "settings": found})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
