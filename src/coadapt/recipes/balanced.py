"""Gradient surgery and loss weighting on one LoRA."""

from coadapt.balancing import Balancing, CAGrad, GradNorm, PCGrad, Uncertainty, UPGrad
from coadapt.recipe import Recipe
from coadapt.recipes.row import Row
from coadapt.structures import (
    Single,
)


def _balanced(balancing: Balancing, paper: str, summary: str) -> Row:
    recipe = Recipe(structure=Single(scale=2.0), balancing=balancing, sharing="shared")
    return Row(recipe=recipe, paper=paper, summary=summary)


BALANCED: dict[str, Row] = {
    "lora+pcgrad": _balanced(
        PCGrad(),
        "Gradient Surgery for Multi-Task Learning (arXiv 2001.06782)",
        "one LoRA, conflicting parts of the tasks' gradients projected away",
    ),
    "lora+upgrad": _balanced(
        UPGrad(),
        "Jacobian Descent for Multi-Objective Optimization (arXiv 2406.16232)",
        "one LoRA, a direction that points against no task's gradient",
    ),
    "lora+cagrad": _balanced(
        CAGrad(),  # c = 0.5: section 5
        "Conflict-Averse Gradient Descent for Multi-task Learning (arXiv 2110.14048)",
        "one LoRA, near the mean gradient the best for the task it helps least",
    ),
    "lora+grad_norm": _balanced(
        GradNorm(),  # alpha = 1.5: section 5
        "GradNorm: Gradient Normalization for Adaptive Loss Balancing (arXiv 1711.02257)",
        "one LoRA, tasks weighted to gradients of comparable size",
    ),
    "lora+uncertainty": _balanced(
        Uncertainty(),
        "Multi-Task Learning Using Uncertainty to Weigh Losses (arXiv 1705.07115)",
        "one LoRA, tasks weighted by a learned uncertainty",
    ),
}
