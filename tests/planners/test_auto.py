"""Advice on constructed evidence: each branch, and the numbers that it names."""

from itertools import combinations

import numpy as np
import pytest

from coadapt.planners import advise
from coadapt.planners.auto import fewest_stable
from tests.planners.toy_diagnosis import evidence_of, families

TWO = np.array([[1.0, 0.0], [0.0, 1.0]])


def pair_of(similarity):
    return np.where(TWO == 1, 1.0, similarity)


# Sharing is the default --------------------------------------------------------------------------


def test_noisy_gradients_are_not_enough():
    evidence = evidence_of(families([2, 2]), reliability=[0.1, 0.4, 0.5, 0.9], rows=30)
    advice = advise(evidence, 8)
    assert (advice.sharing, advice.clusters) == ("shared", (("a", "b", "c", "d"),))
    assert advice.reasons == (
        "the tasks' gradients have a median reliability of 0.45 (0.10 to 0.90; 0.5 or more is "
        "wanted)",
        "not enough evidence: share",
    )


def test_a_median_reliability_at_the_limit_is_enough():
    evidence = evidence_of(families([2, 2]), reliability=[0.1, 0.5, 0.5, 0.9])
    assert advise(evidence, 8).sharing == "clustered"


def test_gradients_of_unknown_reliability_are_not_enough():
    advice = advise(evidence_of(families([2, 2]), reliability=[0.9, np.nan, 0.9, 0.9]), 8)
    assert advice.sharing == "shared"
    assert "too few rows to tell" in advice.reasons[0]
    assert "nan" not in " ".join(advice.reasons)


@pytest.mark.parametrize(("rows", "sharing"), [(600, "shared"), (599, "clustered")])
def test_with_plenty_of_rows_everywhere_it_does_not_matter(rows, sharing):
    advice = advise(evidence_of(families([2, 2]), rows=[5000, rows, 700, 800]), 8)
    assert advice.sharing == sharing
    told = "every task has 600 rows or more: in our study"
    assert (told in advice.reasons[1]) == (sharing == "shared")


@pytest.mark.parametrize("num", [2, 4], ids="{} tasks".format)
def test_a_budget_of_one_is_one_adapter(num):
    advice = advise(evidence_of(families([1] * num, between=-0.5)), 1)
    assert advice.sharing == "shared"
    assert advice.reasons[-1] == "a rank budget of 1 makes one adapter: share"


# Two tasks ---------------------------------------------------------------------------------------


def test_two_tasks_that_are_alike_share():
    advice = advise(evidence_of(pair_of(0.3), noise=0.01), 8)
    assert (advice.sharing, advice.clusters) == ("shared", (("a", "b"),))
    assert advice.reasons[1:] == (
        "the two tasks' similarity is 0.30, at most 0.32",
        "nothing speaks against sharing",
    )


@pytest.mark.parametrize("similarity", [0.05, -0.4], ids=str)
def test_two_tasks_that_are_surely_unlike_do_not(similarity):
    evidence = evidence_of(pair_of(similarity), noise=0.01)
    advice = advise(evidence, 8)
    assert (advice.sharing, advice.clusters) == ("private", (("a",), ("b",)))
    # The 0.975 quantile of 100 replicates lies between the third and fourth largest.
    fourth, third = np.sort(evidence.samples[:, 0, 1])[[-4, -3]]
    told = float(advice.reasons[1].rpartition(" ")[2])
    assert round(fourth, 2) <= told <= round(third, 2)
    assert f"similarity is {similarity:.2f}, at most" in advice.reasons[1]
    assert advice.reasons[2].startswith("that is below 0.1:")


def test_two_tasks_that_may_be_alike_share():
    advice = advise(evidence_of(pair_of(0.0), noise=0.1), 8)
    assert advice.sharing == "shared"


def test_two_opposed_tasks_share_by_the_square():
    evidence = evidence_of(pair_of(-0.8), noise=0.01)
    assert advise(evidence, 8).sharing == "private"
    advice = advise(evidence, 8, distance="1-s^2")
    assert advice.sharing == "shared"
    assert "two tasks' squared similarity is 0.64, at most 0.67" in advice.reasons[1]


# Clusters ----------------------------------------------------------------------------------------


def test_clear_families_at_scarce_rows_become_clusters():
    similarity = families([2, 3], within=0.5, between=0.1)
    advice = advise(evidence_of(similarity, rows=[50, 90, 70, 60, 80]), 8)
    assert advice.sharing == "clustered"
    assert advice.clusters == (("a", "b"), ("c", "d", "e"))
    assert advice.reasons == (
        "the tasks' gradients have a median reliability of 0.90 (0.90 to 0.90; 0.5 or more is "
        "wanted)",
        "2 clusters (a, b; c, d, e): resampling draws them again with an adjusted Rand index of "
        "1.00",
        "similarity within them exceeds that between them by 0.40 on average",
        "data are scarce (50 rows in the smallest task): share within clusters",
    )


def test_the_separation_told_is_that_of_the_pairs():
    similarity = families([2, 2], within=0.5)
    similarity[0, 1] = similarity[1, 0] = 0.9
    similarity[0, 3] = similarity[3, 0] = 0.2
    label = (0, 0, 1, 1)
    pairs = list(combinations(range(4), 2))
    within = [similarity[i, j] for i, j in pairs if label[i] == label[j]]
    between = [similarity[i, j] for i, j in pairs if label[i] != label[j]]
    wanted = sum(within) / len(within) - sum(between) / len(between)
    assert f"by {wanted:.2f} on average" in advise(evidence_of(similarity), 8).reasons[2]


def test_as_many_clusters_as_there_are_families():
    # Which two of three equal families merge is noise: two clusters are not stable, three are.
    advice = advise(evidence_of(families([2, 2, 2])), 8)
    assert advice.clusters == (("a", "b"), ("c", "d"), ("e", "f"))


def test_the_fewest_of_several_stable_cuts():
    similarity = families([4, 3], within=0.4)
    similarity[:2, :2] = similarity[2:4, 2:4] = 0.8
    np.fill_diagonal(similarity, 1.0)
    # Three clusters (ab, cd, efg) are as stable as two.
    best, told = fewest_stable(evidence_of(similarity), 8)
    assert best.clusters == (("a", "b", "c", "d"), ("e", "f", "g"))
    assert "adjusted Rand index of 1.00" in told


def test_a_budget_below_the_families_limits_the_clusters():
    evidence = evidence_of(families([2, 2, 2]))
    assert fewest_stable(evidence, 3)[0].num_clusters == 3
    best, told = fewest_stable(evidence, 2)
    assert best.num_clusters == 2
    assert told.startswith("2 clusters (")
    advice = advise(evidence, 2)
    assert advice.sharing == "shared"
    assert "noise draws the clusters" in advice.reasons[-1]


def test_without_a_stable_cut_the_most_stable_is_weighed():
    evidence = evidence_of(families([1] * 5, between=0.2), noise=0.2)
    best, told = fewest_stable(evidence, 8)
    stabilities = [fewest_stable(evidence, num)[0].stability for num in (2, 3, 4)]
    assert best.stability == max(stabilities)
    assert f"index of {best.stability:.2f}" in told
    advice = advise(evidence, 8)
    assert advice.sharing == "shared"
    assert advice.reasons[-1] == "that is below 0.6: noise draws the clusters, so share"


def test_stable_clusters_that_hardly_stand_apart_are_none():
    advice = advise(evidence_of(families([2, 2], within=0.08), noise=0.005), 8)
    assert advice.sharing == "shared"
    assert advice.reasons[2:] == (
        "similarity within them exceeds that between them by 0.08 on average",
        "that is below 0.1: no clusters to speak of, so share",
    )


def test_opposed_tasks_are_close_by_the_square():
    similarity = families([2, 2], within=-0.8)
    by_square = advise(evidence_of(similarity), 8, distance="1-s^2")
    assert by_square.clusters == (("a", "b"), ("c", "d"))
    assert "exceeds that between them by 0.64 on average" in by_square.reasons[2]
    assert advise(evidence_of(similarity), 8).clusters != by_square.clusters
