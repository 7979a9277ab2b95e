"""How a rank budget is split over blocks, exactly."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from coadapt._errors import InputError

RankRule = Literal["uniform", "by_tasks", "by_weights"]


class InfeasibleBudget(InputError):
    """The rank budget is smaller than the number of blocks, each of which needs rank 1 at least."""


def allocate_ranks(
    budget: int,
    sizes: Sequence[int],
    rule: RankRule = "by_tasks",
    weights: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """Split a rank budget over blocks by largest remainder, with floor 1 and exact sum.

    Block k starts from max(1, floor(R w_k / sum w)); surplus is taken from the blocks furthest
    above their ideal share and given to those furthest below it; ties go to the block of lower
    index. That is the split with the smallest sum of squared distances from the ideal shares.

    Shares are compared as exact fractions, a weight being the decimal number that it prints as:
    0.1, 0.2 and 0.3 split as 1, 2 and 3 do, ties included.

    Args:
        budget: R, the summed rank.
        sizes: the number of tasks of each block.
        rule: where the w_k come from: all equal, ``sizes``, or ``weights``.
        weights: with ``by_weights``, a number above 0 for each block, in any unit: what it needs
            relative to the others.

    Raises:
        InfeasibleBudget: if R is smaller than the number of blocks.
        InputError: if there is no block, or one without tasks, or ``weights`` are missing, not
            wanted by the rule, or not positive finite numbers, one a block.

    Example:
        >>> allocate_ranks(8, [2, 1, 1])
        (4, 2, 2)
        >>> allocate_ranks(8, [2, 1, 1], "by_weights", weights=[0.5, 3.0, 0.5])
        (1, 6, 1)
    """
    refuse_infeasible(budget, len(sizes))
    if not sizes or min(sizes) < 1:
        raise InputError("a rank budget needs blocks to be split over, each with a task or more")
    shares = _weights(rule, sizes, weights)
    # All in units of 1 / sum w: in floating point equal remainders differ, and ties are lost.
    total = sum(shares)
    ideal = [budget * share for share in shares]
    ranks = [max(1, share // total) for share in ideal]
    while sum(ranks) > budget:  # the floor has lifted small blocks: take from the most over-served
        spare = [i for i, rank in enumerate(ranks) if rank > 1]
        ranks[max(spare, key=lambda i: (total * ranks[i] - ideal[i], i))] -= 1
    while sum(ranks) < budget:
        ranks[max(range(len(ranks)), key=lambda i: (ideal[i] - total * ranks[i], -i))] += 1
    return tuple(ranks)


def refuse_infeasible(budget: int, blocks: int) -> None:
    """Raise InfeasibleBudget unless ``budget`` gives each of ``blocks`` blocks a rank."""
    if budget < blocks:
        raise InfeasibleBudget(
            f"a rank budget of {budget} is smaller than the {blocks} blocks it must be split over "
            f"(each needs rank 1); raise budget to at least {blocks} or share more"
        )


def _weights(
    rule: RankRule, sizes: Sequence[int], weights: Sequence[float] | None
) -> Sequence[int] | Sequence[Fraction]:
    """Return exact numbers to split by."""
    if rule != "by_weights":
        if weights is not None:
            raise InputError(f"weights have no effect with rule '{rule}'; take 'by_weights'")
        if rule not in ("uniform", "by_tasks"):
            raise InputError(f"rule must be uniform, by_tasks or by_weights, not '{rule}'")
        return [1] * len(sizes) if rule == "uniform" else list(sizes)
    if weights is None or len(weights) != len(sizes):
        found = "none" if weights is None else len(weights)
        raise InputError(
            f"rule 'by_weights' needs weights, one for each of the {len(sizes)} "
            f"blocks; found {found}"
        )
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"weights[{index}] must be a finite number above 0, not {weight}")
    return [Fraction(repr(float(weight))) for weight in weights]
