"""How ranks are split: against Hamilton's method and against every split there is."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coadapt import InputError
from coadapt.planning import InfeasibleBudget, allocate_ranks


@st.composite
def budgets(draw, max_blocks=12, spare=60):
    """A rank budget that is enough, and the sizes of the blocks."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=max_blocks))
    return len(sizes) + draw(st.integers(0, spare)), sizes


# By tasks, uniform -------------------------------------------------------------------------------


@given(budgets(), st.sampled_from(["uniform", "by_tasks"]))
def test_ranks_sum_to_the_budget_and_none_is_zero(case, rule):
    budget, sizes = case
    ranks = allocate_ranks(budget, sizes, rule)
    assert len(ranks) == len(sizes)
    assert sum(ranks) == budget
    assert min(ranks) >= 1
    assert all(isinstance(rank, int) for rank in ranks)


@given(budgets())
def test_a_larger_block_never_gets_less_and_an_equal_one_only_by_index(case):
    budget, sizes = case
    ranks = allocate_ranks(budget, sizes)
    for i, (size, rank) in enumerate(zip(sizes, ranks, strict=True)):
        for later_size, later in zip(sizes[i + 1 :], ranks[i + 1 :], strict=True):
            if size >= later_size:
                assert rank >= later
            else:
                assert rank <= later
            if size == later_size:
                assert rank - later <= 1


def largest_remainder(budget, sizes):
    """Hamilton's method in exact arithmetic, ties to the lower index."""
    shares = [Fraction(budget * size, sum(sizes)) for size in sizes]
    ranks = [int(share) for share in shares]
    order = sorted(range(len(sizes)), key=lambda i: (ranks[i] - shares[i], i))
    for i in order[: budget - sum(ranks)]:
        ranks[i] += 1
    return shares, tuple(ranks)


@given(budgets(max_blocks=6, spare=400))
def test_ranks_are_the_largest_remainders_where_no_floor_binds(case):
    budget, sizes = case
    shares, expected = largest_remainder(budget, sizes)
    assume(min(shares) >= 1)
    assert allocate_ranks(budget, sizes) == expected


@given(st.integers(1, 12), st.integers(0, 40))
def test_uniform_is_as_equal_as_whole_numbers_allow(num_blocks, spare):
    ranks = allocate_ranks(num_blocks + spare, range(1, num_blocks + 1), "uniform")
    whole, left = divmod(num_blocks + spare, num_blocks)
    assert ranks == (whole + 1,) * left + (whole,) * (num_blocks - left)


@pytest.mark.parametrize(
    ("budget", "sizes", "ranks"),
    [
        (8, [1], (8,)),
        (8, [1, 1, 1], (3, 3, 2)),
        (8, [2, 1, 4], (2, 1, 5)),
        (3, [1, 1, 1], (1, 1, 1)),
        (4, [100, 1, 1], (2, 1, 1)),
        (7, [3, 3, 1], (3, 3, 1)),
        (20, [9, 9, 1, 1], (9, 9, 1, 1)),
        # Remainders .6, .6, .8: in floating point the first two are no tie.
        (46, [1, 6, 3], (5, 27, 14)),
        # Both floors are lifted; the lower index keeps what cannot be shared evenly.
        (5, [10, 10, 1, 1], (2, 1, 1, 1)),
    ],
)
def test_ranks_of_known_cases(budget, sizes, ranks):
    assert allocate_ranks(budget, sizes) == ranks


def test_an_infeasible_budget_says_what_would_do():
    with pytest.raises(InfeasibleBudget, match="raise budget to at least 3 or share more"):
        allocate_ranks(2, [1, 1, 1])
    with pytest.raises(InfeasibleBudget, match="budget of 2"):
        allocate_ranks(2, [1, 1, 1], "by_weights", weights=[1, 1, 1])
    assert issubclass(InfeasibleBudget, InputError)


# By weights --------------------------------------------------------------------------------------


def nearest_split(budget, weights):
    """Return, of all splits, the nearest to the ideal in squares; of equal ones the earliest."""
    num = len(weights)
    ideal = [budget * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    splits = (
        tuple(b - a for a, b in zip((0, *cuts), (*cuts, budget), strict=True))
        for cuts in combinations(range(1, budget), num - 1)
    )
    return min(
        splits,
        key=lambda ranks: (
            sum((rank - share) ** 2 for rank, share in zip(ranks, ideal, strict=True)),
            [-rank for rank in ranks],
        ),
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 9))
def test_ranks_are_the_nearest_of_all_splits_ties_to_the_lower_index(weights, spare):
    budget = len(weights) + spare
    expected = nearest_split(budget, weights)
    sizes = [1] * len(weights)
    assert allocate_ranks(budget, sizes, "by_weights", weights=weights) == expected
    assert allocate_ranks(budget, weights) == expected
    tenths = [weight / 10 for weight in weights]  # as people write them: 0.1 + 0.2 ties with 0.3
    assert allocate_ranks(budget, sizes, "by_weights", weights=tenths) == expected


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=8), st.integers(0, 40), st.data())
def test_weights_of_any_size_give_exact_sums_and_keep_their_order(weights, spare, data):
    budget = len(weights) + spare
    copied = data.draw(st.integers(0, len(weights) - 1))
    weights = [*weights, weights[copied]]
    ranks = allocate_ranks(budget + 1, [1] * len(weights), "by_weights", weights=weights)
    assert sum(ranks) == budget + 1
    assert min(ranks) >= 1
    assert all(type(rank) is int for rank in ranks)
    assert 0 <= ranks[copied] - ranks[-1] <= 1  # equal weights, the lower index first
    for (w, rank), (v, other) in combinations(zip(weights, ranks, strict=True), 2):
        assert rank >= other or w < v
        assert rank <= other or w >= v


@pytest.mark.parametrize(
    ("budget", "weights", "ranks"),
    [
        (4, [0.1, 0.1, 0.1], (2, 1, 1)),
        (8, [3.0, 1.0], (6, 2)),
        (8, [1e300, 1e-300], (7, 1)),
        (8, [5e-324, 5e-324], (4, 4)),
        (6, [0.1, 0.2, 0.3], (1, 2, 3)),
        (9, [0.3, 0.1, 0.2], (5, 1, 3)),  # ideal 4.5, 1.5, 3: a tie of exact tenths
        (9, np.array([0.3, 0.1, 0.2]), (5, 1, 3)),
        (9, np.array([3, 1, 2]), (5, 1, 3)),
        (3, [100, 1, 1], (1, 1, 1)),
    ],
    ids=str,
)
def test_weighted_ranks_of_known_cases(budget, weights, ranks):
    sizes = [7] * len(weights)  # the rule asks the weights alone
    assert allocate_ranks(budget, sizes, "by_weights", weights=weights) == ranks


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf], ids=str)
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    with pytest.raises(InputError, match=rf"weights\[1\] must be a finite .* not {weight}"):
        allocate_ranks(8, [1, 1], "by_weights", weights=[1.0, weight])


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="one for each of the 2 blocks; found none"):
        allocate_ranks(8, [1, 1], "by_weights")
    with pytest.raises(InputError, match="one for each of the 2 blocks; found 3"):
        allocate_ranks(8, [1, 1], "by_weights", weights=[1, 1, 1])
    with pytest.raises(InputError, match="weights have no effect with rule 'by_tasks'"):
        allocate_ranks(8, [1, 1], weights=[1, 1])
    with pytest.raises(InputError, match="uniform, by_tasks or by_weights, not 'by_need'"):
        allocate_ranks(8, [1, 1], "by_need")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="each with a task or more"):
        allocate_ranks(8, [1, 0], "by_weights", weights=[1, 1])
