"""The linear-Gaussian model against samples and against whole joint covariances."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.theory import LinearGaussian
from tests.reference.slow_theory import (
    correlation_given,
    information,
    joint_covariance,
    sample,
    sampled,
)
from tests.theory.models import equicorrelated, invertible, models, random_model


def close(value):
    return pytest.approx(value, abs=1e-10)


def parts(model):
    """Return the joint covariance of (Y, Z) and the places of both."""
    T = model.num_tasks
    return joint_covariance(model), list(range(T)), list(range(T, T + len(model.A)))


# --- the closed forms


@given(models())
@settings(deadline=None, max_examples=60)
def test_all_informations_are_those_of_the_joint_covariance(model):
    cov, y, z = parts(model)
    of_tasks = [information(cov, z, [t]) for t in y]
    assert model.task_information == close(of_tasks)
    assert model.joint_information == close(information(cov, z, y))
    assert model.total_correlation == close(correlation_given(cov, y))
    assert model.residual_coupling == close(correlation_given(cov, y, z))
    np.testing.assert_allclose(model.label_covariance, cov[: len(y), : len(y)], atol=1e-12)


@given(models())
@settings(deadline=None, max_examples=60)
def test_identity_and_bound_hold(model):
    assert abs(model.identity_gap) < 1e-10
    total = model.task_information.sum()
    explained = model.total_correlation - model.residual_coupling
    assert model.explained_dependence == explained
    assert total == pytest.approx(model.joint_information + explained, abs=1e-10)
    assert model.slack == pytest.approx(model.unused_capacity + model.residual_coupling, abs=1e-10)
    assert model.slack == pytest.approx(model.capacity + model.total_correlation - total, abs=1e-12)
    assert min(model.unused_capacity, model.residual_coupling, model.slack) > -1e-10
    assert min(model.task_information) > -1e-12


def test_informations_are_what_draws_say():
    model = random_model(3, d=3, T=3, m=2)
    x, y, z = sample(model, 60_000, np.random.default_rng(0))
    yz = np.hstack([y, z])
    labels = [y[:, [t]] for t in range(3)]
    with_z = [np.hstack([label, z]) for label in labels]
    found = [
        (model.capacity, sampled((1, np.hstack([x, z])), (-1, x), (-1, z))),
        (model.joint_information, sampled((1, yz), (-1, y), (-1, z))),
        (model.total_correlation, sampled((1, y), *((-1, label) for label in labels))),
        (model.residual_coupling, sampled((1, yz), (2, z), *((-1, both) for both in with_z))),
        *(
            (information, sampled((1, both), (-1, label), (-1, z)))
            for information, both, label in zip(model.task_information, with_z, labels, strict=True)
        ),
    ]
    for closed_form, (mean, error) in found:
        assert closed_form == pytest.approx(mean, abs=4 * error)
        assert closed_form > 10 * error  # so that a wrong factor would show


def test_capacity_is_the_sum_over_parallel_channels():
    model = LinearGaussian(np.diag([4.0, 9.0]), np.eye(2), np.ones(2), np.diag([1.0, 2.0]), 0.5)
    assert model.capacity == pytest.approx(0.5 * (np.log(1 + 4 / 0.5) + np.log(1 + 36 / 0.5)))
    assert model.signal_shares == pytest.approx([4 / 5, 9 / 10])


@given(models(), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_an_invertible_change_of_inputs_changes_nothing(model, seed):
    M = invertible(seed, len(model.cov_x))
    inverse = np.linalg.inv(M)
    moved = LinearGaussian(
        M @ model.cov_x @ M.T, inverse.T @ model.U, model.label_noise, model.A @ inverse, 1.0
    )
    model = replace(model, encoder_noise=1.0)
    assert moved.capacity == pytest.approx(model.capacity, rel=1e-6, abs=1e-6)
    assert moved.task_information == pytest.approx(model.task_information, rel=1e-6, abs=1e-6)
    assert moved.residual_coupling == pytest.approx(model.residual_coupling, rel=1e-6, abs=1e-6)


# --- limits


def test_nothing_read_leaves_everything():
    for model in (random_model(m=0), replace(random_model(), A=np.zeros((2, 4)))):
        assert model.capacity == model.joint_information == model.unused_capacity == 0
        assert model.residual_coupling == model.total_correlation
        assert (model.task_information == 0).all()


def test_one_task_has_no_redundancy():
    model = random_model(T=1)
    assert model.total_correlation == model.residual_coupling == 0
    assert model.joint_information == pytest.approx(model.task_information[0], rel=1e-12)


def test_an_encoder_without_noise_knows_all_but_the_labels_noise():
    model = equicorrelated(0.5, 3, encoder_noise=1e-20)
    assert model.residual_coupling == pytest.approx(0, abs=1e-12)
    ceiling = -0.5 * np.log(model.label_noise / np.diag(model.label_covariance))
    assert model.task_information == pytest.approx(ceiling, rel=1e-12)
    assert model.capacity == pytest.approx(1.5 * np.log(1 + 1e20))


@pytest.mark.parametrize("cosine", [0.0, 0.25, 0.81])
def test_equal_cosines_have_a_closed_form(cosine):
    model = equicorrelated(cosine, 5)
    left = 0.25 / 1.25  # of each direction's variance, after reading it with noise 0.25

    def redundancy(signal):
        eigenvalues = signal * np.array([1 - cosine] * 4 + [1 + 4 * cosine]) + 0.01
        return 0.5 * (5 * np.log(signal + 0.01) - np.log(eigenvalues).sum())

    assert model.total_correlation == pytest.approx(redundancy(1.0), abs=1e-12)
    assert model.residual_coupling == pytest.approx(redundancy(left), abs=1e-12)
    assert model.task_information == pytest.approx([0.5 * np.log(1.01 / (left + 0.01))] * 5)


# --- subsets and side information


def test_subset_keeps_order_and_the_encoder():
    model = random_model()
    part = model.subset([2, 0])
    assert part.task_information == pytest.approx(model.task_information[[2, 0]], rel=1e-12)
    cov, _, z = parts(model)
    assert part.joint_information == close(information(cov, z, [2, 0]))
    assert part.capacity == model.capacity


@given(models(), st.integers(0, 1000), st.integers(1, 2))
@settings(deadline=None, max_examples=40)
def test_side_information_conditions_every_term(model, seed, k):
    d = len(model.cov_x)
    model = replace(model, cov_x=model.cov_x + np.eye(d))
    W = np.random.default_rng(seed).normal(size=(min(k, d), d))
    cov, T, m = joint_covariance(model, extra=W), model.num_tasks, len(model.A)
    y, z, w = range(T), range(T, T + m), range(T + m, T + m + len(W))
    found = model.given(W)
    of_tasks = [information(cov, z, [t], w) for t in y]
    assert found.task_information == pytest.approx(of_tasks, abs=1e-8)
    assert found.joint_information == pytest.approx(information(cov, z, y, w), abs=1e-8)
    assert found.total_correlation == pytest.approx(correlation_given(cov, y, w), abs=1e-8)
    both = [*w, *z]
    assert found.residual_coupling == pytest.approx(correlation_given(cov, y, both), abs=1e-8)
    assert abs(found.identity_gap) < 1e-10


def test_side_information_may_be_nothing_repeated_or_all():
    model = random_model()
    assert model.given(np.zeros((0, 4))).capacity == pytest.approx(model.capacity, rel=1e-12)
    assert model.given(np.zeros((1, 4))).capacity == pytest.approx(model.capacity, rel=1e-12)
    W = np.array([[1.0, 2.0, 0.0, -1.0]])
    once, twice = model.given(W), model.given(np.vstack([W, 1e6 * W, -W]))
    np.testing.assert_allclose(once.cov_x, twice.cov_x, atol=1e-12)
    np.testing.assert_allclose(W @ once.cov_x @ W.T, [[0.0]], atol=1e-12)
    np.testing.assert_allclose(once.given(W).cov_x, once.cov_x, atol=1e-12)
    everything = model.given(np.eye(4))
    assert everything.capacity == pytest.approx(0, abs=1e-12)
    assert everything.total_correlation == pytest.approx(0, abs=1e-12)
    step_by_step = model.given(np.eye(4)[:1]).given(np.eye(4)[2:3])
    np.testing.assert_allclose(step_by_step.cov_x, model.given(np.eye(4)[[0, 2]]).cov_x, atol=1e-12)


def test_what_is_known_already_is_not_read_again_however_loud_the_encoder():
    model = LinearGaussian(np.eye(3), np.eye(3), np.ones(3), np.ones((1, 3)), 1e-12)
    assert model.given(np.ones((1, 3))).capacity == pytest.approx(0, abs=1e-9)


def test_units_of_inputs_do_not_matter():
    scales = np.array([1e-7, 1.0, 1e8, 10.0])
    model = random_model(rank_x=3)
    scaled = replace(
        model,
        cov_x=model.cov_x * np.outer(scales, scales),
        U=model.U / scales[:, None],
        A=model.A / scales,
    )
    assert scaled.capacity == pytest.approx(model.capacity, rel=1e-9)
    assert scaled.residual_coupling == pytest.approx(model.residual_coupling, rel=1e-9)
    loud = LinearGaussian(np.diag([1e20, 1.0]), np.eye(2), np.ones(2), np.eye(2), 1.0)
    assert loud.task_information[1] == pytest.approx(0.5 * np.log(2 / 1.5), rel=1e-9)


# --- the parts


def test_models_keep_read_only_copies():
    A = np.eye(4)
    model = replace(random_model(), A=A)
    A[0, 0] = 5
    assert model.A[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        model.A[0, 0] = 5
    with pytest.raises(FrozenInstanceError):
        model.encoder_noise = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert repr(model) == "LinearGaussian(d=4, tasks=3, m=4)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cov_x": np.diag([1.0, 1, 1, -1])}, "cov_x is no covariance"),
        ({"cov_x": np.ones((4, 4)) - np.eye(4)}, "cov_x is no covariance"),
        ({"cov_x": np.triu(np.ones((4, 4)))}, "cov_x is not symmetric"),
        ({"cov_x": np.full((4, 4), np.nan)}, r"cov_x\[0, 0\] is nan"),
        ({"U": np.ones((3, 3))}, r"U must be a matrix of shape 4 x any, not \(3, 3\)"),
        ({"U": np.ones((4, 0)), "label_noise": np.ones(0)}, "at least one row and one task"),
        ({"U": np.full((4, 3), np.inf)}, r"U\[0, 0\] is inf"),
        ({"label_noise": np.ones(2)}, "label_noise must be a variance for each of 3 tasks"),
        ({"label_noise": np.array([1, 0, 1])}, r"label_noise\[1\] must be above 0, not 0"),
        ({"label_noise": np.array([1, np.nan, 1])}, r"label_noise\[1\] is nan"),
        ({"A": np.ones((2, 3))}, "A must be a matrix of shape any x 4"),
        ({"A": np.ones(4)}, "A must be a matrix of shape any x 4"),
        ({"encoder_noise": 0.0}, "encoder_noise must be above 0, not 0"),
        ({"encoder_noise": np.inf}, "encoder_noise is inf"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_parts_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(random_model(), **change)


@pytest.mark.parametrize("tasks", [[], [3], [-1], [0, 0]], ids=str)
def test_bad_subsets_are_refused(tasks):
    with pytest.raises(InputError, match="tasks must be distinct indices below 3"):
        random_model().subset(tasks)


def test_bad_side_information_is_refused():
    with pytest.raises(InputError, match="W must be a matrix of shape any x 4"):
        random_model().given(np.ones((1, 3)))
