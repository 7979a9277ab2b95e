"""Partitions against every order of the items; ranks against counting by hand."""

import time
from collections import Counter
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coadapt._stats import (
    null_z,
    num_partitions,
    partitions_of,
    random_partitions,
    rank_p_value,
    regret,
)
from tests.reference.slow_stats import partitions_by_permutations

ITEMS = "fbdace"  # not sorted: the order of the items counts, not that of the alphabet


def all_sizes(total, largest):
    """Yield the sizes of groups that ``total`` items can be split into, largest first."""
    if total == 0:
        yield []
    for size in range(min(total, largest), 0, -1):
        yield from ([size, *rest] for rest in all_sizes(total - size, size))


SIZES = [sizes for total in range(7) for sizes in all_sizes(total, total)]


def as_sets(partition):
    return frozenset(frozenset(group) for group in partition)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- which there are


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_partitions_are_those_of_all_orders_once_each_and_canonical(sizes):
    items = ITEMS[: sum(sizes)]
    ours = list(partitions_of(items, sizes))
    assert {as_sets(partition) for partition in ours} == partitions_by_permutations(items, sizes)
    assert len(ours) == len(set(ours)) == num_partitions(sizes)
    assert ours == list(partitions_of(items, sizes[::-1]))
    for partition in ours:
        places = [[items.index(item) for item in group] for group in partition]
        assert all(group == sorted(group) for group in places)
        assert places == sorted(places)


def test_numbers_of_partitions_are_exact_and_known():
    assert num_partitions([2, 1, 1, 1]) == 10
    assert num_partitions([]) == num_partitions([7]) == num_partitions([1] * 9) == 1
    assert num_partitions([2] * 20) == 319830986772877770815625  # 39!!, beyond any float
    bell = [sum(num_partitions(s) for s in SIZES if sum(s) == total) for total in range(7)]
    assert bell == [1, 1, 2, 5, 15, 52, 203]


# --- drawing some


@pytest.mark.parametrize("few", [10_000, 0], ids=["enumerated", "rejected"])
@pytest.mark.parametrize("num", [1, 6])
def test_draws_are_uniform_without_the_excluded(num, few, monkeypatch):
    monkeypatch.setattr("coadapt._stats.partitions._FEW", few)
    num_draws = 3000
    observed = [("e", "f"), ("c", "b"), ("a", "d")]
    generator = rng(1)
    counts = Counter()
    for _ in range(num_draws):
        drawn = random_partitions(ITEMS, [2, 2, 2], num, generator=generator, exclude=[observed])
        assert len(set(drawn)) == num
        counts.update(drawn)
    assert set(counts) < set(partitions_of(ITEMS, [2, 2, 2]))
    assert as_sets(observed) not in map(as_sets, counts)
    assert len(counts) == 14
    # Each count is binomial; without replacement the sum of squares is (M - 1) chi^2_{M-1} scaled.
    share = num / 14
    squares = sum((count - num_draws * share) ** 2 for count in counts.values())
    statistic = squares / (num_draws * share * (1 - share)) * 13 / 14
    assert stats.chi2.sf(statistic, df=13) > 1e-3


@pytest.mark.parametrize("few", [10_000, 0], ids=["few", "many"])
@pytest.mark.parametrize("num", [9, 10, 50])
def test_all_there_are_come_in_order(num, few, monkeypatch):
    monkeypatch.setattr("coadapt._stats.partitions._FEW", few)
    everything = list(partitions_of("abcde", [2, 1, 1, 1]))
    left = everything[:4] + everything[5:]
    drawn = random_partitions(
        "abcde", [1, 2, 1, 1], num, generator=rng(), exclude=[everything[4], everything[4][::-1]]
    )
    assert drawn == left
    both = random_partitions("abcde", [2, 1, 1, 1], 10, generator=rng(), exclude=[[[*"abcde"]]])
    assert both == everything  # one group of five is none of these


@pytest.mark.parametrize("num", [0, 7, 8])
def test_nearly_all_are_distinct(num):
    drawn = random_partitions("abcde", [2, 1, 1, 1], num, generator=rng(3))
    assert len(drawn) == len(set(drawn)) == num


def test_the_same_state_draws_the_same():
    items = [f"task{i}" for i in range(20)]
    draws = [random_partitions(items, [5] * 4, 20, generator=rng(seed)) for seed in (4, 4, 5)]
    assert draws[0] == draws[1] != draws[2]


def test_drawing_is_fast_among_very_many():
    items = [f"task{i}" for i in range(30)]
    start = time.perf_counter()
    drawn = random_partitions(items, [6] * 5, 1000, generator=rng())
    assert time.perf_counter() - start < 2  # some 15 ms on one core
    assert len(set(drawn)) == 1000
    assert all([len(group) for group in partition] == [6] * 5 for partition in drawn)


# --- where the observed one stands


def test_regret_by_hand():
    found = regret(0.75, {"share": 0.5, "private": 1.0})
    assert found == {"share": -0.25, "private": 0.25, "best": 0.25}
    assert regret(0.75, {"share": 0.5}) == {"share": -0.25, "best": 0.0}
    assert regret(0.75, {}) == {"best": 0.0}


@pytest.mark.parametrize("scores", [(np.nan, 0.5), (0.5, np.nan)], ids=["alternative", "chosen"])
def test_regret_against_a_failed_run_is_unknown(scores):
    alternative, score = scores
    found = regret(score, {"share": 0.6, "private": alternative})
    assert isnan(found["best"])
    assert isnan(found["private"])


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=4))
def test_regret_against_the_best_is_the_largest_and_not_below_zero(score, others):
    found = regret(score, {f"policy{i}": other for i, other in enumerate(others)})
    assert found["best"] == max(0.0, *found.values())


@pytest.mark.parametrize(
    ("observed", "null", "p_value"),
    [
        (0.9, [0.1, 0.2, 0.3], 1 / 4),
        (0.2, [0.1, 0.2, 0.3], 3 / 4),  # a tie counts against the observed
        (0.0, [0.1, 0.2, 0.3], 1.0),
        (0.9, np.arange(9) / 10, 0.1),  # five tasks in groups of 2, 1, 1, 1: no smaller p
        (0.9, [0.1, np.nan], 1 / 2),
    ],
    ids=str,
)
def test_rank_p_value_by_hand(observed, null, p_value):
    assert rank_p_value(observed, null) == p_value
    with_own = rank_p_value(observed, [observed, *null], includes_observed=True)
    assert with_own == p_value


def test_rank_p_value_of_nothing_is_nan():
    assert isnan(rank_p_value(0.5, []))
    assert isnan(rank_p_value(0.5, [np.nan]))
    assert isnan(rank_p_value(0.5, [], includes_observed=True))
    assert isnan(rank_p_value(np.nan, [0.1]))


scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=20)


@given(observed=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), null=scores)
def test_rank_p_value_lies_above_zero_and_both_forms_agree(observed, null):
    p_value = rank_p_value(observed, null)
    assert 1 / (1 + len(null)) <= p_value <= 1
    assert p_value == rank_p_value(observed, [*null, observed], includes_observed=True)
    assert rank_p_value(observed + 0.25, null) <= p_value


def test_null_z_by_hand_and_against_scipy():
    null = np.array([0.61, 0.64, 0.60, 0.66])
    theirs = stats.zmap([0.7], null, ddof=1)[0]
    assert null_z(0.7, null) == pytest.approx(theirs, rel=1e-12)
    assert null_z(0.7, [*null, np.nan]) == pytest.approx(theirs, rel=1e-12)
    assert null_z(0.0, [1.0, 3.0]) == pytest.approx(-2 / np.sqrt(2))


@pytest.mark.parametrize("null", [[], [0.5], [0.1, 0.1, 0.1], [0.5, np.nan]], ids=str)
def test_null_z_without_spread_is_nan(null):
    assert isnan(null_z(0.7, null))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"sizes must be at least 1 each, not \[2, 0\]"):
        num_partitions([2, 0])
    with pytest.raises(ValueError, match="sizes sum to 4, but there are 3 items"):
        partitions_of("abc", [2, 2])
    with pytest.raises(ValueError, match=r"items must be distinct, not \['a', 'a'\]"):
        random_partitions("aa", [1, 1], 1, generator=rng())
    with pytest.raises(ValueError, match="num must be 0 or more, not -1"):
        random_partitions("ab", [1, 1], -1, generator=rng())
    with pytest.raises(ValueError, match=r"that is no partition of \['a', 'b'\]"):
        random_partitions("ab", [1, 1], 1, generator=rng(), exclude=[[["a"], ["c"]]])
    with pytest.raises(ValueError, match="a policy called 'best'"):
        regret(0.5, {"best": 0.6})
    with pytest.raises(ValueError, match=r"null does not include the observed 0\.5"):
        rank_p_value(0.5, [0.4, 0.6], includes_observed=True)
