"""What Khan, "Capacity and redundancy trade-offs in multi-task learning", claims and is not so.

One counterexample a claim, with its numbers, each from the package's own functions; those are
tested against other ways of computing in the files beside this one.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from coadapt.theory import (
    LinearGaussian,
    average_bound,
    clustering_gap,
    contingency_table,
    cr_bound,
    fano_error,
    gradient_tc,
    natural_gradient_cosine,
    pairwise_gradient_tc,
    rank_power_bound,
    shared_private_bound,
    spectral_bound,
    total_correlation_counts,
    water_filling,
)
from tests.reference.slow_theory import information
from tests.theory.models import equicorrelated

SUM_OF_BOTH = LinearGaussian(np.eye(2), np.eye(2), np.full(2, 0.01), np.ones((1, 2)), 0.01)


# --- lemma 3.1: I(Z;Y) <= sum_t I(Z;Y_t)


def test_the_joint_information_may_exceed_the_sum():
    model = SUM_OF_BOTH  # two independent labels, and a representation of their sum
    assert model.total_correlation == 0
    assert model.residual_coupling == pytest.approx(1.43, abs=0.005)
    assert model.explained_dependence == -model.residual_coupling
    assert model.joint_information == pytest.approx(2.11, abs=0.005)
    assert model.task_information.sum() == pytest.approx(0.68, abs=0.005)


def test_of_an_exclusive_or_each_label_alone_tells_nothing():
    rows = np.array([(a, b, a ^ b) for a, b in product((0, 1), repeat=2)] * 10)  # (Y_1, Y_2, Z)

    def total_correlation(*columns):
        return total_correlation_counts(contingency_table(rows[:, columns])).value

    alone = total_correlation(2, 0) + total_correlation(2, 1)  # I(Z;Y_1) + I(Z;Y_2)
    assert alone == pytest.approx(0, abs=1e-15)
    assert total_correlation(0, 1) == pytest.approx(0, abs=1e-15)
    # I(Z;Y) = TC(Z,Y_1,Y_2) - TC(Y_1,Y_2)
    assert total_correlation(0, 1, 2) - total_correlation(0, 1) == pytest.approx(np.log(2))


# --- section 5: TC(.|.) is monotone in what is known, so Delta_sp <= Delta_s


def test_private_features_may_raise_residual_coupling():
    shared = LinearGaussian(np.eye(3), np.eye(3)[:, :2], np.full(2, 0.01), np.eye(3)[2:], 0.01)
    with_private = replace(shared, A=np.vstack([shared.A, [[1.0, 1.0, 0.0]]]))
    assert shared.residual_coupling == 0
    assert with_private.residual_coupling == pytest.approx(1.43, abs=0.005)


def test_side_information_may_raise_redundancy():
    assert SUM_OF_BOTH.total_correlation == 0
    assert SUM_OF_BOTH.given(np.ones((1, 2))).total_correlation > 1.4


# --- section 8.1: the slack is the residual coupling, and that falls as the rank grows


def test_slack_is_not_residual_coupling_alone():
    model = equicorrelated(0.0, 5)  # an encoder that spans five unrelated tasks
    assert model.residual_coupling == pytest.approx(0, abs=1e-12)
    assert model.slack == pytest.approx(2.5 * np.log(5 * 0.21 / 1.01))  # 0.097
    assert model.slack == pytest.approx(model.unused_capacity)
    missing = replace(model, A=np.eye(20)[5:7])  # and one that reads none of them
    assert missing.task_information.sum() == 0
    assert missing.slack == pytest.approx(np.log(5))
    assert missing.unused_capacity == pytest.approx(np.log(5))


def test_residual_coupling_may_rise_with_rank():
    model = replace(SUM_OF_BOTH, A=np.zeros((0, 2)))
    rows = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
    by_rank = [replace(model, A=rows[:r]).residual_coupling for r in range(3)]
    assert by_rank == pytest.approx([0.0, 1.29, 0.0], abs=0.005)


@pytest.mark.parametrize(
    ("cosine", "residual", "redundancy"), [(0, 0.23, 0.25), (0.25, 0.59, 0.64), (0.81, 2.11, 2.37)]
)
def test_spanning_the_tasks_leaves_most_of_their_coupling(cosine, residual, redundancy):
    """The paper's own setting; the numbers given are those of one draw of task directions."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(40):
        common, *own = unit(generator.normal(size=(6, 20)))
        U = unit(np.sqrt(cosine) * common + np.sqrt(1 - cosine) * np.array(own)).T
        spanning = np.linalg.qr(U)[0].T
        model = LinearGaussian(np.eye(20), U, np.full(5, 0.01), spanning, 0.25)
        found.append((model.residual_coupling, model.total_correlation))
    mean, deviation = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
    assert (np.abs([residual, redundancy] - mean) < 2.5 * deviation).all()
    ratio = np.divide(*np.transpose(found))
    assert ratio.min() > 0.8
    assert residual / redundancy == pytest.approx(ratio.mean(), abs=3 * ratio.std(ddof=1))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_residual_coupling_vanishes_only_where_unused_capacity_grows():
    # Labels stay coupled by what the encoder leaves open, unless its noise is far below theirs.
    models = [equicorrelated(0.81, 5, encoder_noise=noise) for noise in (1e-1, 1e-3, 1e-5, 1e-7)]
    residual = [model.residual_coupling for model in models]
    unused = [model.unused_capacity for model in models]
    assert residual == sorted(residual, reverse=True)
    assert residual[0] > 1.8
    assert residual[-1] < 1e-6
    assert unused == sorted(unused)
    assert unused[-1] - unused[-2] == pytest.approx(2.5 * np.log(100), abs=0.01)  # for ever


# --- proposition S2.1: some encoder comes as near to the bound as one likes


@pytest.mark.parametrize(("T", "least"), [(2, 0.344), (20, 0.487)])
def test_no_encoder_comes_near_the_bound_for_equal_tasks(T, least):
    def slack(log_gain):
        A = np.array([[np.exp(log_gain), 0.0]])
        U = np.vstack([np.ones(T), np.zeros(T)])
        return LinearGaussian(np.eye(2), U, np.full(T, 0.01), A, 1.0).slack

    found: Any = minimize_scalar(slack, bounds=(-5, 10), method="bounded", options={"xatol": 1e-9})
    # The slack is TC - 1/2 log v + T/2 log((v + n) / (1 + n)), v being what Z leaves of the signal;
    # it is least at v = n / (T - 1).
    n = 0.01
    v = n / (T - 1)
    redundancy = 0.5 * (T * np.log(1 + n) - np.log(n ** (T - 1) * (T + n)))
    by_hand = redundancy - 0.5 * np.log(v) + T / 2 * np.log((v + n) / (1 + n))
    assert found.fun == pytest.approx(by_hand, abs=1e-10)
    assert found.fun == pytest.approx(least, abs=5e-4)
    assert 1 / (1 + np.exp(2 * found.x)) == pytest.approx(v, rel=1e-3)


# --- theorem S3.2: budgets I(Z_t;X) will do


def test_private_budgets_without_the_shared_representation_do_not_bound():
    # Z_s is noise N, Z_1 is X + N + a little: each tells next to nothing, together they tell X.
    x, y, z_s, z_1 = [1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 1]
    readings = np.array([x, y, z_s, z_1], dtype=float)
    cov = readings @ np.diag([1.0, 1e4, 0.01, 1e-4]) @ readings.T
    shared, private = information(cov, [2], [0]), information(cov, [3], [0])
    together = information(cov, [2, 3], [1])
    assert shared_private_bound(shared, [private], 0.0) < 1e-4
    assert together > 2.2
    on_top = information(cov, [3], [0], given=[2])  # the budget of equation 8, which will do
    assert on_top == pytest.approx(0.5 * np.log(1 + 1e4), rel=1e-6)
    assert together <= shared_private_bound(shared, [on_top], 0.0)


# --- section 7: the bound by rank and power is below that by the spectrum


def test_the_two_capacity_bounds_have_no_order():
    found = [bound([1.0, 0.0], 1.0, 1.0, 2) for bound in (rank_power_bound, spectral_bound)]
    assert found == pytest.approx([0.405, 0.347], abs=5e-4)
    other = [bound([1.0, 1.0], 1.0, 1.0, 2) for bound in (rank_power_bound, spectral_bound)]
    assert other[0] < other[1]
    assert water_filling([1.0, 0.0], 1.0, 1.0, 2)[0] == pytest.approx(found[1])


# --- corollary S1.1


def test_the_weak_form_of_fano_says_nothing_of_two_classes():
    for entropy in (0.1, 0.4, np.log(2)):
        weak = (entropy / np.log(2) - 1) / np.log2(2)  # in bits
        assert weak <= 0 < fano_error(entropy, 2)


def test_some_task_has_the_safe_form_of_s1_18():
    model = equicorrelated(0.25, 5)
    entropies = np.array([3.0, 1.0, 2.0, 2.5, 0.5])
    left = entropies - model.task_information
    bound = average_bound(model.capacity, model.total_correlation, 5)
    assert left.max() >= entropies.mean() - bound


# --- abstract: clusters outperform, and cosines order redundancy


def test_clusters_do_not_beat_the_best_shared_representation():
    A = np.array([[0.73, 1.12], [1.12, 0.73]])  # each cluster reads the other's task more loudly
    together = LinearGaussian(np.eye(2), np.eye(2), np.full(2, 0.1), A, 1.0)
    clusters = [([t], replace(together, A=A[[t]])) for t in (0, 1)]
    each = [float(model.task_information[t]) for t, (_, model) in enumerate(clusters)]
    assert together.task_information.sum() == pytest.approx(0.53, abs=0.005)
    assert sum(each) == pytest.approx(0.19, abs=0.005)
    assert (together.task_information >= each).all()
    assert clustering_gap(together, clusters).gap == pytest.approx(0.19 - 0.53, abs=0.01)
    assert together.capacity <= sum(model.capacity for _, model in clusters)


@pytest.mark.parametrize("seed", range(10))
def test_concatenated_encoders_need_no_more_and_tell_no_less(seed):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(3, 2, 5))
    together = LinearGaussian(
        np.eye(5), generator.normal(size=(5, 4)), np.full(4, 0.1), rows.reshape(6, 5), 0.5
    )
    members = ([0, 2], [1], [3])
    clusters = [(s, replace(together, A=A)) for s, A in zip(members, rows, strict=True)]
    assert clustering_gap(together, clusters).gap <= 1e-12
    assert together.capacity <= sum(model.capacity for _, model in clusters) + 1e-12


def test_plain_cosines_may_be_far_off():
    S, U = np.diag([1.0, 12.0]), np.array([[1.0, 1.0], [0.0, 0.91]])
    model = LinearGaussian(S, U, np.full(2, 0.05), np.zeros((0, 2)), 1.0)
    gradients = unit((S @ U).T)
    plain = gradient_tc(float(gradients[0] @ gradients[1]), model.signal_shares)
    natural = gradient_tc(natural_gradient_cosine(U, S), model.signal_shares)
    assert plain == pytest.approx(0.004, abs=5e-4)
    assert natural == pytest.approx(0.045, abs=5e-4)
    assert natural == pytest.approx(model.total_correlation)


def test_unequal_noise_reorders_pairs_and_sign_does_not_matter():
    cosine = np.array([[1.0, 0.5, 0.6], [0.5, 1.0, 0.0], [0.6, 0.0, 1.0]])
    equal = pairwise_gradient_tc(cosine, [0.9, 0.9, 0.9])
    assert equal[0, 1] < equal[0, 2]
    unequal = pairwise_gradient_tc(cosine, [0.9, 0.9, 0.3])
    assert unequal[0, 1] == pytest.approx(0.113, abs=5e-4)
    assert unequal[0, 2] == pytest.approx(0.051, abs=5e-4)
    assert gradient_tc(-0.9, [0.5, 0.5]) == gradient_tc(0.9, [0.5, 0.5])


def test_of_three_tasks_larger_cosines_may_mean_less_redundancy():
    r2 = np.full(3, 0.99)
    conflict = np.array([[1, -0.49, -0.49], [-0.49, 1, -0.49], [-0.49, -0.49, 1]])
    accord = np.array([[1, 0.55, 0.55], [0.55, 1, 0.55], [0.55, 0.55, 1]])
    assert gradient_tc(conflict, r2) > 1.0 > 0.5 > gradient_tc(accord, r2)
    pairs = [pairwise_gradient_tc(cosine, r2)[0, 1] for cosine in (conflict, accord)]
    assert pairs[0] < pairs[1]


# --- what holds


def test_the_bound_itself_holds_where_all_these_fail():
    for model in (SUM_OF_BOTH, equicorrelated(0.81, 5), equicorrelated(0.0, 5)):
        bound = cr_bound(model.capacity, model.total_correlation)
        assert model.task_information.sum() <= bound
        assert abs(model.identity_gap) < 1e-10
