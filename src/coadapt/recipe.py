"""A published method is a row of parts."""

from dataclasses import dataclass
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt.groups import Uniform
from coadapt.inits import Default
from coadapt.planning import Sharing
from coadapt.structures import Bank, Frozen, Full, Single, Structure


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how; who shares is the plan's matter.

    Args:
        structure: the shape of what is trained.
        init: how its factors start.
        groups: how parameters are divided for the optimizer.
        sharing: the kind of plan made from a rank budget when none is given. ``clustered`` has no
            such default: which tasks belong together is what a plan says.
    """

    structure: Structure
    init: Default = Default()
    groups: Uniform = Uniform()
    sharing: Sharing | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A named recipe with where it comes from."""

    recipe: Recipe
    paper: str
    summary: str


_CR = "Capacity and Redundancy Trade-offs in Multi-Task Learning (OpenReview bRxdN43ItK)"

RECIPES: dict[str, Row] = {
    "full": Row(
        recipe=Recipe(structure=Full()),
        paper="Multitask Learning (Caruana, 1997)",
        summary="every weight of the backbone, all tasks together",
    ),
    "frozen": Row(
        recipe=Recipe(structure=Frozen()),
        paper="How transferable are features in deep neural networks? (arXiv 1411.1792)",
        summary="heads on a frozen backbone",
    ),
    "lora": Row(
        # scale 2: the method sheets' reading where a paper leaves alpha open; dropout not stated.
        recipe=Recipe(structure=Single(scale=2.0), sharing="shared"),
        paper="LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
        summary="one LoRA for all tasks",
    ),
    "private": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="private"),
        paper=_CR,  # section 6, regime K = T
        summary="one LoRA a task, the rank budget split",
    ),
    "clustered": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="clustered"),
        paper=_CR,  # section 6, regime 1 < K < T
        summary="one LoRA a cluster of tasks, by a plan",
    ),
    "shared_private": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="shared_private"),
        paper=_CR,  # section 5, equation 8: Z = (Z_s, Z_t)
        summary="a common LoRA plus one a task",
    ),
}


def find_recipe(recipe: "str | Recipe") -> Recipe:
    """Return the recipe of that name, or the recipe itself.

    Raises:
        InputError: if no row has the name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise InputError(f"no recipe is named '{recipe}'{nearest(recipe, RECIPES)}")
    return RECIPES[recipe].recipe


def list_methods() -> list[dict[str, Any]]:
    """Return a row a recipe: name, paper, summary, depends_on, ships_as, mergeable."""
    return [
        {
            "name": name,
            "paper": row.paper,
            "summary": row.summary,
            "depends_on": row.recipe.structure.depends_on,
            "ships_as": row.recipe.structure.ships_as,
            "mergeable": row.recipe.structure.mergeable,
        }
        for name, row in RECIPES.items()
    ]
