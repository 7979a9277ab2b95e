"""What each method trains and computes on a model, counted without loading a weight."""

import copy
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from coadapt._errors import InputError
from coadapt.adapters import Route, target_names
from coadapt.backbone import ModelConfig, empty_backbone
from coadapt.config import apply_overrides, parse
from coadapt.inits import Start
from coadapt.penalties import Penalties
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES
from coadapt.regularizers import Need, Regularizer
from coadapt.structures import AbstractPartitioned, Attached, Frozen, Full, Site
from coadapt.study.budget import Counter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one method trains and computes.

    Attributes:
        name: of the recipe.
        mergeable: whether an exact LoRA exists.
        rank: of each head or expert; of other methods the sum over blocks.
        trainable: values in adapters, routers included.
        percent: 100 times these by the base model's weights, its embeddings included.
        flops: of the matrix products of a training step, two for a multiplication and an addition;
            None where the model cannot be run without weights.
        relative_flops: the same by those of the plain LoRA.
        reason: why there are no numbers: the budget is too small, or the model does not take it.
    """

    name: str
    mergeable: bool
    rank: int | None = None
    trainable: int | None = None
    percent: float | None = None
    flops: int | None = None
    relative_flops: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """The methods on a model.

    Attributes:
        model: its name.
        target_modules: as asked.
        num_modules: adapted.
        num_weights: of the base model.
        rank: that every method has, or None.
        budget: the rank of a plain LoRA that no method trains more than, or None.
        batch: rows of the step whose FLOPs are counted.
        tokens: a row.
        tasks: whose rows they are, in turn.
        methods: in the order of `RECIPES`, those with adapters or prompts; prompts have no rank.
    """

    model: str
    target_modules: str | tuple[str, ...]
    num_modules: int
    num_weights: int
    rank: int | None
    budget: int | None
    batch: int
    tokens: int
    tasks: int
    methods: tuple[Account, ...]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    model: ModelConfig


def model_asked(name: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """Return the configuration of a model, changed by assignments ``model.KEY=VALUE``.

    Raises:
        InputError: if an assignment cannot be.
    """
    data = apply_overrides({"model": {"name": name}}, overrides)
    return parse(_Asked, data, "coadapt methods").model


def account_for_methods(
    config: ModelConfig,
    *,
    rank: int | None = None,
    budget: int | None = None,
    batch: int = 16,
    tokens: int = 128,
    tasks: int = 5,
) -> Accounting:
    """Count what every recipe with adapters trains, and the FLOPs of its training step.

    A step is forward and backward with the base model frozen, all of a language model's positions
    through its head, without the optimizer. Regularizers are counted with it; so is the backward
    pass a task that a balancing asks for, but not what it does with the gradients.

    Args:
        config: the model; nothing but its configuration is read.
        rank: of every method as its paper counts it: of each head or expert, else the sum. 8 where
            there is no budget.
        budget: instead, every method has the largest rank at which it trains no more than a plain
            LoRA of this rank (2 % are allowed, as in a study).
        batch: rows of the step, at least as many as tasks.
        tokens: a row; fewer where the model takes no more.
        tasks: whose rows they are, at least 2.

    Raises:
        InputError: if both rank and budget are given or one is not positive, or the model has no
            configuration or no module that matches.
    """
    if rank is not None and budget is not None:
        raise InputError("rank and budget are two ways to say how large; give one of them")
    for name, given in (("rank", rank), ("budget", budget)):
        if given is not None and given < 1:
            raise InputError(f"{name} must be at least 1, not {given}")
    rank = 8 if rank is None and budget is None else rank
    size = rank or budget or 0
    counter, steps = Counter(config), StepCounter(config, batch, tokens, tasks)
    lora = steps.flops(RECIPES["lora"].recipe, size)
    if lora is None:
        logger.warning("FLOPs cannot be counted: '%s' asks for values in its forward", config.name)
    return Accounting(
        model=config.name,
        target_modules=config.target_modules,
        num_modules=len(steps.modules),
        num_weights=counter.num_weights,
        rank=rank,
        budget=budget,
        batch=batch,
        tokens=steps.tokens,
        tasks=tasks,
        methods=tuple(
            _account(name, counter, steps, lora, size, matched=budget is not None)
            for name, row in RECIPES.items()
            if not isinstance(row.recipe.structure, (Full, Frozen))
        ),
    )


def _account(
    name: str, counter: Counter, steps: "StepCounter", lora: int | None, size: int, *, matched: bool
) -> Account:
    recipe, rank = RECIPES[name].recipe, size if RECIPES[name].recipe.structure.divides else None
    mergeable = recipe.structure.mergeable
    try:
        if matched and recipe.structure.multiplies:
            rank = counter.matched_rank(recipe, steps.tasks, size)
        plan = None if rank is None else plan_for_counting(recipe, steps.tasks, rank)
        spent = counter.spent(recipe, steps.tasks, plan)
    except InputError as error:  # too small a budget, or no such map in the model
        return Account(name=name, mergeable=mergeable, reason=str(error))
    flops, reason = None, None
    try:
        flops = None if lora is None else steps.flops(recipe, rank)
    except InputError as error:  # too few positions for a prompt
        reason = str(error)
    if flops is None and lora is not None and reason is None:
        reason = "its FLOPs cannot be counted: without weights the model asks for values"
    return Account(
        name=name,
        rank=rank,
        trainable=spent.trainable,
        percent=100 * spent.trainable / counter.num_weights,
        flops=flops,
        relative_flops=None if flops is None or lora is None else flops / lora,
        reason=reason,
        mergeable=mergeable,
    )


def plan_for_counting(recipe: Recipe, tasks: Sequence[str], rank: int) -> Plan:
    """Return a plan of that summed rank: how it is divided matters to terms on blocks alone."""
    divided = recipe.sharing == "cooperative"
    return Plan.cooperative(tasks, rank) if divided else Plan.shared(tasks, rank)


@dataclass(frozen=True, kw_only=True)
class _Step:
    forward: int
    backward: int
    attached: Attached
    shapes: dict[str, dict[str, torch.Size]]  # of what layers note, by kind and module


class StepCounter:
    """Counts the FLOPs of training steps on a model without weights (torch's meta device).

    Args:
        config: the model; nothing but its configuration is read.
        batch: rows of a step, at least as many as tasks.
        tokens: a row; fewer where the model takes no more.
        num_tasks: whose rows they are in turn, at least 2.
    """

    def __init__(self, config: ModelConfig, batch: int, tokens: int, num_tasks: int) -> None:
        assert batch >= num_tasks >= 2, "alignments compare tasks"
        self._backbone = empty_backbone(config)
        limit = getattr(self._backbone.config, "max_position_embeddings", None) or tokens
        self.tokens = min(tokens, limit)
        self.tasks = tuple(f"task{index}" for index in range(num_tasks))
        self.modules = target_names(self._backbone, config.target_modules)
        self._task_ids = torch.arange(batch) % num_tasks
        self._of_structure = functools.cache(self._run)

    def flops(self, recipe: Recipe, rank: int | None) -> int | None:
        """Return the FLOPs of a recipe's step, or None where the model asks for values."""
        structure = recipe.structure
        # Scale and dropout are no products; without them many recipes are one.
        if isinstance(structure, AbstractPartitioned):
            structure = replace(structure, scale=1.0, dropout=0.0)
        plain = Recipe(structure=structure, init=recipe.init, sharing=recipe.sharing)
        step = self._of_structure(plain, rank)
        if step is None:
            return None
        balancing = recipe.balancing
        passes = 1 + len(self.tasks) if balancing is not None and balancing.needs_jacobian else 1
        penalty = self._penalty(recipe.regularizers, step) if recipe.regularizers else 0
        return step.forward + passes * step.backward + penalty

    def _run(self, recipe: Recipe, rank: int | None) -> "_Step | None":
        backbone, route = copy.deepcopy(self._backbone), Route()
        site = Site(
            backbone=backbone,
            names=self.modules,
            tasks=self.tasks,
            plan=None if rank is None else plan_for_counting(recipe, self.tasks, rank),
            init=recipe.init,
            route=route,
            seed=0,
            start=Start(fills=False),
        )
        attached = recipe.structure.attach(site)
        route.set(self._task_ids)
        watched = {str(need): attached.layers for need in Need}
        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
        try:
            with route.noting(watched) as noted, forward:
                output = _output(backbone, len(self._task_ids), self.tokens)
            with backward:
                output.sum().backward()
        except (RuntimeError, NotImplementedError) as error:  # it looks at values
            logger.info("FLOPs cannot be counted on a model without weights: %s", error)
            return None
        return _Step(
            forward=forward.get_total_flops(),
            backward=backward.get_total_flops(),
            attached=attached,
            shapes={kind: {n: z.shape for n, z in of.items()} for kind, of in noted.items()},
        )

    def _penalty(self, regularizers: Sequence[Regularizer], step: "_Step") -> int:
        """Return the FLOPs of the regularizers' terms, on numbers drawn in the place of meta's.

        They choose samples by values, which the meta device has none of.
        """
        penalties = Penalties(
            regularizers,
            step.attached,
            num_tasks=len(self.tasks),
            answers_known=False,
            apart=bool(self._backbone.config.is_encoder_decoder),
        )
        drawn, route = torch.Generator().manual_seed(0), Route()
        noted = {
            kind: {
                name: torch.rand(step.shapes[kind][name], generator=drawn).requires_grad_()
                for name in names
            }
            for kind, names in penalties.watched.items()
        }
        mask = torch.ones(len(self._task_ids), self.tokens)
        labels = torch.zeros(len(self._task_ids))
        route.set(self._task_ids)
        with FlopCounterMode(display=False) as counted:
            total, _ = penalties(noted, self._task_ids, labels, {"attention_mask": mask}, route)
            total.backward()
        return counted.get_total_flops()


def _output(backbone: PreTrainedModel, batch: int, tokens: int) -> Tensor:
    # Without a mask: transformers looks at the values of one.
    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids}
    if backbone.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    found: Any = backbone(**inputs)
    return found.logits if "logits" in found else found.last_hidden_state
