"""Tasks, models and batches that several test modules build on the tiny BERT of conftest.py."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from coadapt.backbone import ModelConfig
from coadapt.evaluation import predict_outputs
from coadapt.inits import Default
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.runs import Run
from coadapt.structures import Structure
from coadapt.tasks import Collator, FileSource, Task, encode

NOWHERE = FileSource(path="never-read.jsonl")
TASKS = (
    Task(name="two", kind="classification", data=NOWHERE, labels=("no", "yes")),
    Task(name="three", kind="classification", data=NOWHERE, labels=("a", "b", "c")),
    Task(name="value", kind="regression", data=NOWHERE),
)
NAMES = tuple(task.name for task in TASKS)
MIXED = (2, 0, 1, 1, 0, 2, 0)


def make_model(
    folder: Any,
    structure: Structure,
    plan: Plan | None,
    *,
    tasks: Sequence[Task] = TASKS,
    init: Any = None,
    loss_mean: Any = "tasks",
    seed: int = 0,
    **config: Any,
) -> MultiTaskModel:
    """Return a model on the backbone in ``folder``, in float32 unless told otherwise."""
    return build_model(
        ModelConfig(
            name=str(folder),
            **{"dtype": "float32", "pooling": "mean", "backbone_dropout": False, **config},
        ),
        tasks,
        Recipe(structure=structure, init=init or Default()),
        plan,
        loss_mean=loss_mean,
        seed=seed,
    )


def make_batch(
    task_ids: Sequence[int], *, seed: int = 0, tasks: Sequence[Task] = TASKS
) -> dict[str, Tensor]:
    """Return rows of 3 to 9 random tokens with labels, padded to the longest."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (len(task_ids),), generator=rng)
    longest = int(lengths.max()) if len(task_ids) else 1
    tokens = torch.randint(5, 40, (len(task_ids), longest), generator=rng)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    labels = [
        torch.rand((), generator=rng) * 4 - 2
        if tasks[task].kind == "regression"
        else torch.randint(tasks[task].num_outputs, (), generator=rng).float()
        for task in task_ids
    ]
    return {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "task_ids": torch.tensor(task_ids, dtype=torch.long),
        "labels": torch.stack(labels) if labels else torch.zeros(0),
    }


def take(batch: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """Return some rows of a batch, as padded as they were."""
    return {name: value[rows] for name, value in batch.items()}


def blocks_of(model: MultiTaskModel) -> dict[str, torch.nn.Parameter]:
    """Return every trained factor by ``block/module/A`` and ``.../B``, and every router."""
    ends = ("/A", "/B", "/weight")
    return {n: p for n, p in model.attached.tensors().items() if n.endswith(ends)}


@torch.no_grad()
def randomize(model: MultiTaskModel, *, std: float = 0.3, seed: int = 1) -> MultiTaskModel:
    """Fill every factor and head with normal values, so that nothing is zero or in its init."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in [*blocks_of(model).values(), *model.heads.parameters()]:
        parameter.copy_(torch.randn(parameter.shape, generator=rng) * std)
    return model


def gradients(model: MultiTaskModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of the batch's loss by parameter name."""
    model.zero_grad(set_to_none=True)
    model(**batch)["loss"].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def output_hash(run: Run) -> str:
    """Return a hash of the bits of a run's outputs for the test rows of every task."""
    digest = hashlib.sha256()
    collate = Collator(run.tokenizer)
    for name in run.suite.names:
        encoded = encode(run.tokenizer, run.suite.rows(name, "test"), run.config.model.max_length)
        digest.update(predict_outputs(run.model, collate, encoded, name).tobytes())
    return digest.hexdigest()
