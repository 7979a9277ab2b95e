"""Gradient cosines against gradients, and their redundancies against the labels'."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.theory import (
    gradient_tc,
    gradient_tc_second_order,
    natural_gradient_cosine,
    pairwise_gradient_tc,
    total_correlation,
)
from tests.theory.models import invertible, models, random_model


def has_signal(model):
    return (np.diag(model.U.T @ model.cov_x @ model.U) > 1e-6).all()


def test_cosines_are_those_of_fitted_gradients():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 4)) @ generator.normal(size=(4, 4))
    U = generator.normal(size=(4, 3))
    S = x.T @ x / 400
    start, step = generator.normal(size=4), 1e-6

    def loss(weights, t):
        return 0.5 * np.mean((x @ (U[:, t] + start) - x @ weights) ** 2)

    gradients = np.array(
        [
            [
                (loss(start + step * e, t) - loss(start - step * e, t)) / (2 * step)
                for e in np.eye(4)
            ]
            for t in range(3)
        ]
    )
    inner = gradients @ np.linalg.solve(S, gradients.T)
    norms = np.sqrt(np.diag(inner))
    found = natural_gradient_cosine(U, S)
    np.testing.assert_allclose(found, inner / np.outer(norms, norms), atol=1e-6)
    np.testing.assert_allclose(found, np.corrcoef((x @ U).T), atol=0.1)  # up to the signals' means
    signals = x @ U
    lengths = np.linalg.norm(signals, axis=0)
    np.testing.assert_allclose(found, signals.T @ signals / np.outer(lengths, lengths), atol=1e-12)


@given(models().filter(has_signal))
@settings(deadline=None, max_examples=40)
def test_it_is_the_labels_total_correlation(model):
    cosine = natural_gradient_cosine(model.U, model.cov_x)
    found = gradient_tc(cosine, model.signal_shares)
    assert found == pytest.approx(total_correlation(model.label_covariance), abs=1e-9)
    pairs = pairwise_gradient_tc(cosine, model.signal_shares)
    np.testing.assert_array_equal(pairs, pairs.T)
    assert (np.diag(pairs) == 0).all()
    for i in range(model.num_tasks):
        for j in range(i):
            expected = total_correlation(model.label_covariance[np.ix_([i, j], [i, j])])
            assert pairs[i, j] == pytest.approx(expected, abs=1e-9)


def test_cosines_do_not_depend_on_the_inputs_coordinates_or_the_tasks_units():
    model = random_model()
    M = invertible(1, 4)
    expected = natural_gradient_cosine(model.U, model.cov_x)
    moved = natural_gradient_cosine(np.linalg.inv(M).T @ model.U, M @ model.cov_x @ M.T)
    np.testing.assert_allclose(moved, expected, atol=1e-9)
    scaled = natural_gradient_cosine(model.U * [1.0, 1e-6, -50.0], model.cov_x)
    np.testing.assert_allclose(scaled, expected * np.outer([1, 1, -1], [1, 1, -1]), atol=1e-12)


def test_second_order_is_what_is_left_for_weak_relations():
    cosine = np.array([[1, 0.5, -0.3], [0.5, 1, 0.4], [-0.3, 0.4, 1]])
    errors = []
    for size in (1e-1, 1e-2):
        r2 = size * np.array([1.0, 0.8, 0.5])
        exact, leading = gradient_tc(cosine, r2), gradient_tc_second_order(cosine, r2)
        c = cosine * np.sqrt(np.outer(r2, r2))
        assert leading == pytest.approx(0.5 * (c[0, 1] ** 2 + c[0, 2] ** 2 + c[1, 2] ** 2))
        errors.append(exact - leading)
        # The third-order term: minus the product of the three, which is below 0 here.
        assert exact - leading == pytest.approx(-c[0, 1] * c[0, 2] * c[1, 2], rel=3 * size)
    assert errors[1] == pytest.approx(errors[0] * 1e-3, rel=0.3)


def test_a_pair_may_be_one_number():
    r2 = [0.5, 0.8]
    expected = -0.5 * np.log(1 - 0.36 * 0.4)
    assert gradient_tc(0.6, r2) == pytest.approx(expected)
    assert gradient_tc(-0.6, r2) == pytest.approx(expected)
    assert pairwise_gradient_tc(0.6, r2)[0, 1] == pytest.approx(expected)
    assert gradient_tc_second_order(0.6, r2) == pytest.approx(0.5 * 0.36 * 0.4)
    assert gradient_tc(1.0, [1.0, 0.0]) == 0


@given(st.floats(-1, 1), st.floats(0, 0.99), st.floats(0, 0.99))
@settings(deadline=None, max_examples=40)
def test_of_a_pair_the_second_order_is_a_lower_bound(cosine, first, second):
    exact = gradient_tc(cosine, [first, second])
    assert 0 <= gradient_tc_second_order(cosine, [first, second]) <= exact + 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_tc(1.2, [0.5, 0.5]), r"cosine must be in \[-1, 1\]"),
        (lambda: gradient_tc([[0.9, 0.1], [0.1, 0.9]], [0.5, 0.5]), "with ones on the diagonal"),
        (lambda: gradient_tc([[1, 0.1], [0.2, 1]], [0.5, 0.5]), "cosine is not symmetric"),
        (lambda: gradient_tc(np.eye(3), [0.5, 0.5]), "cosine must be a matrix of shape 2 x 2"),
        (lambda: gradient_tc(0.5, [0.5, 0.5, 0.5]), "one cosine is of a pair"),
        (lambda: gradient_tc(0.5, [0.5, 1.5]), r"r2 must be shares in \[0, 1\]"),
        (lambda: gradient_tc(0.5, [0.5, np.nan]), "r2 must be shares"),
        (lambda: gradient_tc(np.nan, [0.5, 0.5]), r"cosine\[0, 1\] is nan"),
        (lambda: gradient_tc(1.0, [1.0, 1.0]), "the labels' correlation is singular"),
        (
            lambda: gradient_tc(np.where(np.eye(3), 1, -1), [1] * 3),
            "the labels' correlation is sing",
        ),
        (lambda: pairwise_gradient_tc(-1.0, [1.0, 1.0]), "labels 0 and 1 determine each other"),
        (
            lambda: natural_gradient_cosine(np.eye(2), np.diag([1.0, 0.0])),
            "column 1 of U has no signal",
        ),
        (
            lambda: natural_gradient_cosine(np.eye(2), np.diag([1.0, -1.0])),
            "cov_x is no covariance",
        ),
        (
            lambda: natural_gradient_cosine(np.eye(3), np.eye(2)),
            "U must be a matrix of shape 2 x any",
        ),
    ],
    ids=[
        *("above-1", "diagonal", "asymmetric", "shape", "scalar", "share", "nan-share", "nan"),
        *("copies", "impossible", "copies-pair", "no-signal", "indefinite", "U-shape"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
