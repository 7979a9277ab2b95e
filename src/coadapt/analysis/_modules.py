"""Modules by the kind of map they are and how deep they lie."""

from collections.abc import Iterable


def by_kind(modules: Iterable[str]) -> dict[str, dict[int, str]]:
    """Return modules by kind and layer, in the order given.

    The first number in a name is the layer, 0 where there is none; a kind is called by the shortest
    ending of the rest of the name that no other kind has.

    Example:
        >>> by_kind(["h.0.attn.q", "h.0.mlp.q", "h.1.attn.q", "h.1.mlp.q"])
        {'attn.q': {0: 'h.0.attn.q', 1: 'h.1.attn.q'}, 'mlp.q': {0: 'h.0.mlp.q', 1: 'h.1.mlp.q'}}
    """
    found: dict[tuple[str, ...], dict[int, str]] = {}
    for module in modules:
        parts = module.split(".")
        place = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        layer = 0 if place is None else int(parts[place])
        rest = tuple(part for index, part in enumerate(parts) if index != place)
        found.setdefault(rest, {})[layer] = module
    return {_ending(rest, found): layers for rest, layers in found.items()}


def _ending(name: tuple[str, ...], names: Iterable[tuple[str, ...]]) -> str:
    others = [other for other in names if other != name]
    for length in range(1, len(name)):
        ending = name[-length:]
        if all(other[-length:] != ending for other in others):
            return ".".join(ending)
    return ".".join(name)
