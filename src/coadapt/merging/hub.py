"""LoRAHub: weights for trained adapters, found on a few examples of a task without a gradient."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coadapt._errors import InputError, nearest
from coadapt._seeds import named_seed
from coadapt.backbone import ModelConfig
from coadapt.config import to_plain
from coadapt.exporting.peft_format import pad, rank_of
from coadapt.loading import Loader
from coadapt.lora_hub import LoraHub
from coadapt.merging.composing import (
    Composed,
    Factors,
    Folds,
    check_composable,
    compose_deltas,
    compose_factors,
)
from coadapt.merging.searching import minimize
from coadapt.model import MultiTaskModel
from coadapt.modes import answering, evaluating
from coadapt.structures import Bank
from coadapt.tasks import TaskSuite
from coadapt.tasks.render import TaskDataset

Items = Sequence[Mapping[str, Any]]
Collate = Callable[[Items], dict[str, Tensor]]

_BATCH_SIZE = 16  # rows a forward


@dataclass(frozen=True, kw_only=True, eq=False)
class Composition:
    """What a search found for a task.

    Args:
        task: the task.
        weights: of each adapter by the name of its task.
        factors: the composed update, ``{module: (A, B)}`` with the scale in B.
        error: what cutting it to the block's rank cost, see :class:`Composed`; 0 for factors.
        loss: mean over the examples under the composed adapter.
        base_loss: the same at zero weights: of the base model, under the task's head if it has one.
        history: the objective at every evaluation, the first at zero weights.
        method: which search it was.
        shots: the positions of the examples among the rows given.
    """

    task: str
    weights: dict[str, float]
    factors: Factors
    error: float
    loss: float
    base_loss: float
    history: tuple[float, ...]
    method: str
    shots: tuple[int, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return everything but the factors as plain data; None for what was not finite."""
        plain = {key: to_plain(value) for key, value in vars(self).items() if key != "factors"}
        plain["history"] = [value if math.isfinite(value) else None for value in self.history]
        return plain


def search_for_task(
    model: MultiTaskModel,
    task: str,
    items: Items,
    collate: Collate,
    *,
    hub: LoraHub | None = None,
    seed: int = 0,
) -> Composition:
    """Search weights for the adapters of a trained model that serve a task best.

    The composed factors are put into the task's block while the loss is taken and taken out
    again, also after an error; dropout is off. The same weights come of the same model, items and
    seed.

    Args:
        model: with one LoRA a task: structure ``bank`` and a private plan.
        task: a task of the model; of a language model also a new one, which borrows a block.
        items: encoded rows of the task with their labels, as
            :class:`coadapt.tasks.render.TaskDataset` gives them, of which ``hub.shots`` are drawn.
        collate: makes them into a batch.
        hub: what to search; LoRAHub as published, with the mean loss, if None.
        seed: of the rows drawn and of the search.

    Raises:
        InputError: if the model has no LoRA a task, there is no such task or none other, the
            adapters do not compose, or there are too few rows.
    """
    hub = hub or LoraHub()
    check_bank(model)
    pool, host = _pool_and_host(model, task, hub)
    folds: list[Folds] = [model.fold(name) for name in pool]
    names, own = [*pool, host], model.fold(host)
    check_composable([*folds, own], names, compose=hub.compose)
    block, rank = _block_of(model, host), rank_of(own)
    shots = _draw(items, task, hub.shots, seed)
    batches = _batches(model, [items[shot] for shot in shots], host, collate)
    losses: list[float] = []

    def compose(weights: Sequence[float]) -> Composed:
        if hub.compose == "factors":
            return compose_factors(folds, weights)
        return compose_deltas(folds, weights, rank)

    def objective(weights: np.ndarray) -> float:
        _write(model, block, compose(weights.tolist()).factors)
        losses.append(_mean_loss(model, batches))
        return hub.objective(losses[-1], weights.tolist())

    with borrowing(model, host), evaluating(model):  # its factors change
        found = minimize(
            objective,
            len(pool),
            budget=hub.budget,
            bounds=(-hub.bounds, hub.bounds),
            seed=named_seed(seed, "hub", task),
            method=hub.method,
        )
    composed = compose(found.weights)
    return Composition(
        task=task,
        weights=dict(zip(pool, found.weights, strict=True)),
        factors=composed.factors,
        error=composed.error,
        loss=losses[found.history.index(found.value)],
        base_loss=losses[0],
        history=found.history,
        method=found.method,
        shots=shots,
    )


def training_items(
    loader: Loader, config: ModelConfig, suite: TaskSuite, task: str, *, headed: bool
) -> Items:
    """Return a task's encoded training rows with their labels.

    Args:
        loader: has the rows.
        config: of the model that reads them.
        suite: with the task.
        task: its name.
        headed: whether labels are of heads, not tokens.
    """
    encoded = loader.encoded(config, suite, task, "train")
    dataset = TaskDataset([encoded], [suite.rows(task, "train").labels] if headed else None)
    return [dataset[row] for row in range(len(dataset))]


def compose_every_task(
    model: MultiTaskModel,
    items_of: Callable[[str], Items],
    collate: Collate,
    *,
    hub: LoraHub,
    seed: int,
) -> list[Composition]:
    """Serve each task of a model by a composition, searched among the adapters as they were.

    Args:
        model: see :func:`search_for_task`, as for the others.
        items_of: returns a task's encoded rows.
        collate: makes them into a batch.
        hub: what to search.
        seed: of the rows drawn and of the searches.
    """
    found = [
        search_for_task(model, task, items_of(task), collate, hub=hub, seed=seed)
        for task in model.task_names
    ]
    for composition in found:
        put(model, composition.task, composition.factors)
    return found


def check_beforehand(model: MultiTaskModel, hub: LoraHub, num_rows: Mapping[str, int]) -> None:
    """Raise InputError, before anything is trained, where :func:`compose_every_task` would after.

    Args:
        model: to be trained.
        hub: what will be searched.
        num_rows: of training, by task.
    """
    check_bank(model)
    assert model.plan is not None
    ranks = {block.tasks[0]: block.rank for block in model.plan.blocks.values()}
    if hub.compose == "factors" and len(set(ranks.values())) > 1:
        told = ", ".join(f"{task} {rank}" for task, rank in ranks.items())
        raise InputError(
            f"LoRAHub adds up factors of one rank, and the tasks' are {told}; take a budget that "
            f"{len(ranks)} tasks divide, or recipe.compose.compose: deltas"
        )
    for task, number in num_rows.items():
        if number < hub.shots:
            raise InputError(f"task '{task}' has {number} rows to draw {hub.shots} shots from")


def put(model: MultiTaskModel, task: str, factors: Folds) -> None:
    """Write an update into a task's own block, in place of what it learned.

    Args:
        model: with one LoRA a task.
        task: of the model.
        factors: of a :class:`Composition`: of every adapted module, of at most the block's rank.

    Raises:
        InputError: if the model has no LoRA a task or no such task, or the factors do not fit.
    """
    check_bank(model)
    if task not in model.task_names:
        raise InputError(f"the model has no task '{task}'{nearest(task, model.task_names)}")
    own = model.fold(task)
    check_composable([own, factors], [task, "the update"], compose="deltas")
    if rank_of(factors) > rank_of(own):
        raise InputError(
            f"the update has rank {rank_of(factors)}, the block of task '{task}' "
            f"{rank_of(own)}; cut it with compose_deltas(..., rank={rank_of(own)})"
        )
    _write(model, _block_of(model, task), factors)


@contextmanager
def borrowing(model: MultiTaskModel, task: str) -> Iterator[None]:
    """Give a task's block back as it was, whatever was put into it meanwhile."""
    block = _block_of(model, task)
    layers = model.attached.layers.values()
    pairs = [(layer.A[block], layer.B[block]) for layer in layers]
    kept = [(A.detach().clone(), B.detach().clone()) for A, B in pairs]
    try:
        yield
    finally:
        with torch.no_grad():
            for pair, before in zip(pairs, kept, strict=True):
                for factor, value in zip(pair, before, strict=True):
                    factor.copy_(value)


def check_bank(model: MultiTaskModel) -> None:
    """Raise InputError unless a model has one plain LoRA a task."""
    owners = model.attached.owners
    private = sorted(owners) == [(index,) for index in range(len(model.tasks))]
    if not isinstance(model.recipe.structure, Bank) or not private:
        raise InputError(
            f"LoRAHub composes one LoRA a task, which structure '{model.recipe.structure.kind}' "
            "with this plan does not have; train with recipe private"
        )
    if any(len(layer.A0) for layer in model.attached.layers.values()):
        raise InputError(
            "LoRAHub composes the factors of a LoRA; this init keeps a frozen copy of its start "
            "beside them: train with init default"
        )


def _pool_and_host(model: MultiTaskModel, task: str, hub: LoraHub) -> tuple[list[str], str]:
    """Return the tasks whose adapters are composed, and the one whose block the sum is put into."""
    names = list(model.task_names)
    if task not in names:
        if not model.is_language_model:
            raise InputError(f"the model has no task '{task}' and so no head{nearest(task, names)}")
        return names, names[0]
    pool = [name for name in names if name != task] if hub.pool == "others" else names
    if not pool:
        raise InputError(f"'{task}' is the model's only task; pool='others' leaves no adapter")
    return pool, task


def _block_of(model: MultiTaskModel, task: str) -> int:
    return model.attached.owners.index((model.task_id(task),))


@torch.no_grad()
def _write(model: MultiTaskModel, block: int, factors: Folds) -> None:
    for name, layer in model.attached.layers.items():
        A, B = pad(*factors[name], layer.A[block].shape[0])
        layer.A[block].copy_(A)
        layer.B[block].copy_(B / layer.scale)


def _draw(items: Items, task: str, shots: int, seed: int) -> tuple[int, ...]:
    if len(items) < shots:
        raise InputError(f"task '{task}' has {len(items)} rows to draw {shots} shots from")
    rng = np.random.default_rng(named_seed(seed, "shots", task))
    return tuple(rng.permutation(len(items))[:shots].tolist())


def _batches(
    model: MultiTaskModel, rows: Items, task: str, collate: Collate
) -> list[dict[str, Tensor]]:
    key = "labels" if model.is_language_model else "label"
    if any(key not in row for row in rows):
        raise InputError(f"rows need their answers to have a loss ('{key}' of an encoded row)")
    rows = [{**row, "task_id": model.task_id(task)} for row in rows]
    starts = range(0, len(rows), _BATCH_SIZE)
    batches = [collate(rows[start : start + _BATCH_SIZE]) for start in starts]
    return [{k: v.to(model.device) for k, v in batch.items()} for batch in batches]


@torch.no_grad()
def _mean_loss(model: MultiTaskModel, batches: Sequence[dict[str, Tensor]]) -> float:
    with answering(model):
        losses = torch.cat([model(**batch)["row_losses"].double() for batch in batches])
    return float(losses.mean())
