"""What a new task's model is made of, given a finished run's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from coadapt._errors import InputError, nearest
from coadapt.adapters import PartitionedLinear
from coadapt.groups import Uniform
from coadapt.model import MultiTaskModel
from coadapt.planning import SHARED_BLOCK, Block, Plan
from coadapt.recipe import Recipe
from coadapt.structures import Composed, MultitaskPromptTuning, Structure, TaskPrompt
from coadapt.tasks import Task

Learn = Literal["fast", "all", "block", "gates"]
LEARNS: tuple[Learn, ...] = get_args(Learn)

_DEFAULT_RANK = 4
_COMMON_PROMPT = "embedding.weight"  # of PEFT's multitask prompts


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a new task's model is made of.

    Attributes:
        recipe: its structure and rates.
        plan: of its blocks, if it has a rank axis.
        given: tensors by the name that `Attached.tensors` has for them.
        frozen: the names of those that are not trained.
    """

    recipe: Recipe
    plan: Plan | None
    given: dict[str, Tensor]
    frozen: frozenset[str]

    @torch.no_grad()
    def put_into(self, model: MultiTaskModel) -> None:
        """Copy what is given into a fresh model, and freeze what is not to be learned."""
        tensors = model.attached.tensors()
        for name, value in self.given.items():
            tensors[name].copy_(value)
        for name in self.frozen:
            tensors[name].requires_grad_(False)


def form_of(
    model: MultiTaskModel, task: Task, *, learn: Learn | None, by: str, rank: int | None
) -> Form:
    """Return what a new task's model is made of, see :func:`adapt`.

    Raises:
        InputError: if the model has no such form.
    """
    structure = model.recipe.structure
    possible = _possible(structure)
    if learn is None:
        learn = possible[0]
    if learn not in possible:
        hint = f"; for structure '{structure.kind}': {', '.join(possible)}"
        raise InputError(f"learn: '{learn}' does not fit{hint}")
    if rank is not None and (learn != "block" or rank < 1):
        raise InputError(
            f"rank {rank} is that of a new block, at least 1; here '{learn}' is learned"
            if learn != "block"
            else f"rank must be at least 1, not {rank}"
        )
    shares = _shares(model, by)
    if isinstance(structure, TaskPrompt):
        return _of_prompts(model, structure, task, shares, gates=learn == "all")
    if isinstance(structure, MultitaskPromptTuning):
        return _of_multitask_prompts(model, shares)
    return _of_blocks(model, task, shares, rank if learn == "block" else None, learn)


def _possible(structure: Structure) -> tuple[Learn, ...]:
    match structure:
        case TaskPrompt():
            return ("fast", "all")
        case MultitaskPromptTuning():
            return ("fast",)
        case _:
            return ("block", "gates")


def _shares(model: MultiTaskModel, by: str) -> np.ndarray:
    """Return (T,) how much each trained task counts; zeros for what is common alone.

    Raises:
        InputError: for an unknown rule or task.
    """
    names = model.task_names
    if by in ("mean", "shared"):
        return np.full(len(names), 1 / len(names) if by == "mean" else 0.0)
    kind, _, name = by.partition(":")
    if kind != "task" or name not in names:
        hint = nearest(name, names) if kind == "task" else "; known: mean, shared, task:NAME"
        raise InputError(f"by: '{by}' is no way to start a new task{hint}")
    return np.array([float(task == name) for task in names])


def _of_prompts(
    model: MultiTaskModel, structure: TaskPrompt, task: Task, shares: np.ndarray, *, gates: bool
) -> Form:
    if not structure.fast_rank:
        raise InputError(
            "the run's prompts have no part of a task's own (fast_rank 0), so there is nothing to "
            "learn for a new one; train on its rows with --recipe ta_lora"
        )
    given: dict[str, Tensor] = {}
    frozen: set[str] = set()
    for name, prompts in model.attached.prompts.items():
        for key in ("theta", "B", "g"):
            value = getattr(prompts, key)
            if value is not None:
                given[f"shared/{name}/{key}"] = value.detach()
                frozen |= {f"shared/{name}/{key}"} if key != "g" or not gates else set()
        # Without any task v is at 0, so that the common prompt is what it starts from; u is at
        # the mean, for with both at 0 nothing would ever move.
        weights = shares if shares.any() else np.full(len(shares), 1 / len(shares))
        for key, factors, of in (("u", prompts.u, weights), ("v", prompts.v, shares)):
            stacked = torch.stack([factor.detach() for factor in factors])
            given[f"{task.name}/{name}/{key}"] = torch.einsum(
                "t,tij->ij", stacked.new_tensor(of), stacked
            )
    first = next(iter(model.attached.prompts.values()))
    kept = replace(
        structure,
        inner_rank=structure.inner_rank if first.B is None else first.B.shape[1],
        layers=tuple(model.attached.prompts),
    )
    recipe = Recipe(structure=kept, groups=model.recipe.groups)
    return Form(recipe=recipe, plan=None, given=given, frozen=frozenset(frozen))


def _of_multitask_prompts(model: MultiTaskModel, shares: np.ndarray) -> Form:
    """Return the common prompt, frozen, with the mean of what the trained tasks multiply it by.

    As PEFT starts a target task from its source tasks.
    """
    if not shares.any():
        raise InputError(
            "by: 'shared' leaves nothing of a multitask prompt, which is the common one times the "
            "task's own; take mean or task:NAME"
        )
    given: dict[str, Tensor] = {}
    for name, encoder in model.attached.modules_beside.items():
        for key, value in encoder.named_parameters():
            found = value.detach()
            if key != _COMMON_PROMPT:  # (T, ...) the tasks' own
                found = torch.tensordot(found.new_tensor(shares), found, dims=1)[None]
            given[f"shared/{name}/{key}"] = found
    frozen = frozenset(name for name in given if name.endswith(f"/{_COMMON_PROMPT}"))
    recipe = Recipe(structure=model.recipe.structure, groups=model.recipe.groups)
    return Form(recipe=recipe, plan=None, given=given, frozen=frozen)


def _of_blocks(
    model: MultiTaskModel, task: Task, shares: np.ndarray, rank: int | None, learn: Learn
) -> Form:
    structure, attached = model.recipe.structure, model.attached
    factors = _folded_blocks(model)
    taken = _block_shares(attached.owners, shares, len(attached.blocks), list(factors))
    blocks = {
        name: Block(rank=max(len(A) for A, _ in of.values()), tasks=(task.name,))
        for name, of in factors.items()
    }
    ranks = {
        module: {name: len(of[module][0]) for name, of in factors.items()}
        for module in attached.layers
    }
    given = {
        f"{name}/{module}/{key}": factor
        for name, of in factors.items()
        for module, pair in of.items()
        for key, factor in zip("AB", pair, strict=True)
    }
    frozen = set(given)
    if learn == "block":
        new = task.name if task.name not in blocks else f"{task.name} (new)"
        own = rank or _DEFAULT_RANK
        blocks[new] = Block(rank=own, tasks=(task.name,))
        taken[new] = getattr(structure, "scale", 1.0)
        ranks = {module: {**of, new: own} for module, of in ranks.items()}
        frozen |= {f"shares/{module}/weight" for module in attached.layers}
    even = all(of == {n: b.rank for n, b in blocks.items()} for of in ranks.values())
    composed = Composed(
        scale=1.0,
        dropout=getattr(structure, "dropout", 0.0),
        dropout_at=getattr(structure, "dropout_at", "z"),
        shares=taken,
        learned=learn == "gates",
    )
    return Form(
        recipe=Recipe(structure=composed, groups=Uniform(head_rate=model.recipe.groups.head_rate)),
        plan=Plan(blocks=blocks, ranks={} if even else ranks),
        given=given,
        frozen=frozenset(frozen),
    )


def _folded_blocks(model: MultiTaskModel) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Return each block's plain factors by module, scale and a frozen start folded in.

    Raises:
        InputError: if the run's update is no sum of blocks.
    """
    structure, attached = model.recipe.structure, model.attached
    if not structure.mergeable or not attached.layers:
        raise InputError(
            f"a new task needs task prompts or LoRAs that fold, and structure '{structure.kind}' "
            f"ships as '{structure.ships_as}' and depends on {structure.depends_on}; adapt a run "
            "of ta_lora, lora, private or clustered, or train the task with the others"
        )
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for module, layer in attached.layers.items():
        assert isinstance(layer, PartitionedLinear)
        if layer.shared_A:
            found.setdefault(SHARED_BLOCK, {})[module] = layer.fold(0)
            continue
        # What every row gets, whatever its task, is part of the block: shares of an adapted run.
        gates = (1.0,) * len(attached.blocks)
        if layer.gate.depends_on == "nothing":
            gates = layer.gate.constants(0)
        for index, name in enumerate(attached.blocks):
            A, B = layer.fold_block(index)
            found.setdefault(name, {})[module] = A, gates[index] * B
    return found


def _block_shares(
    owners: Sequence[Sequence[int]], shares: np.ndarray, num_blocks: int, names: Sequence[str]
) -> dict[str, float]:
    """Return each block's share: 1 where every task uses it, else what its tasks count."""
    if len(names) != num_blocks:  # heads, folded into one
        return dict.fromkeys(names, 1.0)
    return {
        name: 1.0 if len(of) == len(shares) else float(shares[list(of)].sum())
        for name, of in zip(names, owners, strict=True)
    }
