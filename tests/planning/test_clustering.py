"""Average linkage against SciPy and against exact fractions; stability against counting pairs."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from coadapt import InputError
from coadapt.planning import agglomerate, choose_num_clusters, co_clustering

GLUE = ("SST-2", "MRPC", "RTE", "QNLI", "QQP")
COSINES = ((-0.082, -0.147, -0.020, -0.168), (0.021, -0.013, 0.179), (0.016, -0.016), (0.175,))


def names_of(num):
    return [f"task{index}" for index in range(num)]


def mirrored(upper):
    """Return the symmetric matrix with a diagonal of ones and these rows above it."""
    similarity = np.eye(len(upper) + 1)
    for row, values in enumerate(upper):
        similarity[row, row + 1 :] = similarity[row + 1 :, row] = values
    return similarity


def random_similarity(num, seed, scale=1.0):
    values = np.random.default_rng(seed).uniform(-scale, scale, size=(num, num))
    return np.tril(values, -1) + np.tril(values, -1).T + np.eye(num)


def blocks(sizes, within):
    label = np.repeat(np.arange(len(sizes)), sizes)
    similarity = np.where(label[:, None] == label, within, 0.0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def replicates(similarity, num, scale, seed):
    noise = np.random.default_rng(seed).normal(scale=scale, size=(num, *similarity.shape))
    noise = np.tril(noise, -1)
    return np.clip(similarity + noise + noise.mT, -1.0, 1.0)


# The dendrogram ----------------------------------------------------------------------------------


def test_the_published_matrix_gives_the_published_clusters():
    tree = agglomerate(mirrored(COSINES), GLUE)
    assert tree.cut(5) == (("SST-2",), ("MRPC",), ("RTE",), ("QNLI",), ("QQP",))
    assert tree.cut(4) == (("SST-2",), ("MRPC", "QQP"), ("RTE",), ("QNLI",))
    assert tree.cut(3) == (("SST-2",), ("MRPC", "QNLI", "QQP"), ("RTE",))
    assert tree.cut(2) == (("SST-2",), ("MRPC", "RTE", "QNLI", "QQP"))
    assert tree.cut(1) == (GLUE,)
    heights = [0.821, (1.013 + 0.825) / 2, (0.979 + 0.984 + 1.016) / 3, 4.417 / 4]
    assert [merge.height for merge in tree.merges] == pytest.approx(heights, abs=1e-12)
    assert [round(height, 3) for height in heights] == [0.821, 0.919, 0.993, 1.104]
    assert tree.merges[1][:2] == (("MRPC", "QQP"), ("QNLI",))


def as_sets(clusters):
    return {frozenset(cluster) for cluster in clusters}


@pytest.mark.parametrize("distance", ["1-s", "1-s^2"])
@pytest.mark.parametrize("num", [2, 3, 5, 8, 13])
def test_scipy_finds_the_same_tree_where_there_are_no_ties(num, distance):
    similarity = random_similarity(num, seed=num)
    d = 1 - similarity if distance == "1-s" else 1 - similarity**2
    theirs = linkage(squareform(d, checks=False), method="average")
    tree = agglomerate(similarity, names_of(num), distance=distance)
    assert [merge.height for merge in tree.merges] == pytest.approx(theirs[:, 2].tolist())
    for num_clusters in range(1, num + 1):
        label = fcluster(theirs, num_clusters, criterion="maxclust")
        groups = {frozenset(np.flatnonzero(label == k).tolist()) for k in label}
        assert as_sets(tree.cut(num_clusters)) == {
            frozenset(f"task{index}" for index in group) for group in groups
        }


def exact_average_linkage(quarters, squared):
    """Merge by exact means over all pairs of members; ties to the first by first members."""
    clusters = [(index,) for index in range(len(quarters))]
    merges = []

    def distance(i, j):
        s = Fraction(int(quarters[i][j]), 4)
        return 1 - (s * s if squared else s)

    while len(clusters) > 1:
        best = min(
            (sum(distance(i, j) for i in a for j in b) / (len(a) * len(b)), a[0], b[0], a, b)
            for a, b in combinations(sorted(clusters), 2)
        )
        height, _, _, a, b = best
        merges.append((a, b, height))
        clusters = [c for c in clusters if c not in (a, b)] + [tuple(sorted(a + b))]
    return merges


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_ties_go_to_the_pair_whose_first_members_come_first(num, seed, spread, squared):
    values = np.random.default_rng(seed).integers(-spread, spread + 1, size=(num, num))
    quarters = np.tril(values, -1) + np.tril(values, -1).T
    names = names_of(num)
    tree = agglomerate(quarters / 4, names, distance="1-s^2" if squared else "1-s")
    expected = exact_average_linkage(quarters, squared)
    assert len(tree.merges) == len(expected)
    for merge, (left, right, height) in zip(tree.merges, expected, strict=True):
        assert merge.left == tuple(names[index] for index in left)
        assert merge.right == tuple(names[index] for index in right)
        assert merge.height == pytest.approx(float(height), abs=1e-12)


def test_a_tie_that_rounding_hides_is_a_tie():
    near, far = 0.7, np.nextafter(0.7, 0)
    similarity = mirrored(((far, 0.0, 0.0), (0.0, 0.0), (near,)))
    assert similarity[0, 1] < similarity[2, 3]
    merges = agglomerate(similarity, "abcd").merges
    assert [merge.left for merge in merges] == [("a",), ("c",), ("a", "b")]


@pytest.mark.parametrize(
    ("distance", "first"), [("1-s", ("a", "c")), ("1-s^2", ("a", "b"))], ids=str
)
def test_opposed_tasks_are_farthest_or_nearest(distance, first):
    similarity = mirrored(((-1.0, 0.5), (-0.5,)))
    merges = agglomerate(similarity, "abc", distance=distance).merges
    assert merges[0].left + merges[0].right == first
    worst = agglomerate([[1, -1], [-1, 1]], "ab", distance=distance).merges[0].height
    assert worst == (2.0 if distance == "1-s" else 0.0)


def test_one_task_and_two():
    one = agglomerate([[1.0]], ["only"])
    assert one.merges == ()
    assert one.cut(1) == (("only",),)
    two = agglomerate([[1.0, 0.25], [0.25, 1.0]], ["b", "a"])
    assert two.merges == ((("b",), ("a",), 0.75),)
    assert two.cut(1) == (("b", "a"),)
    assert two.cut(2) == (("b",), ("a",))


def test_the_diagonal_has_no_effect_and_rounding_above_1_is_no_negative_distance():
    similarity = random_similarity(5, seed=1, scale=0.9)
    similarity[0, 1] = similarity[1, 0] = 1 + 1e-9
    tree = agglomerate(similarity, "abcde")
    assert tree.merges[0].height == 0
    np.fill_diagonal(similarity, 0.0)
    assert agglomerate(similarity, "abcde") == tree


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 8), st.integers(0, 10**6))
def test_heights_never_fall_and_the_order_of_tasks_does_not_matter(num, seed):
    similarity = random_similarity(num, seed)
    names = names_of(num)
    tree = agglomerate(similarity, names)
    heights = [merge.height for merge in tree.merges]
    assert heights == sorted(heights)
    order = np.random.default_rng(seed).permutation(num)
    other = agglomerate(similarity[np.ix_(order, order)], [names[index] for index in order])
    assert [merge.height for merge in other.merges] == pytest.approx(heights)
    for num_clusters in range(1, num + 1):
        assert as_sets(other.cut(num_clusters)) == as_sets(tree.cut(num_clusters))


# Replicates --------------------------------------------------------------------------------------


def test_co_clustering_by_hand():
    similarities = np.stack(
        [mirrored(((0.9, 0.0, 0.0), (0.0, 0.0), (0.8,)))] * 3
        + [mirrored(((0.0, 0.0, 0.8), (0.9, 0.0), (0.0,)))]
    )
    found = co_clustering(similarities, "abcd", 2)
    expected = mirrored(((0.75, 0.0, 0.25), (0.25, 0.0), (0.75,)))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(co_clustering(similarities, "abcd", 4), np.eye(4))
    np.testing.assert_array_equal(co_clustering(similarities, "abcd", 1), np.ones((4, 4)))


def test_co_clustering_by_squares():
    opposed = mirrored(((-0.9, 0.1), (0.1,)))
    assert co_clustering([opposed], "abc", 2, distance="1-s^2")[0, 1] == 1
    assert co_clustering([opposed], "abc", 2)[0, 1] == 0


def adjusted_rand_by_pairs(a, b):
    """Hubert and Arabie's index from the four counts of pairs; a and b are clusters of names."""
    names = sorted(name for cluster in a for name in cluster)
    together = [
        {pair for c in clusters for pair in combinations(sorted(c), 2)} for clusters in (a, b)
    ]
    num, both = len(names) * (len(names) - 1) // 2, len(together[0] & together[1])
    expected = len(together[0]) * len(together[1]) / num
    most = (len(together[0]) + len(together[1])) / 2
    return (both - expected) / (most - expected)


@pytest.mark.parametrize("distance", ["1-s", "1-s^2"])
def test_every_candidate_carries_its_numbers(distance):
    similarity = random_similarity(6, seed=3)
    samples = replicates(similarity, 40, 0.3, seed=4)
    names = names_of(6)
    choice = choose_num_clusters(similarity, samples, names, distance=distance)
    assert [candidate.num_clusters for candidate in choice.candidates] == [2, 3, 4, 5]
    tree = agglomerate(similarity, names, distance=distance)
    trees = [agglomerate(sample, names, distance=distance) for sample in samples]
    closeness = similarity if distance == "1-s" else similarity**2
    for candidate in choice.candidates:
        clusters = tree.cut(candidate.num_clusters)
        assert candidate.clusters == clusters
        indices = [adjusted_rand_by_pairs(clusters, t.cut(len(clusters))) for t in trees]
        assert 0.0 < candidate.stability < 1.0
        assert candidate.stability == pytest.approx(np.mean(indices), abs=1e-12)
        pairs = [
            (closeness[i, j], any({names[i], names[j]} <= set(cluster) for cluster in clusters))
            for i, j in combinations(range(6), 2)
        ]
        values, together = np.array(pairs).T
        gap = values[together == 1].mean() - values[together == 0].mean()
        assert candidate.separation == pytest.approx(gap)
        assert candidate.fit == pytest.approx(np.corrcoef(values, together)[0, 1])


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 3, 1, 1, 1), (4, 4), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.01, 0.1])
def test_clear_clusters_are_found_with_and_without_noise(sizes, scale):
    """Without noise every cut is stable; the smallest K would merge clear clusters."""
    num = sum(sizes)
    similarity = blocks(sizes, 0.6)
    samples = replicates(similarity, 60, scale, seed=5)
    names = names_of(num)
    choice = choose_num_clusters(similarity, samples, names)
    ends = np.cumsum(sizes)
    expected = tuple(tuple(names[end - size : end]) for end, size in zip(ends, sizes, strict=True))
    assert choice.chosen.clusters == expected
    assert choice.chosen in choice.candidates
    assert choice.stable
    if scale == 0:
        assert {candidate.stability for candidate in choice.candidates} == {1.0}


def test_clusters_of_uneven_pairs_are_not_split_further():
    """The closest pairs alone are the most separated, but say nothing of the others."""
    similarity = blocks((3, 3, 2, 2), 0.5)
    similarity = replicates(similarity, 1, 0.1, seed=1)[0]
    samples = replicates(similarity, 60, 0.01, seed=2)
    choice = choose_num_clusters(similarity, samples, names_of(10))
    near = [candidate for candidate in choice.candidates if candidate.stability > 0.98]
    assert max(near, key=lambda candidate: candidate.separation).num_clusters > 4
    assert min(near, key=lambda candidate: candidate.num_clusters).num_clusters < 4
    assert [len(cluster) for cluster in choice.chosen.clusters] == [3, 3, 2, 2]


def test_the_most_stable_cut_wins_over_a_better_fit():
    """Two tight pairs far apart; whether the fifth task joins one or the other is noise."""
    similarity = mirrored(((0.9, 0.0, 0.0, 0.42), (0.0, 0.0, 0.42), (0.9, 0.4), (0.4,)))
    samples = replicates(similarity, 100, 0.05, seed=6)
    choice = choose_num_clusters(similarity, samples, "abcde")
    stability = {c.num_clusters: c.stability for c in choice.candidates}
    assert choice.chosen.clusters == (("a", "b"), ("c", "d"), ("e",))
    assert stability[3] == 1.0
    assert stability[2] < 0.8


def test_without_structure_no_choice_is_stable():
    null = np.eye(6)
    estimates = replicates(null, 15, 0.1, seed=7)
    stable = [
        choose_num_clusters(estimate, replicates(estimate, 30, 0.1, seed), names_of(6)).stable
        for seed, estimate in enumerate(estimates)
    ]
    assert sum(stable) <= 1  # one in two hundred of a long simulation


def test_equal_similarities_leave_two_clusters_without_fit():
    similarity = np.full((4, 4), 0.3) + 0.7 * np.eye(4)
    choice = choose_num_clusters(similarity, [similarity] * 3, "abcd")
    assert [candidate.fit for candidate in choice.candidates] == [0.0, 0.0]
    assert choice.chosen.num_clusters == 2
    assert choice.chosen.separation == pytest.approx(0, abs=1e-12)


def test_the_bound_on_stability_is_the_callers():
    similarity = random_similarity(5, seed=8)
    samples = replicates(similarity, 30, 0.4, seed=9)
    found = choose_num_clusters(similarity, samples, "abcde").chosen.stability
    for bound, stable in ((found, True), (found + 1e-9, False)):
        choice = choose_num_clusters(similarity, samples, "abcde", min_stability=bound)
        assert choice.stable is stable


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("similarity", "names", "message"),
    [
        ([[1, 0.5], [0.4, 1]], "ab", r"similarity is not symmetric"),
        ([[1, np.nan], [np.nan, 1]], "ab", r"similarity\[0, 1\] is nan"),
        ([[1, 1.01], [1.01, 1]], "ab", r"similarity must lie in \[-1, 1\], but .* is 1\.01"),
        ([[1, -1.5], [-1.5, 1]], "ab", r"an entry is 1\.5 in size"),
        ([[1, 0], [0, 1]], "abc", "one for each of the 2 tasks, at least one; found"),
        ([[1, 0], [0, 1]], "aa", r"names must be distinct.*\['a', 'a'\]"),
        (np.zeros((0, 0)), "", "at least one"),
        ([[1, 0]], "ab", "similarity must be square"),
    ],
    ids=["asymmetric", "nan", "above", "below", "names", "same", "none", "flat"],
)
def test_a_bad_similarity_is_refused(similarity, names, message):
    with pytest.raises(InputError, match=message):
        agglomerate(similarity, names)


def test_bad_arguments_are_named():
    good = np.eye(3)
    with pytest.raises(InputError, match="num_clusters must be from 1 to 3, not 0"):
        agglomerate(good, "abc").cut(0)
    with pytest.raises(InputError, match="num_clusters must be from 1 to 3, not 4"):
        co_clustering([good], "abc", 4)
    with pytest.raises(InputError, match=r"distance must be 1-s or 1-s\^2, not 'cosine'"):
        agglomerate(good, "abc", distance="cosine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"similarities must be of shape .*, not \(3, 3\)"):
        co_clustering(good, "abc", 2)
    with pytest.raises(InputError, match=r"bootstraps must .* N at least 1, not \(0, 3, 3\)"):
        choose_num_clusters(good, np.zeros((0, 3, 3)), "abc")
    with pytest.raises(InputError, match=r"bootstraps\[1\] must lie in"):
        choose_num_clusters(good, [good, 2 * good], "abc")
    with pytest.raises(InputError, match="names has 2 tasks; a choice of clusters takes at least"):
        choose_num_clusters(np.eye(2), [np.eye(2)], "ab")
