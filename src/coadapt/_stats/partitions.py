"""Partitions of tasks into groups: how many, which, and how likely one as good is by chance."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Partition = tuple[tuple[str, ...], ...]

_FEW = 10_000  # so many partitions are enumerated in some ten milliseconds


def regret(score: float, alternatives: Mapping[str, float]) -> dict[str, float]:
    """Return what each fixed policy would have gained over the choice that was made.

        regret_a = alternative_a - score,   regret_best = max(score, max_a alternative_a) - score

    Savage, "The theory of statistical decision", JASA 1951, with the policies in place of acts.
    Below 0 it is what the choice saved.

    Not a test: the best of several noisy scores looks better than it is, so ``"best"`` is above 0
    by chance alone.

    Args:
        score: of what was chosen; higher is better.
        alternatives: score of each fixed policy, such as always sharing, in the same unit.

    Returns:
        The regret of each policy under its name, then the regret against the best of all and the
        choice itself as ``"best"``, at least 0; NaN where a score is.

    Raises:
        ValueError: if a policy is called ``"best"``.

    Example:
        >>> regret(0.5, {"share": 0.75, "private": 0.25})
        {'share': 0.25, 'private': -0.25, 'best': 0.25}
    """
    if "best" in alternatives:
        raise ValueError("alternatives has a policy called 'best': call it something else")
    best = float(np.max([score, *alternatives.values()]))  # unlike max, gives NaN if there is one
    return {name: other - score for name, other in alternatives.items()} | {"best": best - score}


def rank_p_value(
    observed: float,
    null: ArrayLike,  # (N,)
    *,
    includes_observed: bool = False,
) -> float:
    """Return the exact one-sided probability of a score as large among the partitions.

        p = (1 + #{null >= observed}) / (1 + N),   or #{null >= observed} / N if included

    Phipson and Smyth, "Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol.
    2010, for draws without repeats. P(p <= a) <= a, with equality for each attainable a where there
    are no ties. The smallest value possible is 1 / (1 + N), or 1 / N if included: five tasks have
    10 partitions into groups of 2, 1, 1 and 1, so p is at least 0.1 there, whatever is observed.

    Not for a null that was drawn with repeats, nor for an observed partition that was chosen by
    these very scores.

    Args:
        observed: score of the partition in question; higher is better.
        null: scores of distinct random partitions of the same sizes; NaN, a run that failed, is
            left out.
        includes_observed: whether the null holds all partitions, the observed among them.

    Returns:
        The p-value in (0, 1]; NaN if the observed is NaN or the null has no values.

    Raises:
        ValueError: if the null should include the observed value and does not.

    Example:
        >>> rank_p_value(0.9, [0.7, 0.8, 0.6])
        0.25
        >>> rank_p_value(0.9, [0.7, 0.8, 0.9, 0.6], includes_observed=True)
        0.25
    """
    scores = _numbers(null)
    if math.isnan(observed) or scores.size == 0:
        return float("nan")
    if includes_observed and not (scores == observed).any():
        raise ValueError(f"null does not include the observed {observed}: add it, digit for digit")
    own = 0 if includes_observed else 1
    return float((own + (scores >= observed).sum()) / (own + scores.size))


def null_z(observed: float, null: ArrayLike) -> float:
    """Return by how many standard deviations the observed score exceeds the mean of the null.

        z = (observed - mean(null)) / s,   s^2 = sum_i (null_i - mean)^2 / (N - 1)

    Khan, "Capacity and redundancy trade-offs in multi-task learning", random-partition baseline.

    Not for a p-value: a few partitions are no normal sample, see :func:`rank_p_value`. Its spread
    is that of partitions and of seeds together, unless each score is a mean over seeds.

    Args:
        observed: score of the partition in question.
        null: scores of other partitions of the same sizes, (N,), without the observed; NaN, a run
            that failed, is left out.

    Returns:
        z, without unit; NaN if the null has fewer than two values or no spread.

    Example:
        >>> null_z(5.0, [1.0, 2.0, 3.0])
        3.0
    """
    scores = _numbers(null)
    if scores.size < 2 or np.ptp(scores) == 0:
        return float("nan")
    return float((observed - scores.mean()) / scores.std(ddof=1))


def num_partitions(sizes: Sequence[int]) -> int:
    """Return the number of partitions into unlabeled groups of these sizes, exactly.

        T! / (prod_k n_k! prod_n mult_n!),   T = sum_k n_k,   mult_n groups of size n

    Abramowitz and Stegun, "Handbook of mathematical functions", 1964, section 24.1.2 (M_3).

    Args:
        sizes: tasks in each group, each at least 1, in any order.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> num_partitions([2, 1, 1, 1]), num_partitions([2, 2])
        (10, 3)
    """
    _check_sizes(sizes)
    same = math.prod(math.factorial(count) for count in Counter(sizes).values())
    within = math.prod(math.factorial(size) for size in sizes)
    return math.factorial(sum(sizes)) // (within * same)


def partitions_of(
    items: Sequence[str], sizes: Sequence[int]
) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield every partition of the items into unlabeled groups of these sizes, once.

    The first item's group is chosen, then that of the first item left over, and so on; larger
    groups come first, then the order of the items decides. Within a partition, items keep their
    order and groups that of their first items. There are :func:`num_partitions` of them.

    Args:
        items: distinct names.
        sizes: items in each group, each at least 1, in any order; their sum is the number of items.

    Raises:
        ValueError: if items repeat, or the sizes do not fit.

    Example:
        >>> list(partitions_of("abc", [1, 2]))
        [(('a', 'b'), ('c',)), (('a', 'c'), ('b',)), (('a',), ('b', 'c'))]
    """
    _check_sizes(sizes, items)
    return _partitions(tuple(items), tuple(sorted(sizes, reverse=True)))


def random_partitions(
    items: Sequence[str],
    sizes: Sequence[int],
    num: int,
    *,
    generator: np.random.Generator,
    exclude: Iterable[Sequence[Sequence[str]]] = (),
) -> list[tuple[tuple[str, ...], ...]]:
    """Return distinct partitions with these sizes, drawn uniformly without replacement.

    Few partitions are enumerated and chosen from; of many, random orders of the items are cut at
    the sizes and repeats rejected. Each partition comes from equally many orders, so both are
    uniform.

    Args:
        items: distinct names.
        sizes: items in each group, each at least 1, in any order; their sum is the number of items.
        num: partitions wanted; all there are, in the order of :func:`partitions_of`, if no more
            than that are left.
        generator: the source of the draws; the same state gives the same partitions.
        exclude: partitions of the items not to draw, such as the observed one; the order of groups
            and of items within them does not matter, and those of other sizes are never drawn.

    Returns:
        The partitions in the form of :func:`partitions_of`.

    Raises:
        ValueError: if items repeat, the sizes do not fit, num is below 0, or an excluded one is no
            partition of the items.

    Example:
        >>> observed = [("a", "b"), ("c",)]
        >>> random_partitions(
        ...     "abc", [2, 1], 10, generator=np.random.default_rng(0), exclude=[observed]
        ... )
        [(('a', 'c'), ('b',)), (('a',), ('b', 'c'))]
    """
    _check_sizes(sizes, items)
    if num < 0:
        raise ValueError(f"num must be 0 or more, not {num}")
    position = {item: place for place, item in enumerate(items)}
    wanted_sizes = sorted(sizes)
    excluded = {_canonical(groups, position) for groups in exclude}
    excluded = {groups for groups in excluded if sorted(map(len, groups)) == wanted_sizes}
    num_all = num_partitions(sizes)
    # Beyond half of all, rejecting repeats would take longer than listing them.
    if num_all <= _FEW or 2 * (num + len(excluded)) >= num_all:
        left = [groups for groups in partitions_of(items, sizes) if groups not in excluded]
        if num >= len(left):
            return left
        return [left[i] for i in generator.choice(len(left), size=num, replace=False)]
    names = list(items)
    cuts = np.cumsum([0, *sizes]).tolist()
    drawn: dict[Partition, None] = {}  # as a set, but in the order drawn
    while len(drawn) < num:
        order = [names[i] for i in generator.permutation(len(names))]
        groups = [order[start:end] for start, end in pairwise(cuts)]
        partition = _canonical(groups, position)
        if partition not in excluded:
            drawn[partition] = None
    return list(drawn)


def _partitions(items: tuple[str, ...], sizes: tuple[int, ...]) -> Iterator[Partition]:
    """Yield the partitions of ``items``; ``sizes`` are sorted and sum to their number."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for size in dict.fromkeys(sizes):  # each size once, in order
        place = sizes.index(size)
        sizes_left = sizes[:place] + sizes[place + 1 :]
        for others in combinations(rest, size - 1):
            members = set(others)
            items_left = tuple(item for item in rest if item not in members)
            for groups in _partitions(items_left, sizes_left):
                yield ((first, *others), *groups)


def _canonical(groups: Sequence[Sequence[str]], position: Mapping[str, int]) -> Partition:
    """Return the groups with items in their order, ordered by their first items."""
    members = [item for group in groups for item in group]
    if sorted(members) != sorted(position) or not all(len(group) > 0 for group in groups):
        raise ValueError(f"exclude has {groups}: that is no partition of {list(position)}")
    ordered = (tuple(sorted(group, key=position.__getitem__)) for group in groups)
    return tuple(sorted(ordered, key=lambda group: position[group[0]]))


def _check_sizes(sizes: Sequence[int], items: Sequence[str] | None = None) -> None:
    """Raise ValueError unless groups of these sizes can hold the items."""
    if any(size < 1 for size in sizes):
        raise ValueError(f"sizes must be at least 1 each, not {list(sizes)}")
    if items is None:
        return
    if len(set(items)) != len(items):
        raise ValueError(f"items must be distinct, not {list(items)}")
    if sum(sizes) != len(items):
        raise ValueError(f"sizes sum to {sum(sizes)}, but there are {len(items)} items")


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values that are numbers, without the NaNs."""
    values = np.asarray(values, dtype=np.float64).ravel()
    return values[~np.isnan(values)]
