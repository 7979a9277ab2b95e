"""Align-LoRA's bound against laws whose distances are computed in another way, and its errors."""

from itertools import combinations
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import rel_entr
from scipy.stats import norm

from coadapt._errors import InputError
from coadapt.theory import (
    alignment_bound,
    confidence_term,
    kl_to_mean_bound,
    risk_gap,
    squared_mmd_to_mean,
)

SEEDS = st.integers(0, 2000)


def random_laws(seed, num=None, points=6):
    """Laws on a few points, some points left out of some, and a kernel between the points."""
    generator = np.random.default_rng(seed)
    num = num or int(generator.integers(1, 6))
    laws = generator.dirichlet(np.full(points, 0.5), size=num) + 1e-6
    places = generator.normal(size=(points, 2))
    kernel = np.exp(-((places[:, None] - places[None]) ** 2).sum(axis=-1) / 2)
    return laws / laws.sum(axis=1, keepdims=True), kernel


def mmd2(p, q, kernel):
    return float((p - q) @ kernel @ (p - q))


def kl(p, q):
    return float(rel_entr(p, q).sum())


def matrix(laws, distance):
    return np.array([[0.0 if p is q else distance(p, q) for q in laws] for p in laws])


# --- squared MMD


@given(SEEDS)
@settings(deadline=None, max_examples=50)
def test_squared_mmd_to_the_mean_is_that_of_the_laws(seed):
    laws, kernel = random_laws(seed)
    found = squared_mmd_to_mean(matrix(list(laws), lambda p, q: mmd2(p, q, kernel)))
    expected = [mmd2(p, laws.mean(axis=0), kernel) for p in laws]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(SEEDS)
@settings(deadline=None, max_examples=30)
def test_the_sum_is_the_pairs_with_twice_the_papers_factor(seed):
    laws, kernel = random_laws(seed, num=4)
    pairwise = matrix(list(laws), lambda p, q: mmd2(p, q, kernel))
    pairs = sum(pairwise[i, j] for i, j in combinations(range(4), 2))
    total = squared_mmd_to_mean(pairwise).sum()
    assert total == pytest.approx(pairwise.sum() / (2 * 4))  # equation (3)
    assert total / 4 == pytest.approx(pairs / 4**2)  # equation (4), corrected
    assert total / 4 > pairs / (2 * 4**2) * 1.9  # as printed


# --- KL


def test_two_gaussians_are_a_counterexample_to_the_equality():
    """Unit Gaussians at +-3: 1.379 against 9.0."""

    def integrand(x):
        p, q = norm.pdf(x, 3), norm.pdf(x, -3)
        return p * (np.log(p) - np.log((p + q) / 2))

    total = 2 * quad(integrand, -6, 12, epsabs=1e-12)[0]
    each = (3 - -3) ** 2 / 2
    pairwise = np.array([[0.0, each], [each, 0.0]])
    assert total == pytest.approx(1.379, abs=5e-4)
    assert pairwise.sum() / (2 * 2) == 9.0  # what equation (3) says it is
    bound = kl_to_mean_bound(pairwise).sum()
    assert total <= bound
    assert bound == pytest.approx(2 * log(2))
    near = np.array([[0.0, 0.1], [0.1, 0.0]])
    assert kl_to_mean_bound(near).sum() == pytest.approx(2 / 2 * 0.1)  # 2/M of the pairs' sum


@given(SEEDS)
@settings(deadline=None, max_examples=50)
def test_kl_to_the_mean_stays_below_its_bound(seed):
    laws, _ = random_laws(seed)
    pairwise, M = matrix(list(laws), kl), len(laws)
    exact = np.array([kl(p, laws.mean(axis=0)) for p in laws])
    bound = kl_to_mean_bound(pairwise)
    assert (exact <= bound + 1e-9).all()
    assert (bound <= log(M) + 1e-12).all()
    symmetric = sum((pairwise[i, j] + pairwise[j, i]) / 2 for i, j in combinations(range(M), 2))
    assert bound.sum() <= 2 / M * symmetric + 1e-9


def test_the_divergence_is_from_a_task_to_the_others():
    """The other direction is smaller here than what it would have to bound."""
    odd, others = np.array([0.9, 0.1]), np.array([1 - 1e-6, 1e-6])
    laws = [odd, *(others.copy() for _ in range(49))]
    exact = kl(odd, np.mean(laws, axis=0))
    pairwise = matrix(laws, kl)
    assert pairwise[:, 0].mean() < exact <= kl_to_mean_bound(pairwise)[0]


# --- confidence


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.floats(0.001, 0.5))
@settings(deadline=None, max_examples=50)
def test_the_mean_term_is_above_the_papers_and_below_the_smallest_tasks(sizes, delta):
    found, M = confidence_term(sizes, delta), len(sizes)
    spread = log(M / delta) / 2
    assert found <= sqrt(spread / min(sizes)) + 1e-12
    assert found >= sqrt(M * spread / sum(sizes)) - 1e-12  # Jensen: equation (5) is reversed
    if M > 1:
        assert found > sqrt(spread / sum(sizes))
    if len(set(sizes)) == 1:
        assert found == pytest.approx(sqrt(M * spread / sum(sizes)))


def test_equation_5_is_reversed_for_two_tasks_of_100_rows():
    assert confidence_term([100, 100], 0.05) > sqrt(2) * 0.99 * sqrt(log(2 / 0.05) / 2 / 200)
    assert confidence_term([100, 100], 0.05, loss_range=3) == pytest.approx(
        3 * confidence_term([100, 100], 0.05)
    )


def test_the_confidence_is_kept():
    """Of losses that are 0 or 1, where Hoeffding's inequality is nearly tight."""
    generator = np.random.default_rng(0)
    sizes, chances, delta = [8, 20, 50], np.array([0.5, 0.4, 0.6]), 0.4
    tasks = zip(sizes, chances, strict=True)
    draws = np.stack([generator.binomial(n, p, 20_000) / n for n, p in tasks])
    gap = chances.mean() - draws.mean(axis=0)
    failed = (gap > confidence_term(sizes, delta)).mean()
    assert failed <= delta
    assert (gap > confidence_term(sizes, delta) / 4).mean() > 0.05  # not idle


# --- risk gaps


@given(SEEDS)
@settings(deadline=None, max_examples=50)
def test_gaps_of_risks_stay_below_their_bounds(seed):
    laws, kernel = random_laws(seed)
    mean, generator = laws.mean(axis=0), np.random.default_rng(seed)
    coefficients = generator.normal(size=len(kernel))
    smooth = kernel @ coefficients  # of norm sqrt(a'Ka) in the kernel's space
    norm_of_it = sqrt(coefficients @ kernel @ coefficients)
    steps = generator.integers(0, 2, size=len(kernel)).astype(float)
    for p in laws:
        bound = risk_gap(mmd2(p, mean, kernel), "mmd2", loss_norm=norm_of_it)
        assert abs((p - mean) @ smooth) <= bound + 1e-12
        assert abs((p - mean) @ steps) <= risk_gap(kl(p, mean), "kl") + 1e-12


def test_a_bound_linear_in_the_distance_would_fail():
    """For laws that are near, the gap is of the order of the root."""
    eps = 1e-3
    p, mean = np.array([0.5 + eps, 0.5 - eps]), np.array([0.5, 0.5])
    gap = eps  # of the loss (1, 0)
    assert gap > 100 * kl(p, mean)
    assert gap > 100 * mmd2(p, mean, np.eye(2))
    assert gap <= risk_gap(kl(p, mean), "kl") * (1 + 1e-6)
    assert risk_gap(50.0, "kl", loss_range=2.0) == 2.0


# --- the whole


def test_the_parts_of_the_bound():
    laws, kernel = random_laws(3, num=3)
    pairwise = matrix(list(laws), lambda p, q: mmd2(p, q, kernel))
    found = alignment_bound(
        [0.1, 0.2, 0.6], pairwise, [10, 20, 30], kind="mmd2", slope=2.0, delta=0.1, loss_range=4
    )
    pairs = sum(pairwise[i, j] for i, j in combinations(range(3), 2))
    assert found.training == pytest.approx(0.3)
    assert found.discrepancy == pytest.approx(2.0 / 3**2 * pairs)
    assert found.confidence == confidence_term([10, 20, 30], 0.1, loss_range=4)
    assert found.total == pytest.approx(found.training + found.discrepancy + found.confidence)
    divergences = matrix(list(laws), kl) / 50  # below log M, where convexity decides
    found = alignment_bound(
        [0.1, 0.2, 0.6], divergences, [10, 20, 30], kind="kl", slope=2.0, delta=0.1
    )
    symmetric = sum((divergences + divergences.T)[i, j] / 2 for i, j in combinations(range(3), 2))
    assert found.discrepancy == pytest.approx(2 * 2.0 / 3**2 * symmetric)


@given(SEEDS)
@settings(deadline=None, max_examples=30)
def test_the_mean_risk_needs_no_distance_between_tasks(seed):
    """It is the risk under the mean law, so alignment tightens nothing."""
    laws, kernel = random_laws(seed)
    losses = np.random.default_rng(seed).random(len(kernel))
    assert (laws @ losses).mean() == pytest.approx(float(laws.mean(axis=0) @ losses))
    pairwise = matrix(list(laws), lambda p, q: mmd2(p, q, kernel))
    found = alignment_bound(
        laws @ losses, pairwise, [10] * len(laws), kind="mmd2", slope=1.0, delta=0.1
    )
    assert found.without_discrepancy >= (laws @ losses).mean()
    assert found.without_discrepancy <= found.total


SQUARE = [[0.0, 1.0], [1.0, 0.0]]
HOW = {"kind": "mmd2", "slope": 1.0, "delta": 0.1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_mmd_to_mean([[0.0, 1.0], [0.5, 0.0]]), "not symmetric"),
        (lambda: squared_mmd_to_mean([[0.0, -1.0], [-1.0, 0.0]]), "is -1; a distance is 0 or"),
        (
            lambda: squared_mmd_to_mean([[0.0, 1, 9], [1, 0.0, 1], [9, 1, 0.0]]),
            "no squared distances of a Hilbert",
        ),
        (lambda: squared_mmd_to_mean(np.zeros((0, 0))), "pairwise is empty"),
        (lambda: kl_to_mean_bound([[0.5, 1.0], [1.0, 0.0]]), r"pairwise\[0, 0\] is 0.5; a law is"),
        (lambda: kl_to_mean_bound([[0.0, 1.0]]), "must be square"),
        (lambda: kl_to_mean_bound([[0.0, np.inf], [1.0, 0.0]]), "is inf, not a finite number"),
        (lambda: confidence_term([], 0.1), "sizes is empty"),
        (lambda: confidence_term([10, 0], 0.1), r"sizes\[1\] must be a whole number of at least 1"),
        (lambda: confidence_term([10], 1.0), "delta must be above 0 and below 1, not 1.0"),
        (lambda: confidence_term([10], 0.1, loss_range=0), "loss_range must be above 0"),
        (lambda: risk_gap(-0.1, "kl"), "discrepancy must be 0 or more"),
        (lambda: risk_gap(0.1, "mmd"), "kind must be 'mmd2' or 'kl', not 'mmd'"),  # pyright: ignore
        (lambda: alignment_bound([0.1], SQUARE, [5, 5], **HOW), "about 1, 2 and 2 tasks"),
        (lambda: alignment_bound([0.1, np.nan], SQUARE, [5, 5], **HOW), r"risks\[0, 1\] is nan"),
        (
            lambda: alignment_bound([0.1, 0.1], SQUARE, [5, 5], **{**HOW, "slope": -1.0}),
            "slope must be 0 or more",
        ),
        (
            lambda: alignment_bound([0.1, 0.1], SQUARE, [5, 5], **{**HOW, "kind": "kld"}),
            "kind must be 'mmd2' or 'kl', not 'kld'",
        ),
    ],
    ids=[
        *("asymmetric", "negative", "no-hilbert-space", "no-tasks", "diagonal", "oblong"),
        *("infinite", "no-sizes", "no-rows", "delta", "range", "negative-gap", "kind"),
        *("counts", "nan-risk", "slope", "bound-kind"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
