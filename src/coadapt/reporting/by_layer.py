"""Numbers by module as lines over the model's layers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def layer_of(module: str) -> int:
    """Return the number of the layer that a module's name has in it, or 0.

    Example:
        >>> layer_of("encoder.layer.11.attention.self.query")
        11
    """
    number = re.search(r"\.(\d+)\.", module)
    return int(number[1]) if number else 0


def lines(values: Mapping[str, Sequence[tuple[str, float]]]) -> list[dict[str, Any]]:
    """Return a series a name: at each layer the mean of what its modules have.

    Args:
        values: by name the modules and their numbers.
    """
    found = []
    for name, pairs in values.items():
        layers: dict[int, list[float]] = {}
        for module, value in pairs:
            layers.setdefault(layer_of(module), []).append(value)
        x = sorted(layers)
        y = [sum(layers[layer]) / len(layers[layer]) for layer in x]
        found.append({"name": name, "x": x, "y": y, "low": None, "high": None})
    return found
