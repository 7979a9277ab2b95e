"""Gaussian total correlation and conditioning, against densities and regressions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from coadapt._errors import InputError
from coadapt.theory import conditional_covariance, total_correlation
from tests.reference.slow_theory import correlation_given, entropy, sampled


def random_cov(seed, d):
    root = np.random.default_rng(seed).normal(size=(d, d + 2))
    return root @ root.T


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_total_correlation_is_the_entropies_scipy_finds(seed, d):
    cov = random_cov(seed, d)
    expected = sum(entropy(cov[t : t + 1, t : t + 1]) for t in range(d)) - entropy(cov)
    assert total_correlation(cov) == pytest.approx(expected, abs=1e-10)
    assert total_correlation(cov) == pytest.approx(correlation_given(cov, range(d)), abs=1e-10)


def test_total_correlation_of_blocks_leaves_out_what_is_within():
    cov = random_cov(1, 5)
    expected = entropy(cov[:2, :2]) + entropy(cov[2:, 2:]) - entropy(cov)
    assert total_correlation(cov, sizes=[2, 3]) == pytest.approx(expected, abs=1e-12)
    assert total_correlation(cov, sizes=[5]) == pytest.approx(0, abs=1e-12)
    assert total_correlation(np.eye(3)) == 0


def test_total_correlation_is_what_draws_say():
    cov = np.array([[1.0, 0.6, 0.2], [0.6, 2.0, -0.5], [0.2, -0.5, 1.5]])
    draws = np.random.default_rng(2).multivariate_normal(np.zeros(3), cov, size=40_000)
    mean, error = sampled((1, draws), *((-1, draws[:, [t]]) for t in range(3)))
    assert total_correlation(cov) == pytest.approx(mean, abs=4 * error)
    assert error < 0.004


def test_units_do_not_matter():
    cov, scales = random_cov(3, 4), np.array([1e-9, 1.0, 1e9, 3.0])
    scaled = cov * np.outer(scales, scales)
    assert total_correlation(scaled) == pytest.approx(total_correlation(cov), rel=1e-9)


def test_conditioning_is_what_least_squares_leaves():
    generator = np.random.default_rng(4)
    draws = generator.normal(size=(500, 5)) @ generator.normal(size=(5, 5))
    known, unknown = draws[:, [3, 0]], draws[:, [1, 2, 4]]
    residual = unknown - known @ np.linalg.lstsq(known, unknown, rcond=None)[0]
    found = conditional_covariance(draws.T @ draws / 500, [3, 0])
    np.testing.assert_allclose(found, residual.T @ residual / 500, atol=1e-10)


def test_conditioning_on_nothing_and_on_all_but_a_copy():
    cov = random_cov(5, 3)
    np.testing.assert_array_equal(conditional_covariance(cov, []), (cov + cov.T) / 2)
    copied = np.array([[1.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(conditional_covariance(copied, [0]), [[0.0]], atol=1e-15)


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], "cov is singular"),
        ([[1.0, 2.0], [2.0, 1.0]], "cov is singular"),
        ([[1.0, 0.5], [0.4, 1.0]], "cov is not symmetric"),
        ([[1.0, np.nan], [np.nan, 1.0]], r"cov\[0, 1\] is nan"),
        ([[1.0, np.inf], [np.inf, 1.0]], r"cov\[0, 1\] is inf"),
        ([[1.0, 0.5]], "cov must be square"),
        ([1.0, 0.5], "cov must be a matrix"),
        ([[0.0, 0.0], [0.0, 1.0]], r"must be > 0"),
    ],
    ids=["singular", "indefinite", "asymmetric", "nan", "inf", "flat", "vector", "constant"],
)
def test_bad_covariances_are_refused(cov, message):
    with pytest.raises(InputError, match=message):
        total_correlation(cov)


def test_bad_sizes_and_indices_are_refused():
    with pytest.raises(InputError, match=r"sizes \[2, 2\] must be at least 1 each and sum to 3"):
        total_correlation(np.eye(3), sizes=[2, 2])
    with pytest.raises(InputError, match="sizes"):
        total_correlation(np.eye(3), sizes=[3, 0])
    with pytest.raises(InputError, match=r"given must be distinct indices below 2, not \[2\]"):
        conditional_covariance(np.eye(2), [2])
    with pytest.raises(InputError, match="singular"):
        conditional_covariance(np.ones((3, 3)), [0, 1])


def test_a_rotation_of_independent_variables_of_unequal_variance_couples_them():
    rotation = ortho_group.rvs(3, random_state=0)
    assert total_correlation(rotation @ rotation.T) == pytest.approx(0, abs=1e-12)
    assert total_correlation(rotation @ np.diag([1.0, 2, 3]) @ rotation.T) > 0.01
