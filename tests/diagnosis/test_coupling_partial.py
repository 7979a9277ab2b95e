"""Overlapping labels against loops and the full table; the nearest correlation matrix."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from coadapt._errors import InputError
from coadapt.diagnosis import teacher
from coadapt.diagnosis.coupling import delta_hat
from coadapt.diagnosis.teacher import delta_partial, nearest_correlation
from tests.reference.slow_coupling import coupling_of_covariance, pairwise_by_loops

FEW: dict[str, Any] = {"num_permutations": 19, "num_bootstrap": 39}


def rng(seed=0):
    return np.random.default_rng(seed)


def coupled(n, generator, sizes=(1, 2, 3)):
    factor = generator.normal(size=(n, 1))
    return [0.6 * factor + generator.normal(size=(n, k)) for k in sizes]


def with_gaps(blocks, share, generator):
    blocks = [x.copy() for x in blocks]
    for x in blocks:
        x[generator.random(len(x)) < share] = np.nan
    return blocks


# --- partial overlap


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 3)], ids=str)
def test_without_gaps_it_is_delta_hat(sizes):
    blocks = coupled(200, rng(1), sizes)
    full = delta_hat(blocks, generator=rng(), **FEW)
    partial = delta_partial(blocks, generator=rng(), **FEW)
    for name in ("raw", "value", "bias", "p_value", "pairs", "num_rows", "num_tasks"):
        np.testing.assert_allclose(getattr(partial, name), getattr(full, name), rtol=1e-9)
    # Resamples differ in the order of whitening and shrinking.
    assert (partial.low, partial.high) == pytest.approx((full.low, full.high), abs=1e-5)
    assert partial.pair_counts is not None
    assert (partial.pair_counts == 200).all()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 3)], ids=str)
def test_gaps_equal_loops_over_pairs(sizes):
    blocks = with_gaps(coupled(400, rng(2), sizes), 0.3, rng(3))
    found = delta_partial(blocks, shrinkage=1e-12, generator=rng(), **FEW)
    known = np.column_stack([~np.isnan(x[:, 0]) for x in blocks])
    shared = known.sum(axis=1) > 1
    R = pairwise_by_loops([x[shared] for x in blocks])
    assert np.linalg.eigvalsh(R).min() > 0
    assert found.raw == pytest.approx(coupling_of_covariance(R, sizes), rel=1e-8)
    counts = [[(a & b & shared).sum() for a in known.T] for b in known.T]
    assert found.pair_counts is not None
    assert found.pair_counts.tolist() == counts
    assert found.num_rows == shared.sum() < 400
    assert found.p_bartlett is None
    assert found.assumption.endswith("residuals.")


def test_a_matrix_with_gaps_is_a_list_of_its_columns():
    x = np.column_stack(with_gaps(coupled(150, rng(4), (1, 1, 1)), 0.2, rng(5)))
    matrix, columns = (delta_partial(r, generator=rng(), **FEW) for r in (x, list(x.T)))
    assert (matrix.raw, matrix.low) == (columns.raw, columns.low)


def test_gaps_leave_value_and_interval_honest():
    generator, held, values = rng(6), 0, []
    R = np.full((4, 4), 0.25) + 0.75 * np.eye(4)
    truth = -0.5 * np.log(np.linalg.det(R))
    for _ in range(20):
        x = generator.multivariate_normal(np.zeros(4), R, size=300)
        x = with_gaps(list(x.T), 0.3, generator)
        found = delta_partial(x, num_permutations=19, num_bootstrap=99, generator=generator)
        held += found.low < truth < found.high
        values.append(found.value)
        assert found.bias > 4 * 3 / (4 * 299)  # more than without gaps
    assert held >= 17
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / np.sqrt(20))


def test_independent_tasks_with_gaps_have_no_small_p():
    generator = rng(7)
    found = [
        delta_partial(
            with_gaps(list(generator.normal(size=(3, 120))), 0.2, generator),
            generator=generator,
            **FEW,
        )
        for _ in range(40)
    ]
    p_values = np.array([one.p_value for one in found])
    assert 0.35 < p_values.mean() < 0.7  # 0.525 with a standard error of 0.046
    assert np.mean([one.low < 0 < one.high for one in found]) >= 0.9


def test_rows_are_permuted_among_those_that_have_the_label(monkeypatch):
    seen = []

    def watched(z, observed, sizes):
        seen.append(z.copy())
        return pairwise(z, observed, sizes)

    pairwise = teacher._pairwise_correlations
    monkeypatch.setattr(teacher, "_pairwise_correlations", watched)
    blocks = with_gaps(coupled(200, rng(12), (1, 2, 1)), 0.2, rng(13))
    delta_partial(blocks, generator=rng(), **FEW)
    first, permuted = seen[0], seen[1:20]
    for z in permuted:
        assert (z != first).any()
        np.testing.assert_array_equal(z == 0, first == 0)
        np.testing.assert_array_equal(np.sort(z, axis=0), np.sort(first, axis=0))
        rows = {tuple(row) for row in first[:, 1:3]}
        assert {tuple(row) for row in z[:, 1:3]} == rows  # a task's columns stay together


def test_correlations_that_fit_no_distribution_are_projected_and_said_to_be():
    u = rng(8).normal(size=(3, 60))
    gap = np.full(60, np.nan)
    x = np.column_stack(  # 1 = 2 and 2 = 3, but 1 = -3, each on rows of its own
        [
            np.concatenate([u[0], gap, u[2]]),
            np.concatenate([u[0], u[1], gap]),
            np.concatenate([gap, u[1], -u[2]]),
        ]
    )
    x += 0.1 * rng(9).normal(size=x.shape)
    found = delta_partial(x, generator=rng(), **FEW)
    assert "fit no common distribution (smallest eigenvalue -0.9" in found.assumption
    assert np.isfinite([found.raw, found.low, found.high]).all()
    assert found.raw > 5


def test_refused_overlaps():
    blocks = coupled(120, rng(10), (1, 2, 1))
    few = with_gaps(blocks, 0.0, rng())
    few[0][:60], few[2][90:] = np.nan, np.nan
    assert delta_partial(few, min_pairs=30, generator=rng(), **FEW).num_rows == 120
    message = "tasks 0 and 2 share 30 rows, below 50: leave one out"
    with pytest.raises(InputError, match=message):
        delta_partial(few, generator=rng(), **FEW)
    few[2][62:] = np.nan
    with pytest.raises(InputError, match="tasks 0 and 2 share 2 rows, below 3"):
        delta_partial(few, min_pairs=0, generator=rng(), **FEW)
    half = with_gaps(blocks, 0.0, rng())
    half[1][3, 0] = np.nan
    with pytest.raises(InputError, match=re.escape("residuals[1]: a row is NaN in some columns")):
        delta_partial(half, generator=rng(), **FEW)
    level = with_gaps(blocks, 0.0, rng())
    level[0][:60], level[2][60:] = np.nan, 1.0  # not the same everywhere, but where 0 is known
    with pytest.raises(InputError, match=re.escape("residuals[2] where 0 is known: column 0 is")):
        delta_partial(level, generator=rng(), **FEW)
    with pytest.raises(InputError, match=re.escape("residuals[0][0, 0] is inf")):
        delta_partial(np.full((9, 2), np.inf), generator=rng(), **FEW)


# --- the nearest correlation matrix


@pytest.mark.parametrize(
    ("matrix", "nearest"),
    [
        ([[1, 1, 0], [1, 1, 1], [0, 1, 1]], [0.7607, 0.1573, 0.7607]),
        (
            [[2, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 2]],
            [-0.8084, 0.1916, 0.1068, -0.6562, 0.1916, -0.8084],
        ),
    ],
    ids=["3 x 3", "4 x 4"],
)
def test_nearest_of_the_published_examples(matrix, nearest):
    found = nearest_correlation(matrix)
    np.testing.assert_allclose(found[np.triu_indices(len(found), 1)], nearest, atol=5e-5)


def indefinite(size, generator):
    A = generator.uniform(-1, 1, size=(size, size))
    A = (A + A.T) / 2
    np.fill_diagonal(A, 1)
    return A


@settings(deadline=None, max_examples=30)
@given(size=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_nearest_is_a_correlation_matrix_stays_and_beats_clipping(size, seed):
    A = indefinite(size, rng(seed))
    X = nearest_correlation(A)
    np.testing.assert_array_equal(X.diagonal(), 1)
    np.testing.assert_array_equal(X, X.T)
    assert np.linalg.eigvalsh(X).min() >= -1e-14
    np.testing.assert_allclose(nearest_correlation(X), X, atol=1e-8)
    values, vectors = np.linalg.eigh(A)
    clipped = (vectors * values.clip(0)) @ vectors.T
    scale = np.sqrt(clipped.diagonal())
    clipped /= np.outer(scale, scale)
    assert np.linalg.norm(A - X) <= np.linalg.norm(A - clipped) + 1e-8
    if values.min() < -1e-3 and size > 2:
        assert np.linalg.norm(A - X) < np.linalg.norm(A - clipped)
    if values.min() >= 0:
        np.testing.assert_array_equal(X, A)


@pytest.mark.parametrize("seed", range(3))
def test_nearest_is_the_minimum_over_unit_vectors(seed):
    A = indefinite(4, rng(seed))

    def unit(flat):
        rows = flat.reshape(4, 4)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def distance(flat):
        rows = unit(flat)
        return np.sum((rows @ rows.T - A) ** 2)

    starts = rng(seed).normal(size=(3, 16))
    best = min((minimize(distance, start, method="BFGS") for start in starts), key=lambda r: r.fun)
    X = nearest_correlation(A)
    assert np.sum((X - A) ** 2) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(X, unit(best.x) @ unit(best.x).T, atol=2e-3)


def test_nearest_in_blocks_holds_the_blocks():
    A = indefinite(5, rng(11)) * 1.5
    X = nearest_correlation(A, sizes=[2, 3])
    np.testing.assert_array_equal(X[:2, :2], np.eye(2))
    np.testing.assert_array_equal(X[2:, 2:], np.eye(3))
    assert np.linalg.eigvalsh(X).min() >= -1e-14
    # With whitened blocks, semi-definite means singular values of at most 1: clip those.
    u, s, v = np.linalg.svd(A[:2, 2:], full_matrices=False)
    assert s.max() > 1
    np.testing.assert_allclose(X[:2, 2:], (u * s.clip(max=1)) @ v, atol=1e-7)


def test_nearest_refuses_what_is_not_symmetric():
    with pytest.raises(InputError, match="matrix is not symmetric"):
        nearest_correlation([[1, 0.5], [0.2, 1]])
