"""The slow oracle of merging: nested lists, entry by entry, sorted and summed exactly."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from torch import Tensor

Dense = Mapping[str, Tensor]  # module -> (out, in)


def slow_trim(deltas: Dense, density: str, *, together: bool) -> dict[str, list[list[float]]]:
    """Return the greatest entries and zeros for the rest; of equals the first in order are kept."""
    groups = [list(deltas)] if together else [[module] for module in deltas]
    found = {module: [[0.0] * delta.shape[1] for _ in delta] for module, delta in deltas.items()}
    for group in groups:
        entries = [
            (-abs(value), place, (module, row, column), value)
            for place, (module, row, column, value) in enumerate(_entries(deltas, group))
        ]
        num_dropped = math.floor((1 - Fraction(density)) * len(entries))
        for _, _, (module, row, column), value in sorted(entries)[: len(entries) - num_dropped]:
            found[module][row][column] = value
    return found


def _entries(deltas: Dense, modules: Sequence[str]):
    for module in modules:
        for row, values in enumerate(deltas[module].tolist()):
            for column, value in enumerate(values):
                yield module, row, column, value


def slow_elect(
    tasks: Sequence[Mapping[str, list[list[float]]]], weight: float
) -> tuple[dict[str, list[list[float]]], int]:
    """Return lambda times the mean of those with the sum's sign, and how many have no sign."""
    merged: dict[str, list[list[float]]] = {}
    without = 0
    for module, rows in tasks[0].items():
        merged[module] = [[0.0] * len(row) for row in rows]
        for i, row in enumerate(rows):
            for j in range(len(row)):
                values = [task[module][i][j] for task in tasks]
                total = sum(Fraction(value) for value in values)  # exact
                if total == 0:
                    without += any(value != 0 for value in values)
                    continue
                agreeing = [v for v in values if v != 0 and (v > 0) == (total > 0)]
                merged[module][i][j] = weight * math.fsum(agreeing) / len(agreeing)
    return merged, without
