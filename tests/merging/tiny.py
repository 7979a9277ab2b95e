"""Tiny models with a LoRA a task that does something, rows for them, and what became of them."""

from typing import Any

import numpy as np
import torch

from coadapt.evaluation import decide, predict_outputs
from coadapt.merging import compose_deltas, compose_factors, put
from coadapt.merging.hub import borrowing
from coadapt.planning import Block, Plan
from coadapt.structures import Bank
from tests.small import NAMES, make_model, randomize

SCALE = 0.7  # no power of two: what is written into a block and folded again is rounded
OURS: dict[str, Any] = {"method": "built_in"}  # the search that needs no package


def private(folder, *, plan=None, structure=None):
    """Return a model with a LoRA a task whose factors and heads are all random."""
    structure = structure or Bank(scale=SCALE, dropout=0.5)
    return randomize(make_model(folder, structure, plan or Plan.private(NAMES, 6)))


def blocks(**ranks):
    """Return the plan with a block of that rank for each task."""
    return Plan(blocks={name: Block(rank=rank, tasks=(name,)) for name, rank in ranks.items()})


def rows_of(task, num=9):
    """Return encoded rows of three to nine tokens with labels."""
    rng = np.random.default_rng(len(task))
    classes = {"two": 2, "three": 3}
    return [
        {
            "input_ids": rng.integers(5, 40, length).tolist(),
            "token_type_ids": [0] * int(length),
            "label": float(rng.integers(classes[task]) if task in classes else rng.normal()),
        }
        for length in rng.integers(3, 10, num)
    ]


def taught(model, task, collate, hub):
    """Return rows whose labels are what a composition of the others' adapters says."""
    rows, pool = rows_of(task), [model.fold(name) for name in NAMES if name != task]
    weights = [0.9, -0.6]
    factors = hub.compose == "factors"
    made = compose_factors(pool, weights) if factors else compose_deltas(pool, weights, rank=2)
    with borrowing(model, task):
        put(model, task, made.factors)
        outputs = predict_outputs(model, collate, rows, task)
    labels = decide(model.tasks[model.task_id(task)], outputs)
    return [{**row, "label": float(label)} for row, label in zip(rows, labels, strict=True)]


@torch.no_grad()
def row_losses(model, rows, task, collate):
    """Return each row's loss, one row a forward."""
    index = model.task_id(task)
    batches = [collate([{**row, "task_id": index}]) for row in rows]
    return [float(model(**batch)["row_losses"][0]) for batch in batches]


def tensors_of(model):
    """Return a copy of all that training changed, by name."""
    return {name: tensor.clone() for name, tensor in model.state_tensors().items()}


def assert_same(found, wanted):
    """Assert that two models' tensors are the same to the bit."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def changed_blocks(model, before):
    """Return the blocks and parts of which a tensor differs from what it was."""
    now = tensors_of(model)
    return {n.split("/")[0] for n, tensor in before.items() if not torch.equal(now[n], tensor)}
