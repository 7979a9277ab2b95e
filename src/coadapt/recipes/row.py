"""What a row of the table of methods is."""

from dataclasses import dataclass

from coadapt.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Row:
    """A named recipe with where it comes from."""

    recipe: Recipe
    paper: str
    summary: str
