"""Heads against SciPy's minimiser and autograd; folds and chunks by counting."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from coadapt._errors import InputError
from coadapt.diagnosis.heads import (
    Head,
    chunks_of,
    crossfit_gradients,
    fit_head,
    folds_of,
    pool_gradients,
)
from tests.small import TASKS

TWO, THREE, VALUE = TASKS
NUM_ROWS, SIZE = 60, 5


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def features():
    return rng().normal(size=(NUM_ROWS, SIZE)) * [1, 2, 0.5, 1, 3] + [0, 1, -2, 0, 10]


def labels_of(task, features):
    """Labels that the features tell something about."""
    x = features @ [1, -0.5, 0, 2, 0.3] + rng(1).normal(size=len(features))
    if task.kind == "regression":
        return x
    return np.digitize(x, np.quantile(x, np.arange(1, task.num_outputs) / task.num_outputs)) * 1.0


def objective(head_of, scaled, labels, task):
    """Return the docstring's formula as a function of W and b in one vector."""

    def value(flat):
        weight, bias = flat[: head_of * SIZE].reshape(head_of, SIZE), flat[head_of * SIZE :]
        outputs = scaled @ weight.T + bias
        if task.kind == "regression":
            losses = (outputs[:, 0] - labels) ** 2 / 2
        else:
            losses = -log_softmax(outputs, axis=1)[np.arange(len(labels)), labels.astype(int)]
        penalised = weight[1] - weight[0] if head_of == 2 else weight
        return losses.mean() + 5.0 / 2 * (penalised**2).sum()

    return value


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_head_minimises_the_penalised_loss(task, features):
    labels = labels_of(task, features)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    start = np.zeros(task.num_outputs * (SIZE + 1))
    value = objective(task.num_outputs, scaled, labels, task)
    best = minimize(value, start, method="BFGS", options={"gtol": 1e-7}).x
    weight, bias = best[: -task.num_outputs].reshape(-1, SIZE), best[-task.num_outputs :]
    head = fit_head(task, features, labels)
    expected = scaled @ weight.T + bias
    found = head.outputs(features)
    if task.kind != "regression":  # a constant added to all classes changes nothing
        expected, found = (x - x.mean(axis=1, keepdims=True) for x in (expected, found))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(head.weight * features.std(axis=0), weight, atol=1e-4)


def torch_gradient(head, features, targets):
    """Return the gradient by autograd of the rows' summed loss, each with its own features."""
    x = torch.tensor(features, requires_grad=True)
    outputs = x @ torch.tensor(head.weight).T + torch.tensor(head.bias)
    if head.regression:
        loss = torch.nn.functional.mse_loss(outputs[:, 0], torch.tensor(targets), reduction="sum")
        loss = loss / 2
    else:
        y = torch.tensor(targets)
        y = y.long() if y.ndim == 1 else y
        loss = torch.nn.functional.cross_entropy(outputs, y, reduction="sum")
    loss.backward()
    assert x.grad is not None
    return x.grad.numpy()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_gradient_is_autograds(task, features):
    labels = labels_of(task, features)
    head = fit_head(task, features, labels)
    found = head.gradient(features, labels)
    np.testing.assert_allclose(found, torch_gradient(head, features, labels), atol=1e-12)
    assert np.abs(found).max() > 1e-3


def test_gradient_of_soft_targets_is_autograds(features):
    head = fit_head(THREE, features, labels_of(THREE, features))
    soft = rng(2).dirichlet([1, 1, 1], size=NUM_ROWS)
    found = head.gradient(features, soft)
    np.testing.assert_allclose(found, torch_gradient(head, features, soft), atol=1e-12)
    hard = np.eye(3)[[0, 2, 1] * 20]
    indices = np.array([0.0, 2.0, 1.0] * 20)
    np.testing.assert_array_equal(head.gradient(features, hard), head.gradient(features, indices))


def test_probabilities_of_large_scores_do_not_overflow():
    head = Head(weight=np.array([[1e4], [-1e4]]), bias=np.zeros(2), regression=False)
    np.testing.assert_array_equal(head.probabilities(np.array([[1.0], [-1.0]])), np.eye(2))


# --- what recoding changes


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1)], ids=str)
def test_recoding_classes_changes_no_gradient(order, features):
    task = TWO if len(order) == 2 else THREE
    labels = labels_of(task, features)
    folds = folds_of(task, labels, 2, rng())
    recoded = np.array(order, dtype=float)[labels.astype(int)]
    expected = crossfit_gradients(task, features, labels, folds)
    found = crossfit_gradients(task, features, recoded, folds)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_shift_and_scale_of_values_keep_the_gradients_direction(features):
    labels = labels_of(VALUE, features)
    folds = folds_of(VALUE, labels, 2, rng())
    expected = crossfit_gradients(VALUE, features, labels, folds)
    found = crossfit_gradients(VALUE, features, 100 - 20 * labels, folds)
    np.testing.assert_allclose(found, 20**2 * expected, rtol=1e-6, atol=1e-9)


def test_scale_and_shift_of_features_change_no_prediction(features):
    labels = labels_of(THREE, features)
    head = fit_head(THREE, features, labels)
    moved = features * [1e-3, 1, 10, 100, 1] - 3
    other = fit_head(THREE, moved, labels)
    np.testing.assert_allclose(other.probabilities(moved), head.probabilities(features), rtol=1e-6)


def test_constant_features_take_no_part(features):
    """0.1 is no binary fraction: its standard deviation over the rows is rounding, but not 0."""
    constant = np.column_stack([features, np.full(NUM_ROWS, 0.1), np.full(NUM_ROWS, 0.123456789)])
    assert 0 < constant[:, -2:].std(axis=0).min() < 1e-15
    for task in TASKS:
        labels = labels_of(task, features)
        head, without = fit_head(task, constant, labels), fit_head(task, features, labels)
        np.testing.assert_allclose(head.weight[:, -2:], 0.0, atol=1e-12)
        np.testing.assert_allclose(head.outputs(constant), without.outputs(features), atol=1e-8)


# --- cross-fitting


def test_a_class_that_a_fold_lacks_has_no_part_in_its_head(features):
    labels = labels_of(TWO, features)
    labels[7] = 2.0
    folds = np.arange(NUM_ROWS) % 2
    head = fit_head(THREE, features[folds == 0], labels[folds == 0])  # row 7 is in fold 1
    assert np.isneginf(head.bias[2])
    assert (head.weight[2] == 0).all()
    np.testing.assert_array_equal(head.probabilities(features)[:, 2], 0.0)
    two = fit_head(TWO, features[folds == 0], labels[folds == 0])
    np.testing.assert_allclose(head.probabilities(features)[:, :2], two.probabilities(features))
    found = crossfit_gradients(THREE, features, labels, folds)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[7], two.probabilities(features)[7] @ two.weight)


def test_each_row_is_judged_by_a_head_fitted_without_it(features):
    labels = labels_of(TWO, features)
    folds = folds_of(TWO, labels, 3, rng())
    found = crossfit_gradients(TWO, features, labels, folds)
    for fold in range(3):
        inside = folds == fold
        head = fit_head(TWO, features[~inside], labels[~inside])
        expected = torch_gradient(head, features[inside], labels[inside])
        np.testing.assert_allclose(found[inside], expected, atol=1e-12)
    changed = labels.copy()
    changed[0] = 1 - changed[0]
    moved = crossfit_gradients(TWO, features, changed, folds)
    same = (moved == found).all(axis=1)
    assert same.sum() == (folds == folds[0]).sum() - 1  # its fold, but for the row itself


# --- folds and chunks


label_lists = st.lists(st.integers(0, 3), min_size=24, max_size=90).filter(
    lambda labels: sum(count >= 2 for count in Counter(labels).values()) >= 2
)


@given(labels=label_lists, num_folds=st.integers(2, 3), num_chunks=st.integers(4, 40))
@settings(deadline=None, max_examples=50)
def test_folds_and_chunks_spread_rows_and_labels(labels, num_folds, num_chunks):
    values = np.array(labels, dtype=float)
    folds = folds_of(THREE, values, num_folds, rng(1))
    assert set(folds) == set(range(num_folds))
    assert_spread(folds, num_folds)
    for label in set(labels):
        assert_spread(folds[values == label], num_folds)
    chunks = chunks_of(values, folds, num_chunks, rng(2))
    assert set(chunks) == set(range(chunks.max() + 1))
    assert chunks.max() + 1 <= num_chunks
    for chunk in set(chunks):
        assert len(set(folds[chunks == chunk])) == 1
        assert (chunks == chunk).sum() >= 4
    for fold in range(num_folds):
        inside = chunks[folds == fold] - chunks[folds == fold].min()
        assert_spread(inside, inside.max() + 1)
        for label in set(labels):
            assert_spread(inside[values[folds == fold] == label], inside.max() + 1)


def assert_spread(groups, num):
    counts = np.bincount(groups, minlength=num)
    assert counts.max() - counts.min() <= 1


def test_values_are_spread_there_and_back():
    labels = rng().normal(size=64)
    folds = folds_of(VALUE, labels, 2, rng(1))
    ranked = np.argsort(labels)
    np.testing.assert_array_equal(folds[ranked], [0, 1, 1, 0] * 16)
    chunks = chunks_of(labels, folds, 8, rng(2), ordered=True)
    for fold in range(2):
        inside = ranked[folds[ranked] == fold]
        expected = np.array([0, 1, 2, 3, 3, 2, 1, 0] * 4) + 4 * fold
        np.testing.assert_array_equal(chunks[inside], expected)
    means = [labels[chunks == chunk].mean() for chunk in range(8)]
    assert np.std(means) < 0.25 * labels.std() / 8**0.5  # what random chunks of 8 rows have


def test_few_chunks_still_lie_inside_folds():
    folds = np.arange(40) % 5
    assert chunks_of(np.zeros(40), folds, 4, rng()).max() + 1 == 5
    assert chunks_of(np.zeros(12), np.zeros(12, np.int64), 40, rng()).max() + 1 == 3
    assert chunks_of(np.zeros(3), np.zeros(3, np.int64), 40, rng()).max() + 1 == 1


def test_folds_and_chunks_are_drawn():
    labels = (np.arange(60) % 3).astype(float)
    first, same, other = (folds_of(THREE, labels, 2, rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    chunks = [chunks_of(labels, first, 8, rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(chunks[0], chunks[1])
    assert (chunks[0] != chunks[2]).any()


# --- a teacher in the place of labels


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_pool_gradients_follow_a_teachers_labels(task, features):
    labels = labels_of(task, features)
    pool = features + 0.1 * rng(3).normal(size=features.shape)
    found = pool_gradients(task, features, labels, pool)
    head = fit_head(task, features, labels)
    # The ridge by its formula: K (K + 1)^-1 (y - mean) + mean.
    distances = np.linalg.norm(features[:, None] - features, axis=2)
    width = np.median(distances[np.triu_indices(NUM_ROWS, 1)])
    kernel = np.exp(-(distances**2) / (2 * width**2))
    between = np.linalg.norm(pool[:, None] - features, axis=2)
    y = labels[:, None] if task is VALUE else np.eye(task.num_outputs)[labels.astype(int)]
    solved = np.linalg.solve(kernel + np.eye(NUM_ROWS), y - y.mean(axis=0))
    told = np.exp(-(between**2) / (2 * width**2)) @ solved + y.mean(axis=0)
    if task is VALUE:
        expected = torch_gradient(head, pool, told[:, 0])
    else:
        told = np.maximum(told, 0)
        expected = torch_gradient(head, pool, told / told.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_pool_of_far_rows_gets_the_labels_shares(features):
    labels = labels_of(TWO, features)
    labels[:20] = 1.0
    far = np.full((1, SIZE), 1e3)
    head = fit_head(TWO, features, labels)
    shares = np.array([[(labels == 0).mean(), (labels == 1).mean()]])
    found = pool_gradients(TWO, features, labels, far)
    np.testing.assert_allclose(found, torch_gradient(head, far, shares), atol=1e-12)


def test_a_pool_needs_rows_that_differ(features):
    same = np.repeat(features[:2], [50, 10], axis=0)
    with pytest.raises(InputError, match="task 'two': most of its 60 rows are alike to the model"):
        pool_gradients(TWO, same, (np.arange(60) % 2).astype(float), features)


# --- refusals


def test_too_few_rows_say_how_many_are_needed():
    for num_folds, needed in ((2, 16), (3, 24)):
        labels = (np.arange(needed) % 2).astype(float)
        assert len(folds_of(TWO, labels, num_folds, rng())) == needed
        message = f"task 'two' has {needed - 1} training rows.*it needs {needed} at least"
        with pytest.raises(InputError, match=message):
            folds_of(TWO, labels[1:], num_folds, rng())


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1] * 20, "20 training rows hold 1 classes, of which 1 with two rows or more"),
        ([1] * 19 + [0], "20 training rows hold 2 classes, of which 1 with two rows or more"),
    ],
    ids=["one", "one and a row"],
)
def test_one_class_is_refused(labels, told):
    with pytest.raises(InputError, match=f"task 'two': its {told}; .* needs two such classes"):
        folds_of(TWO, np.array(labels, dtype=float), 2, rng())


@pytest.mark.parametrize(("task", "what"), [(TWO, "classes"), (VALUE, "values")], ids=str)
def test_constant_labels_are_refused(task, what, features):
    with pytest.raises(InputError, match=f"all 60 rows .* same label; give rows of two {what}"):
        fit_head(task, features, np.full(NUM_ROWS, 1.0))
