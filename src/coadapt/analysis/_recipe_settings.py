"""A study's recipes, taken apart into one setting and all else."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coadapt.config import parse, to_plain
from coadapt.recipe import Recipe

Value = float | str


@dataclass(frozen=True, kw_only=True)
class Split:
    """A recipe's value of a setting, and all else of its entry, as text.

    Attributes:
        value: of the setting.
        rest: of the entry, less the regularizer if the setting is one's.
        settings: of that regularizer, less the value.
        absent: whether there is no such regularizer, or one of weight 0.
    """

    value: Value
    rest: str
    settings: str = ""
    absent: bool = False

    @property
    def family(self) -> tuple[str, str]:
        """What arms of one sweep have in common, where the regularizer is not absent."""
        return self.rest, self.settings


def split_entry(entry: Mapping[str, Any], key: str, where: str) -> Split | None:
    """Return the parts of a study's entry; None if its recipe has no such setting.

    Args:
        entry: as in a study's file; defaults that it leaves out are filled in.
        key: see :func:`coadapt.analysis.sweep`.
        where: what the entry comes from, to begin an error message with.
    """
    recipe = to_plain(parse(Recipe, entry["recipe"], where))
    others = {k: v for k, v in entry.items() if k not in ("recipe", "recipe_name")}
    *path, name = key.split(".")
    if path[:1] == ["regularizers"]:
        return _of_regularizer(recipe, others, path[1:], name)
    holder: Any = recipe
    for part in path:
        holder = holder.get(part) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or name not in holder:
        return None
    value = _value(holder.pop(name))
    return Split(value=value, rest=json.dumps([recipe, others], sort_keys=True))


def _of_regularizer(
    recipe: dict[str, Any], others: dict[str, Any], path: list[str], name: str
) -> Split | None:
    parts = recipe.pop("regularizers")
    mine = [part for part in parts if [part["kind"]] == path]
    kept = [part for part in parts if [part["kind"]] != path]
    rest = json.dumps([recipe, kept, others], sort_keys=True)
    if not mine and name == "weight":
        return Split(value=0.0, rest=rest, absent=True)
    if len(mine) != 1 or name not in mine[0]:
        return None
    value = _value(mine[0].pop(name))
    absent = name == "weight" and value == 0
    return Split(value=value, rest=rest, settings=json.dumps(mine, sort_keys=True), absent=absent)


def setting_keys(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the settings that recipes of a study have."""
    for entry in entries:
        recipe = to_plain(parse(Recipe, entry["recipe"], "a recipe"))
        for part in recipe["regularizers"]:
            yield from (f"regularizers.{part['kind']}.{name}" for name in part if name != "kind")
        for part, fields in recipe.items():
            if isinstance(fields, dict):
                yield from (f"{part}.{name}" for name in fields if name != "kind")


def _value(found: Any) -> Value:
    """Return a number as one, anything else as text."""
    number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if number else json.dumps(found).strip('"')
