"""Models with adapters that do something: B is zero in a fresh one, and nothing is tested."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from coadapt.backbone import ModelConfig
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Block, Plan
from coadapt.recipes import find_recipe
from coadapt.tasks import FileSource, Rows, Task
from coadapt.tasks.render import encode

NOWHERE = FileSource(path="nowhere.jsonl")
TASKS = (
    Task(name="topic.v2", kind="classification", data=NOWHERE, labels=("animal", "food", "tool")),
    Task(name="same", kind="classification", data=NOWHERE, labels=(0, 1), text=("first", "second")),
    Task(name="degree", kind="regression", data=NOWHERE, unit=(3.0, 2.0)),
)
NAMES = [task.name for task in TASKS]
TEXTS = ("the dog saw the cat", "a superb apple soup, with bread", "rope", "we had a dull day")

PLANS = {
    "lora": Plan.shared(NAMES, 3),
    "private": Plan(
        blocks={
            "topic.v2": Block(rank=1, tasks=("topic.v2",)),
            "same": Block(rank=5, tasks=("same",)),
            "degree": Block(rank=2, tasks=("degree",)),
        }
    ),
    "clustered": Plan(
        blocks={
            "a b.c": Block(rank=3, tasks=("topic.v2", "degree")),
            "rest": Block(rank=2, tasks=("same",)),
        }
    ),
    "shared_private": Plan(
        blocks={
            "shared": Block(rank=2, tasks=tuple(NAMES)),
            "topic.v2": Block(rank=1, tasks=("topic.v2",)),
            "same": Block(rank=4, tasks=("same",)),
            "degree": Block(rank=3, tasks=("degree",)),
        }
    ),
}


def adapted(
    base: Path,
    recipe: str,
    *,
    tasks: Sequence[Task] = TASKS,
    plan: Plan | None = None,
    offset: bool = False,
    **config: object,
) -> MultiTaskModel:
    """Return a model of a recipe whose factors and heads are random."""
    model_config = replace(
        ModelConfig(
            name=str(base), dtype="float32", pooling="mean", max_length=32, backbone_dropout=False
        ),
        **config,
    )
    plan = plan or PLANS.get(recipe)
    model = build_model(model_config, tasks, find_recipe(recipe), plan, seed=3).eval()
    fill(model, seed=1)
    if offset:
        for layer in model.attached.layers.values():
            layer.freeze_offset()
        fill(model, seed=2)
    return model


@torch.no_grad()
def fill(model: MultiTaskModel, seed: int) -> None:
    """Set blocks and heads to random numbers, and nudge a backbone that trains."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_tensors().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.startswith("backbone/"):
            tensor += 0.02 * drawn
        elif not name.endswith(("/A0", "/B0")):
            tensor.copy_(0.3 * drawn)


def encoded_rows(tokenizer, task: Task) -> list[dict[str, list[int]]]:
    """Return a few rows of different lengths for a task."""
    pairs = TEXTS[::-1] if len(task.columns) == 2 else None
    return encode(tokenizer, Rows(texts=TEXTS, pairs=pairs, labels=torch.zeros(4).numpy()), 32)
