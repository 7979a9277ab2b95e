"""The table of methods: a name, the recipe that it stands for, and where it comes from.

A row stands in the file of the paper that compares it.
"""

from typing import Any

from coadapt._errors import InputError, nearest
from coadapt.recipe import Recipe
from coadapt.recipes.align_lora import ALIGN_LORA
from coadapt.recipes.balanced import BALANCED
from coadapt.recipes.prompts import PROMPTS
from coadapt.recipes.row import Row
from coadapt.recipes.sharing import SHARING
from coadapt.recipes.thanora import THANORA

RECIPES: dict[str, Row] = {**SHARING, **ALIGN_LORA, **THANORA, **PROMPTS, **BALANCED}


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
