"""What an arm of a study trains, counted without loading a weight."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from coadapt.adapters import Route, target_names
from coadapt.backbone import ModelConfig, empty_backbone
from coadapt.inits import Start
from coadapt.planning import InfeasibleBudget, Plan
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES
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
        rank: of each head or expert, the largest that the budget allows; None where the plan's
            ranks sum to the budget.
    """

    trainable: int
    allowed: int | None
    scale: float | None
    rank: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the budget is met within 2 %.

        A whole rank of heads or experts is more than that, so they may leave some of it unused.
        """
        if self.allowed is None:
            return True
        if self.rank is not None:
            return self.trainable <= (1 + TOLERANCE) * self.allowed
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

    def spent(
        self,
        recipe: Recipe,
        tasks: Sequence[str],
        plan: Plan | None,
        budget: int | None = None,
    ) -> Spent:
        """Return what a recipe trains with a plan, and what a rank budget allows."""
        structure = recipe.structure
        if budget is None and plan is not None and structure.divides:
            budget = plan.budget
        trainable = self._trainable(recipe, tasks, plan)
        return Spent(
            trainable=trainable,
            allowed=None if budget is None else self.allowed(tasks, budget),
            scale=getattr(structure, "scale", None),
            rank=plan.budget if plan is not None and structure.multiplies else None,
        )

    def allowed(self, tasks: Sequence[str], budget: int) -> int:
        """Return the values of a plain LoRA of the budget's rank on the same modules."""
        return self._trainable(RECIPES["lora"].recipe, tasks, Plan.shared(tasks, budget))

    def matched_rank(self, recipe: Recipe, tasks: Sequence[str], budget: int) -> int:
        """Return the largest rank of heads or experts that trains no more than the budget allows.

        Raises:
            InfeasibleBudget: if rank 1 trains more.
        """
        allowed = (1 + TOLERANCE) * self.allowed(tasks, budget)
        one, two = (self._trainable(recipe, tasks, Plan.shared(tasks, r)) for r in (1, 2))
        if one > allowed:
            raise InfeasibleBudget(
                f"it trains {one:,} values at rank 1 where rank {budget} of a plain LoRA is "
                f"{int(allowed / (1 + TOLERANCE)):,}; take a larger budget or fewer heads"
            )
        return 1 + int((allowed - one) // (two - one))  # linear in the rank

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
            start=Start(fills=False),
        )
        recipe.structure.attach(site)
        return sum(p.numel() for p in backbone.parameters() if p.requires_grad)
