"""Overlap and effective rank of one module's blocks, against principal angles and dense sums."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from coadapt.analysis._subspace_pairs import measure


def blocks(seed, ranks, out=9, width=12):
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=(r, width)), generator.normal(size=(out, r))) for r in ranks]


def slow_cosine(X, Y):
    """The mean of squared cosines of all principal angles."""
    return np.mean(np.cos(subspace_angles(X, Y)) ** 2)


def slow_rank(matrix):
    sigma = np.linalg.svd(matrix, compute_uv=False)
    p = sigma[sigma > 1e-12 * sigma[0]] / sigma.sum()
    return np.exp(-np.sum(p * np.log(p)))


def projector(X):
    return X @ np.linalg.pinv(X)


@given(st.integers(0, 1000), st.lists(st.integers(1, 4), min_size=2, max_size=4))
@settings(deadline=None, max_examples=25)
def test_overlaps_are_those_of_principal_angles(seed, ranks):
    made = blocks(seed, ranks)
    found = measure(made, range(len(made)), None)
    pairs = list(combinations(made, 2))
    columns = [slow_cosine(t[1], u[1]) for t, u in pairs]
    rows = [slow_cosine(t[0].T, u[0].T) for t, u in pairs]
    np.testing.assert_allclose(found["columns"], columns, atol=1e-9)
    np.testing.assert_allclose(found["rows"], rows, atol=1e-9)
    assert found["effective_rank"] == pytest.approx(slow_rank(sum(B @ A for A, B in made)))


def test_shares_are_those_of_dense_projections_and_have_a_direction():
    made = blocks(3, (2, 4))
    found = measure(made, (0, 1), None)
    for t, (A, B) in enumerate(made):
        for u, (other_A, other_B) in enumerate(made):
            update = B @ A
            total = np.square(update).sum()
            column = np.square(projector(other_B) @ update).sum() / total
            row = np.square(update @ projector(other_A.T)).sum() / total
            assert found["column_share"][t, u] == pytest.approx(column)
            assert found["row_share"][t, u] == pytest.approx(row)
    assert found["column_share"][0, 1] != pytest.approx(found["column_share"][1, 0])
    np.testing.assert_allclose(np.diag(found["row_share"]), 1.0)


def test_identical_and_orthogonal_blocks():
    eye = np.eye(6)
    one, other = (eye[:2], eye[:, :2]), (eye[2:4], eye[:, 2:4])
    same, apart = measure([one, one], (0, 1), None), measure([one, other], (0, 1), None)
    for key, wanted in (("columns", 1.0), ("rows", 1.0), ("effective_rank", 2.0)):
        np.testing.assert_allclose(same[key], wanted)
    for key, wanted in (("columns", 0.0), ("rows", 0.0), ("effective_rank", 4.0)):
        np.testing.assert_allclose(apart[key], wanted, atol=1e-12)


def test_the_choice_of_factors_does_not_matter():
    made = blocks(5, (3, 2))
    turn = np.random.default_rng(0).normal(size=(3, 3))
    A, B = made[0]
    turned = [(np.linalg.inv(turn) @ A, B @ turn), made[1]]
    found, wanted = measure(turned, (0, 1), None), measure(made, (0, 1), None)
    for key in ("columns", "rows", "column_share", "row_share", "effective_rank"):
        np.testing.assert_allclose(found[key], wanted[key], atol=1e-9)


def test_a_block_counts_with_the_directions_that_it_has():
    (A, B), other = blocks(1, (2, 2))
    B[:, 1] = 2 * B[:, 0]  # rank 1
    found = measure([(A, B), other], (0, 1), None)
    np.testing.assert_allclose(found["columns"], slow_cosine(B[:, :1], other[1]))


def test_a_zero_block_has_no_overlap():
    (A, B), other = blocks(1, (2, 2))
    found = measure([(A, 0 * B), other], (0, 1), None)
    assert np.isnan(found["columns"]).all()
    assert not np.isnan(found["rows"]).any()
    assert np.isnan(found["column_share"][[0, 0, 1], [0, 1, 0]]).all()
    assert np.isnan(measure([(A, 0 * B)] * 2, (0, 1), None)["effective_rank"])


def test_what_was_added_is_the_sum_less_its_start():
    now, start = blocks(1, (2, 3)), blocks(2, (2, 3))
    dense = sum(B @ A for A, B in now) - sum(B @ A for A, B in start)
    found = measure(now, (0, 1), start)
    assert found["added_rank"] == pytest.approx(slow_rank(dense))
    assert np.isnan(measure(now, (0, 1), now)["added_rank"])


def test_blocks_that_cancel_leave_no_sum():
    (A, B), _ = blocks(1, (2, 2))
    assert np.isnan(measure([(A, B), (A, -B)], (0, 1), None)["effective_rank"])


def test_random_subspaces_have_the_reference_on_average():
    found = [measure(blocks(seed, (2, 3)), (0, 1), None)["columns"] for seed in range(400)]
    error = np.std(found) / 20
    assert abs(np.mean(found) - 3 / 9) < 4 * error
    assert error < 0.01
