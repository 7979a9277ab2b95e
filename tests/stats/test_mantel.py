"""Permuting tasks against a loop over all orders; benefits against a loop over partitions."""

from fractions import Fraction
from itertools import combinations, permutations
from math import factorial, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coadapt import InputError
from coadapt._stats import mantel, pair_benefit, partitions_of

NAN = np.nan


def rng(seed=0):
    return np.random.default_rng(seed)


def random_matrix(num, seed, gaps=0):
    """Return a symmetric matrix of normal values with some pairs unknown."""
    generator = rng(seed)
    matrix = np.zeros((num, num))
    pairs = list(combinations(range(num), 2))
    for i, j in pairs:
        matrix[i, j] = matrix[j, i] = generator.normal()
    for place in generator.choice(len(pairs), size=gaps, replace=False):
        i, j = pairs[place]
        matrix[i, j] = matrix[j, i] = NAN
    return matrix


def correlation_by_loop(x, y, order, method):
    """Return the correlation of x and the reordered y over pairs, NaN if there is none."""
    known = [
        (x[i, j], y[order[i], order[j]])
        for i, j in combinations(range(len(x)), 2)
        if not isnan(x[i, j]) and not isnan(y[order[i], order[j]])
    ]
    a, b = np.array(known).reshape(-1, 2).T
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return NAN
    if method == "spearman":
        a, b = stats.rankdata(a), stats.rankdata(b)
    return float(np.corrcoef(a, b)[0, 1])


def exact_p_value(x, y, method, alternative):
    num = len(x)
    observed = correlation_by_loop(x, y, range(num), method)
    count = 0
    for order in permutations(range(num)):
        r = correlation_by_loop(x, y, order, method)
        if isnan(r):
            count += 1
        elif alternative == "greater":
            count += r >= observed - 1e-9
        else:
            count += abs(r) >= abs(observed) - 1e-9
    return observed, count / factorial(num)


# Mantel's test -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("num", "gaps"), [(3, (0, 0)), (4, (0, 0)), (4, (2, 1)), (5, (3, 2)), (5, (4, 4))], ids=str
)
def test_all_orders_are_those_of_a_loop(num, gaps, method, alternative):
    x, y = random_matrix(num, 11, gaps[0]), random_matrix(num, 12, gaps[1])
    correlation, p_value = exact_p_value(x, y, method, alternative)
    found = mantel(x, y, method=method, alternative=alternative, generator=rng())
    assert found.correlation == pytest.approx(correlation, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, abs=1e-12)
    assert found.exact
    assert found.num_permutations == factorial(num)
    num_pairs = int((~np.isnan(x + y)[np.triu_indices(num, 1)]).sum())
    assert found.num_pairs == num_pairs
    assert found.num_excluded == num * (num - 1) // 2 - num_pairs


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_ties_count_against_the_observed(method):
    """Values from a small grid: many orders give the same correlation, up to rounding."""
    x = np.round(random_matrix(5, 1)) * 0.1
    y = np.round(random_matrix(5, 2)) * 0.3 + 0.7
    correlation, p_value = exact_p_value(x, y, method, "greater")
    found = mantel(x, y, method=method, alternative="greater", generator=rng())
    assert (found.correlation, found.p_value) == pytest.approx((correlation, p_value))
    assert found.p_value * 120 == pytest.approx(round(found.p_value * 120))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["two-sided", "greater"]))
def test_three_tasks_give_sixths(seed, alternative):
    found = mantel(
        random_matrix(3, seed), random_matrix(3, seed + 1), generator=rng(), alternative=alternative
    )
    sixths = Fraction(found.p_value * 6).limit_denominator(10**6)
    assert sixths in range(1, 7)
    assert found.num_permutations == 6


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_p_values_are_uniform_where_nothing_agrees(alternative):
    """Over normal matrices p takes each of 1/24 ... 24/24 equally often."""
    num_draws = 1200
    p_values = [
        mantel(
            random_matrix(4, seed),
            random_matrix(4, seed + 10**6),
            generator=rng(),
            alternative=alternative,
        ).p_value
        for seed in range(num_draws)
    ]
    counts = np.bincount(np.round(24 * np.array(p_values)).astype(int), minlength=25)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_agreement_that_only_chance_in_a_million_gives_is_found(method):
    x = random_matrix(9, 3)
    y = x + 0.1 * random_matrix(9, 4)
    found = mantel(x, y, method=method, num_permutations=199, generator=rng())
    assert not found.exact
    assert found.num_permutations == 199
    assert found.p_value == 1 / 200
    opposed = mantel(x, -y, num_permutations=199, generator=rng(), method=method)
    assert opposed.p_value == 1 / 200
    assert opposed.correlation == pytest.approx(-found.correlation)
    one_sided = mantel(
        x, -y, num_permutations=199, generator=rng(), alternative="greater", method=method
    )
    assert one_sided.p_value == 1.0


def test_samples_come_near_the_exact_p_value():
    x = random_matrix(7, 5, gaps=4)
    y = random_matrix(7, 6, gaps=2) + 0.3 * np.nan_to_num(x)
    exact = mantel(x, y, num_permutations=5040, generator=rng())
    assert exact.exact
    assert exact.num_permutations == 5040
    sampled = mantel(x, y, num_permutations=5039, generator=rng(1))
    assert not sampled.exact
    assert sampled.correlation == exact.correlation
    error = np.sqrt(exact.p_value * (1 - exact.p_value) / 5039)
    assert 0.02 < exact.p_value < 0.98
    assert abs(sampled.p_value - exact.p_value) < 4 * error
    assert (sampled.p_value * 5040) % 1 == pytest.approx(0, abs=1e-9)


def test_six_tasks_are_exact_whatever_number_is_asked():
    found = mantel(random_matrix(6, 1), random_matrix(6, 2), num_permutations=1, generator=rng())
    assert (found.exact, found.num_permutations) == (True, 720)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(5)), st.integers(0, 1000))
def test_names_and_units_do_not_matter(order, seed):
    x, y = random_matrix(5, seed, gaps=1), random_matrix(5, seed + 1)
    order = list(order)
    again = (x[np.ix_(order, order)], 3 * y[np.ix_(order, order)] + 5)
    for method in ("pearson", "spearman"):
        found = mantel(x, y, method=method, generator=rng())
        other = mantel(*again, method=method, generator=rng())
        swapped = mantel(y, x, method=method, generator=rng())
        for result in (other, swapped):
            assert result.correlation == pytest.approx(found.correlation, abs=1e-12)
            assert result.p_value == pytest.approx(found.p_value, abs=1e-12)


def test_the_diagonal_has_no_effect_and_the_state_decides_the_orders():
    x, y = random_matrix(8, 1), random_matrix(8, 2)
    results = []
    for seed in (3, 3, 4):
        results.append(mantel(x, y, num_permutations=700, generator=rng(seed)))
        np.fill_diagonal(x, NAN)
        np.fill_diagonal(y, 1.0)
    assert results[0] == results[1] != results[2]


def test_ranks_are_those_of_the_known_pairs():
    """One outlier carries the values' correlation, and none of the ranks'."""
    x, y = random_matrix(6, 7, gaps=3), random_matrix(6, 8, gaps=3)
    x[0, 1] = x[1, 0] = y[0, 1] = y[1, 0] = 1e6
    assert mantel(x, y, generator=rng()).correlation > 0.999
    expected = correlation_by_loop(x, y, range(6), "spearman")
    found = mantel(x, y, method="spearman", generator=rng()).correlation
    assert found == pytest.approx(expected, abs=1e-12)


def test_matrices_that_cannot_be_compared_are_refused():
    x = random_matrix(4, 1)
    few = x.copy()
    few[0] = few[:, 0] = NAN
    few[1, 2] = few[2, 1] = NAN
    flat, broken = np.full((4, 4), 0.1 + 0.2), x.copy()
    broken[0, 1] = NAN
    for a, b, message in [
        (x, few, "x and y have both values for 2 pairs; a correlation takes 3"),
        (x[:2, :2], x[:2, :2], "for 1 pairs"),
        (x[:0, :0], x[:0, :0], "for 0 pairs"),
        (flat, x, "x is 0.3 for each of the 6 pairs: it has no spread"),
        (x, flat, "y is 0.3 for each of the 6 pairs"),
        (x, broken, r"y\[0, 1\] is NaN but \[1, 0\] is not"),
        (x, x[:3, :3], r"x is of shape \(4, 4\), but y of \(3, 3\)"),
        (np.triu(x), x, "x is not symmetric"),
        (x, x + np.inf, r"y\[.*\] is inf"),
        (x[0], x, "x must be a matrix"),
        (x[:2], x, "x must be square"),
    ]:
        with pytest.raises(InputError, match=message):
            mantel(a, b, generator=rng())


def test_bad_options_are_named():
    x = random_matrix(4, 1)
    with pytest.raises(InputError, match="num_permutations must be at least 1, not 0"):
        mantel(x, x, num_permutations=0, generator=rng())
    with pytest.raises(InputError, match=r"method must be pearson or spearman .* kendall"):
        mantel(x, x, method="kendall", generator=rng())  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="two-sided or greater, not pearson and less"):
        mantel(x, x, alternative="less", generator=rng())  # pyright: ignore[reportArgumentType]


# The benefit of pairs ----------------------------------------------------------------------------

ABC = [[["a", "b"], ["c"]], [["a"], ["c", "b"]], [["c", "a"], ["b"]]]


def test_benefit_by_hand():
    scores = [[0.9, 0.7, 0.2], [0.5, 0.6, 0.4], [0.6, 0.5, 0.7]]  # means .6, .5, .6
    found = pair_benefit(ABC, scores, "abc")
    expected = np.array([[NAN, 0.05, 0.05], [0.05, NAN, -0.1], [0.05, -0.1, NAN]])
    np.testing.assert_allclose(found.benefit, expected, atol=1e-15)
    np.testing.assert_array_equal(found.together, [[3, 1, 1], [1, 3, 1], [1, 1, 3]])
    np.testing.assert_array_equal(found.apart, [[0, 2, 2], [2, 0, 2], [2, 2, 0]])
    by_mean = pair_benefit(ABC, [0.6, 0.5, 0.6], "abc")
    np.testing.assert_allclose(by_mean.benefit, expected, atol=1e-15)
    own = pair_benefit(ABC, scores, "abc", local=True).benefit
    # a and b: together .8; apart .55 and .55. a and c: .65; .55, .45. b and c: .5; .45, .6.
    by_pair = [[NAN, 0.25, 0.15], [0.25, NAN, -0.025], [0.15, -0.025, NAN]]
    np.testing.assert_allclose(own, by_pair, atol=1e-15)


def benefit_by_loop(partitions, scores, names, local):
    """Return benefit, together and apart from one pair and one partition after the other."""
    num = len(names)
    benefit = np.full((num, num), NAN)
    counts = np.zeros((2, num, num), dtype=int)
    for i in range(num):
        for j in range(num):
            found: dict[bool, list[float]] = {True: [], False: []}
            for groups, row in zip(partitions, scores, strict=True):
                score = (row[i] + row[j]) / 2 if local else sum(row) / num
                if not isnan(score):
                    group = next(group for group in groups if names[i] in group)
                    found[names[j] in group].append(score)
            counts[:, i, j] = len(found[True]), len(found[False])
            if i != j and found[True] and found[False]:
                benefit[i, j] = np.mean(found[True]) - np.mean(found[False])
    return benefit, *counts


@pytest.mark.parametrize("local", [False, True], ids=["all", "local"])
@pytest.mark.parametrize("sizes", [(2, 1, 1, 1), (3, 2), (2, 2, 1)], ids=str)
def test_benefit_is_that_of_a_loop(sizes, local):
    names = ["qqp", "rte", "cola", "mrpc", "sst2"]
    generator = rng(9)
    partitions = [
        [list(generator.permutation(group)) for group in groups][::-1]
        for groups in partitions_of(names, sizes)
    ] * 2  # two seeds
    scores = generator.normal(size=(len(partitions), 5))
    scores[generator.random(scores.shape) < 0.08] = NAN
    scores[3] = NAN
    found = pair_benefit(partitions, scores, names, local=local)
    benefit, together, apart = benefit_by_loop(partitions, scores, names, local)
    np.testing.assert_allclose(found.benefit, benefit, atol=1e-12)
    np.testing.assert_array_equal(found.together, together)
    np.testing.assert_array_equal(found.apart, apart)
    np.testing.assert_array_equal(found.benefit, found.benefit.T)


def test_a_pair_never_together_or_never_apart_has_no_benefit():
    partitions = [[["a", "b"], ["c"], ["d"]], [["a", "b"], ["c", "d"]]]
    found = pair_benefit(partitions, [0.5, 0.7], "abcd")
    assert isnan(found.benefit[0, 1])  # never apart
    assert isnan(found.benefit[0, 2])  # never together
    assert found.benefit[2, 3] == pytest.approx(0.2)
    failed = pair_benefit(partitions, [0.5, NAN], "abcd")
    assert np.isnan(failed.benefit).all()
    assert failed.together[2, 3] == 0


def test_benefits_are_correlated_with_similarities_over_the_pairs_that_have_one():
    """The ten partitions of five tasks into 2, 1, 1, 1, less the one that the similarity chose."""
    names = "abcde"
    similarity = random_matrix(5, 10)
    partitions = list(partitions_of(names, [2, 1, 1, 1]))[1:]
    scores = [
        similarity[names.index(group[0]), names.index(group[1])]
        for groups in partitions
        for group in groups
        if len(group) == 2
    ]
    benefit = pair_benefit(partitions, scores, names).benefit
    found = mantel(similarity, benefit, generator=rng(), alternative="greater")
    assert found.correlation == pytest.approx(1.0)
    assert (found.num_pairs, found.num_excluded) == (9, 1)


def test_bad_partitions_and_scores_are_named():
    with pytest.raises(InputError, match=r"partitions\[1\] is .*: no partition of \['a', 'b'\]"):
        pair_benefit([[["a"], ["b"]], [["a"]]], [1, 2], "ab")
    with pytest.raises(InputError, match=r"partitions\[0\]"):
        pair_benefit([[["a", "b"], ["b"]]], [1], "ab")
    with pytest.raises(InputError, match="0 partitions of"):
        pair_benefit([], [], "ab")
    with pytest.raises(InputError, match="names must be distinct"):
        pair_benefit([[["a"], ["a"]]], [1], "aa")
    with pytest.raises(InputError, match=r"of shape \(3,\) or \(3, 3\), not \(2,\)"):
        pair_benefit(ABC, [1, 2], "abc")
    with pytest.raises(InputError, match=r"of shape \(3, 3\), by task, not \(3,\)"):
        pair_benefit(ABC, [1, 2, 3], "abc", local=True)
    with pytest.raises(InputError, match="infinite"):
        pair_benefit(ABC, [1, np.inf, 3], "abc")
