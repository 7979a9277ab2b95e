"""What an arm of a study trains, counted without loading a weight."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from coadapt.adapters import Route, target_names
from coadapt.backbone import ModelConfig, empty_backbone
from coadapt.planning import Plan
from coadapt.recipe import RECIPES, Recipe
from coadapt.structures import Site

TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a recipe trains at a rank budget, heads aside.

    Attributes:
        trainable: values in adapters, or in a backbone that trains.
        allowed: those of a plain LoRA of the budget's rank on the same modules; None for a recipe
            without a rank axis, which stands outside the budget.
        scale: s = lora_alpha / r, where the structure has one.
    """

    trainable: int
    allowed: int | None
    scale: float | None

    @property
    def fits(self) -> bool:
        """Whether the budget is met within 2 %."""
        if self.allowed is None:
            return True
        return abs(self.trainable - self.allowed) <= TOLERANCE * self.allowed


class Counter:
    """Counts trainable values on a base model without weights (torch's meta device)."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._backbone = empty_backbone(config)

    @property
    def num_weights(self) -> int:
        """Values of the base model."""
        return sum(p.numel() for p in self._backbone.parameters())

    def spent(self, recipe: Recipe, tasks: Sequence[str], plan: Plan | None) -> Spent:
        """Return what a recipe trains with a plan, and what the plan's budget allows."""
        structure = recipe.structure
        trainable = self._trainable(recipe, tasks, plan)
        allowed = None
        if structure.divides and plan is not None:
            shared = Plan.shared(tasks, plan.budget)
            allowed = self._trainable(RECIPES["lora"].recipe, tasks, shared)
        return Spent(trainable=trainable, allowed=allowed, scale=getattr(structure, "scale", None))

    def _trainable(self, recipe: Recipe, tasks: Sequence[str], plan: Plan | None) -> int:
        backbone: nn.Module = copy.deepcopy(self._backbone)
        targets = self._config.target_modules
        site = Site(
            backbone=backbone,
            names=target_names(backbone, targets) if recipe.structure.divides else (),
            tasks=tasks,
            plan=plan,
            init=recipe.init,
            route=Route(),
            seed=0,
        )
        recipe.structure.attach(site)
        return sum(p.numel() for p in backbone.parameters() if p.requires_grad)
