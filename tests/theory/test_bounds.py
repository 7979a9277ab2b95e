"""Bounds against models that obey them, and Fano's against every joint table of a kind."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from coadapt._errors import InputError
from coadapt.theory import (
    average_bound,
    cr_bound,
    fano_error,
    linear_capacity_bound,
    log_loss_bound,
    shared_private_bound,
    subset_bounds,
)
from tests.reference.slow_theory import correlation_given, entropy, information, joint_covariance
from tests.theory.models import models, random_model

# --- Gaussian models obey them


@given(models())
@settings(deadline=None, max_examples=40)
def test_every_subset_obeys_its_bound(model):
    cov, T = joint_covariance(model), model.num_tasks
    z = range(T, T + len(model.A))
    bounds = subset_bounds(model)
    assert list(bounds) == [s for k in range(1, T + 1) for s in combinations(range(T), k)]
    for tasks, (total, bound) in bounds.items():
        assert total <= bound + 1e-9
        assert total == pytest.approx(sum(information(cov, z, [t]) for t in tasks), abs=1e-9)
        redundancy = correlation_given(cov, tasks)
        assert bound == pytest.approx(model.capacity + redundancy, abs=1e-9)


@given(models())
@settings(deadline=None, max_examples=30)
def test_average_and_linear_capacity_bounds_hold(model):
    each, T, tc = model.task_information, model.num_tasks, model.total_correlation
    bound = average_bound(model.capacity, tc, T)
    assert each.min() <= each.mean() + 1e-12
    assert each.mean() <= bound + 1e-9
    assert model.capacity >= linear_capacity_bound(max(0.0, each.min()), T, tc) - 1e-9


@given(models(), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_shared_private_bound_holds_for_both_budgets(model, seed):
    T, d = model.num_tasks, len(model.cov_x)
    rows = np.random.default_rng(seed).normal(size=(T, d))
    with_own = [replace(model, A=np.vstack([model.A, row])) for row in rows]
    total = sum(float(m.task_information[t]) for t, m in enumerate(with_own))
    tc, shared = model.total_correlation, model.capacity
    plain = [replace(model, A=row[None]).capacity for row in rows]
    on_top = [max(0.0, m.capacity - shared) for m in with_own]  # I(Z_t;X|Z_s)
    assert total <= shared_private_bound(shared, on_top, tc) + 1e-9
    assert (
        shared_private_bound(shared, on_top, tc) <= shared_private_bound(shared, plain, tc) + 1e-9
    )


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_budgets_given_the_shared_one_bound_even_where_noises_are_shared(seed, T):
    """Labels and representations are X plus noises, those of representations correlated."""
    generator = np.random.default_rng(seed)
    d, m = 3, 2 * T + 1
    reading_x, noises = generator.normal(size=(T + m, d)), generator.normal(size=(m, m))
    mixed = np.zeros((d + T + m, d + T + m))
    mixed[:d, :d] = np.eye(d)
    mixed[d:, :d] = reading_x
    mixed[d : d + T, d : d + T] = 0.3 * np.eye(T)
    mixed[d + T :, d + T :] = noises + 0.1 * np.eye(m)
    cov = mixed @ mixed.T
    x, y, shared = range(d), range(d, d + T), [d + T]
    private = [[d + T + 1 + 2 * t, d + T + 2 + 2 * t] for t in range(T)]
    total = sum(information(cov, shared + own, [t]) for t, own in zip(y, private, strict=True))
    budgets = [information(cov, own, x, shared) for own in private]
    bound = shared_private_bound(information(cov, shared, x), budgets, correlation_given(cov, y))
    assert total <= bound + 1e-6


def test_log_loss_bound_is_reached_only_without_unused_capacity():
    model = random_model()
    joint = entropy(model.label_covariance)
    best = sum(entropy(np.array([[v]])) for v in np.diag(model.residual_covariance))
    bound = log_loss_bound(joint, model.capacity, model.residual_coupling)
    assert best - bound == pytest.approx(model.unused_capacity, abs=1e-12)


def test_bounds_by_hand():
    assert cr_bound(1.5, 0.25) == 1.75
    assert average_bound(1.5, 0.25, 7) == 0.25
    assert linear_capacity_bound(0.5, 4, 0.25) == 1.75
    assert linear_capacity_bound(0.5, 4, 3.0) == 0.0
    assert shared_private_bound(1.0, [0.5, 0.25], 0.125) == 1.875
    assert shared_private_bound(1.0, [], 0.125) == 1.125
    assert log_loss_bound(-1.0, 2.0, 0.5) == -2.5


# --- Fano


def fano(p, m):
    return -(p * np.log(p) + (1 - p) * np.log1p(-p)) + p * np.log(m - 1)


@pytest.mark.parametrize("m", [2, 3, 20])
@pytest.mark.parametrize("share", [1e-9, 0.01, 0.3, 0.8, 0.999])
def test_fano_is_the_root_scipy_finds(m, share):
    entropy_ = share * np.log(m)
    root = brentq(lambda p: fano(p, m) - entropy_, 1e-300, 1 - 1 / m, xtol=1e-16)
    assert fano_error(entropy_, m) == pytest.approx(root, rel=1e-10)


@pytest.mark.parametrize("m", [2, 5])
def test_fano_at_the_ends(m):
    assert fano_error(0.0, m) == 0.0
    assert fano_error(np.log(m), m) == pytest.approx(1 - 1 / m, abs=1e-7)
    assert fano_error(np.log(m) * (1 + 1e-12), m) == 1 - 1 / m
    assert 0 < fano_error(1e-12, m) < 1e-12


@given(st.lists(st.integers(0, 20), min_size=9, max_size=9).filter(any))
@settings(deadline=None, max_examples=50)
def test_no_predictor_beats_fano(weights):
    table = np.array(weights, dtype=float).reshape(3, 3)  # rows Z, columns Y
    joint = table / table.sum()
    bayes_error = 1 - joint.max(axis=1).sum()
    per_row = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
    conditional = -(joint * np.log(np.where(per_row > 0, per_row, 1))).sum()
    assert bayes_error >= fano_error(max(0.0, conditional), 3) - 1e-7


@pytest.mark.parametrize("p", [0.02, 0.3])
def test_symmetric_noise_reaches_fano(p):
    assert fano_error(fano(p, 4), 4) == pytest.approx(p, rel=1e-9)


# --- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cr_bound(-1.0, 0.0), "capacity must be 0 or more, not -1"),
        (lambda: cr_bound(1.0, -0.1), "total_correlation must be 0 or more"),
        (lambda: cr_bound(np.nan, 0.0), "capacity is nan, not a finite number"),
        (lambda: average_bound(1.0, 0.0, 0), "num_tasks must be a whole number of at least 1"),
        (lambda: average_bound(1.0, 0.0, 1.5), "num_tasks must be a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda: linear_capacity_bound(-0.1, 2, 0.0), "information_per_task must be 0 or more"),
        (lambda: linear_capacity_bound(0.1, 2, -1.0), "total_correlation must be 0 or more"),
        (lambda: shared_private_bound(1.0, [0.1, -1], 0.0), r"private_capacities\[1\] must be 0"),
        (lambda: shared_private_bound(-1.0, [0.1], 0.0), "shared_capacity must be 0 or more"),
        (lambda: log_loss_bound(np.inf, 1.0, 0.0), "joint_entropy is inf"),
        (lambda: log_loss_bound(1.0, 1.0, -0.1), "residual_coupling must be 0 or more"),
        (lambda: fano_error(-0.1, 2), "conditional_entropy must be 0 or more"),
        (lambda: fano_error(0.7, 2), r"at most log 2 = 0\.693147 nats, not 0\.7"),
        (lambda: fano_error(0.1, 1), "num_classes must be a whole number of at least 2"),
        (lambda: subset_bounds(random_model(T=16)), "model has 16 tasks, 65535 subsets"),
    ],
    ids=[
        *("capacity", "redundancy", "nan", "no-tasks", "half-task", "information", "linear-tc"),
        *("private", "shared", "entropy", "coupling", "below-0", "too-unsure", "one-class", "16"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
