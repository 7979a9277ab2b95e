"""Residuals by hand, temperatures against a grid, and what is refused."""

import re
from typing import Any

import numpy as np
import pytest

from coadapt._errors import InputError
from coadapt.diagnosis.coupling import class_residuals, delta_hat, regression_residuals
from coadapt.diagnosis.teacher import temperature
from tests.reference.slow_coupling import coupled_classes, labels_from, log_loss, softmax

FEW: dict[str, Any] = {"num_permutations": 19, "num_bootstrap": 39}


def rng(seed=0):
    return np.random.default_rng(seed)


# --- residuals


def test_class_residuals_by_hand():
    p = [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]
    np.testing.assert_allclose(class_residuals(p, [1, 2]), [[-0.2, 0.7], [-0.1, -0.8]])
    scaled = class_residuals(p, [1, 2], pearson=True)
    np.testing.assert_allclose(scaled, [[-0.5, 0.7 / 0.21**0.5], [-1 / 3, -2.0]])


def test_pearson_residuals_of_a_calibrated_head_have_variance_one():
    generator = rng(6)
    p = softmax(3 * generator.normal(size=(20_000, 2)))
    e = class_residuals(p, labels_from(p, generator), pearson=True)
    squares = e[:, 0] ** 2
    assert squares.mean() == pytest.approx(1, abs=4 * squares.std() / np.sqrt(20_000))


def test_regression_residuals_take_columns():
    y_hat, y = np.ones((3, 2)), np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(regression_residuals(y_hat, y), y - 1)
    assert regression_residuals([1, 2], [1, 4]).tolist() == [[0], [2]]


HALF = np.full((4, 2), 0.5)


@pytest.mark.parametrize(
    ("probabilities", "labels", "pearson", "message"),
    [
        (np.eye(2)[[0, 1, 1, 0]], [0, 1, 0, 0], False, "all 0 or 1: give the softmax"),
        (HALF * 1.1, [0] * 4, False, r"probabilities[0] is [0.55 0.55]"),
        ([[0.5, 0.5], [1.5, -0.5]], [0, 0], False, "probabilities[1] is [ 1.5 -0.5]"),
        ([0.2, 0.3], [0, 0], False, "matrix of shape any x any, not (2,)"),
        ([[1.0], [1.0]], [0, 0], False, "shape (2, 1)"),
        (np.empty((0, 2)), [], False, "shape (0, 2)"),
        ([[np.nan, 1]], [0], False, "probabilities[0, 0] is nan"),
        (HALF, [0, 0, 2, 0], False, "labels[2] is 2: class ids 0 to 1"),
        (HALF, [0, -1, 0, 0], False, "labels[1] is -1"),
        (HALF, [0, 0.5, 0, 0], False, "labels[1] is 0.5"),
        (HALF, [0] * 3, False, "labels have shape (3,), not (4,)"),
        ([[0.5, 0.5], [1, 0]], [0, 0], True, "probabilities[1] is [1. 0.]: pearson=True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_probabilities_and_labels(probabilities, labels, pearson, message):
    with pytest.raises(InputError, match=re.escape(message)):
        class_residuals(probabilities, labels, pearson=pearson)


X = rng().normal(size=(9, 3))


@pytest.mark.parametrize(
    ("residuals", "options", "message"),
    [
        (X[:, :1], {}, "residuals: 1 task"),
        ([], {}, "residuals: 0 task"),
        (X[:3], {}, "3 rows and 3 columns: at least 4 rows"),
        ([X[:, 0], X[:8, 1]], {}, "[9, 8] rows: give the same rows"),
        (X * [1, 0, 1], {}, "residuals[1]: column 0 is the same in all rows"),
        (X * [1, 1, 0] + 0.1, {}, "residuals[2]: column 0 is the same"),
        ([X[:, :1], X[:, [1, 1]]], {}, "residuals[1]: a column depends on the others"),
        ([X[:, 0], np.where(X[:, 1] > 1, np.nan, X[:, 1])], {}, "is nan, not a finite number"),
        (X, {"shrinkage": 0}, "shrinkage must lie in [1e-12, 1], not 0"),
        (X, {"shrinkage": 1.1}, "not 1.1"),
        (X, {"num_permutations": 18}, "num_permutations must be at least 19, not 18"),
        (X, {"level": 1.0}, "level must lie between 0 and 1, not 1.0"),
        (X, {"num_bootstrap": 38}, "num_bootstrap is 38"),
        (X, {"num_bootstrap": 198, "level": 0.99}, "num_bootstrap is 198"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_residuals_and_options(residuals, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        delta_hat(residuals, **{**FEW, **options}, generator=rng())


def test_all_classes_are_refused_and_the_least_that_will_do_does():
    p, y = next(coupled_classes(100, 0.0, rng()))
    with pytest.raises(InputError, match="drop one, as one class is"):
        delta_hat([np.eye(3)[y] - p] * 2, generator=rng())
    assert delta_hat(X[:4], num_permutations=19, num_bootstrap=39, generator=rng()).raw > 0
    assert delta_hat(X, num_bootstrap=199, level=0.99, generator=rng()).num_rows == 9


def test_refused_regression_residuals():
    with pytest.raises(InputError, match=re.escape("shape (2, 1) and labels (3, 1)")):
        regression_residuals([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match=re.escape("labels[1, 0] is nan")):
        regression_residuals([1, 2], [1, np.nan])


# --- temperature


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0], ids=str)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_temperature_is_the_best_of_a_grid_and_near_the_true_one(num_classes, sharpness):
    generator = rng(8)
    z = 2 * generator.normal(size=(1000, num_classes))
    y = labels_from(softmax(z), generator)
    found = temperature(sharpness * z, y)
    grid = found * np.exp(np.linspace(-0.1, 0.1, 21))
    losses = [log_loss(sharpness * z, y, tau) for tau in grid]
    assert int(np.argmin(losses)) == 10
    assert losses[9] == pytest.approx(losses[11], abs=1e-5)  # level at the bottom
    assert found == pytest.approx(sharpness, rel=0.15)
    assert temperature(10 * z, y) == pytest.approx(10 * temperature(z, y), rel=1e-5)


def test_temperature_of_a_binary_logit_with_a_zero_beside_it():
    z = np.where(np.arange(100) < 90, 4.0, -4.0)  # surer than 9 of 10
    y = np.ones(100, dtype=int)
    found = temperature(np.column_stack([np.zeros(100), z]), y)
    assert 1 / (1 + np.exp(-4 / found)) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e6], ids=["small", "huge"])
def test_temperature_stops_at_the_bounds(size):
    y = np.arange(20) % 2
    right = size * np.eye(2)[y]
    assert temperature(right, y) == pytest.approx(0.05)
    assert temperature(right, y, bounds=(0.5, 2)) == pytest.approx(0.5)
    assert temperature(-right, y) == pytest.approx(20)


def test_temperature_takes_away_the_coupling_of_a_shared_miscalibration():
    generator = rng(9)
    z = np.column_stack([np.zeros(4000), 2 * generator.normal(size=4000)])
    labels = [labels_from(softmax(z), generator) for _ in range(3)]  # independent given z
    fit, test = slice(2000), slice(2000, None)
    raw = [class_residuals(softmax(4 * z[test]), y[test]) for y in labels]
    sure = delta_hat(raw, num_permutations=99, num_bootstrap=99, generator=rng())
    assert sure.low > 0.01
    assert sure.p_value == 0.01
    taus = [temperature(4 * z[fit], y[fit]) for y in labels]
    assert taus == pytest.approx([4, 4, 4], rel=0.2)
    mended = [
        class_residuals(softmax(4 * z[test] / tau), y[test])
        for tau, y in zip(taus, labels, strict=True)
    ]
    calibrated = delta_hat(mended, num_permutations=99, num_bootstrap=99, generator=rng())
    assert calibrated.low < 0 < calibrated.high
    assert calibrated.p_value > 0.05
    assert abs(calibrated.value) < 0.1 * sure.value


@pytest.mark.parametrize(
    ("logits", "labels", "bounds", "message"),
    [
        (np.ones((3, 2)), [0, 1, 0], (0.05, 20), "logits (3, 2) are equal in each row"),
        (np.ones((3, 1)), [0, 0, 0], (0.05, 20), "logits (3, 1) are equal in each row"),
        (np.empty((0, 2)), [], (0.05, 20), "logits (0, 2) are equal in each row"),
        (np.eye(2), [0, 2], (0.05, 20), "labels[1] is 2"),
        (np.eye(2), [0], (0.05, 20), "labels have shape (1,), not (2,)"),
        (np.eye(2), [0, 1], (0, 20), "bounds must be 0 < low < high, not (0, 20)"),
        (np.eye(2), [0, 1], (2, 1), "bounds must be 0 < low < high"),
        ([[np.inf, 0]], [0], (1, 2), "logits[0, 0] is inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_logits(logits, labels, bounds, message):
    with pytest.raises(InputError, match=re.escape(message)):
        temperature(logits, labels, bounds=bounds)
