"""Capacities against dense determinants, scalar optimizers and random maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from scipy.stats import ortho_group

from coadapt._errors import InputError
from coadapt.theory import (
    LinearGaussian,
    capacity_proxy,
    capacity_upper_bound,
    delta_capacity,
    rank_power_bound,
    spectral_bound,
    unit_snr_noise,
    water_filling,
)
from tests.theory.models import invertible


def random_adapter(seed, *, out=7, r=3, d=5, rank_cov=5):
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(d, rank_cov))
    return generator.normal(size=(r, d)), generator.normal(size=(out, r)), root @ root.T


def dense(matrix):
    """Return 1/2 log det(I + matrix)."""
    return 0.5 * np.linalg.slogdet(np.eye(len(matrix)) + matrix)[1]


# --- proxy


@pytest.mark.parametrize("rank_cov", [5, 2])
def test_proxy_is_the_determinant_and_the_model_s_capacity(rank_cov):
    A, _, cov = random_adapter(0, rank_cov=rank_cov)
    found = capacity_proxy(A, cov, 0.7)
    assert found == pytest.approx(dense(A @ cov @ A.T / 0.7), rel=1e-12)
    model = LinearGaussian(cov, np.ones((5, 1)), np.ones(1), A, 0.7)
    assert found == pytest.approx(model.capacity, rel=1e-9)


def test_proxy_is_an_upper_bound_for_a_coin():
    # phi = +-1 has at most log 2 to tell, and variance 1; noise 0.05 makes nearly all of it heard.
    assert capacity_proxy([[1.0]], [[1.0]], 0.05) > np.log(2) + 0.8
    generator = np.random.default_rng(1)
    z = generator.choice([-1.0, 1.0], 20_000) + generator.normal(size=20_000)
    # I(phi + n; phi) for noise 1 is the mean of log p(z|phi)/p(z): about 0.337 nats, known as the
    # capacity of the binary-input Gaussian channel at 0 dB (0.486 bit).
    posterior = 1 / (1 + np.exp(-2 * z))
    told = np.log(2) + np.mean(
        posterior * np.log(posterior) + (1 - posterior) * np.log1p(-posterior)
    )
    assert told == pytest.approx(0.337, abs=0.01)
    assert told < capacity_proxy([[1.0]], [[1.0]], 1.0)


def test_delta_is_the_determinant_of_the_whole_update():
    A, B, cov = random_adapter(2)
    update = 1.5 * B @ A
    expected = dense(update @ cov @ update.T / 0.3)
    assert delta_capacity(A, B, cov, 0.3, scale=1.5) == pytest.approx(expected, rel=1e-10)
    assert delta_capacity(A, B, cov, 0.3, scale=0.0) == 0
    assert delta_capacity(A, 0 * B, cov, 0.3) == 0


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_delta_does_not_depend_on_how_the_update_is_factored_and_the_proxy_does(seed):
    A, B, cov = random_adapter(seed)
    M = invertible(seed, 3)
    other = (M @ A, B @ np.linalg.inv(M))
    expected = delta_capacity(A, B, cov, 1.0)
    assert delta_capacity(*other, cov, 1.0) == pytest.approx(expected, rel=1e-8)
    assert capacity_proxy(2 * A, cov, 1.0) > capacity_proxy(A, cov, 1.0)


def test_delta_handles_singular_parts_and_wide_outputs():
    A, B, cov = random_adapter(3, rank_cov=1)
    assert delta_capacity(A, B, cov, 1.0) == pytest.approx(dense(B @ A @ cov @ A.T @ B.T), rel=1e-9)
    tall = np.zeros((200_000, 3))  # out x out would be 320 GB
    tall[:7] = B
    assert delta_capacity(A, tall, cov, 1.0) == pytest.approx(delta_capacity(A, B, cov, 1.0))


def test_an_adapter_without_ranks_lets_nothing_through():
    A, B = np.zeros((0, 4)), np.zeros((6, 0))
    assert capacity_proxy(A, np.eye(4), 1.0) == delta_capacity(A, B, np.eye(4), 1.0) == 0


def test_unit_snr_noise_makes_the_mean_ratio_one():
    A, _, cov = random_adapter(4)
    noise = unit_snr_noise(A, cov)
    powers = [row @ cov @ row for row in A]
    assert np.mean(powers) / noise == pytest.approx(1)
    assert unit_snr_noise(3 * A, cov) == pytest.approx(9 * noise)


# --- bounds and water-filling

spectra = st.lists(st.floats(0, 10), min_size=1, max_size=6)
powers = st.floats(0, 20)


@given(spectra, powers, st.floats(0.1, 5), st.data())
@settings(deadline=None, max_examples=50)
def test_no_map_of_that_rank_and_power_exceeds_water_filling_nor_it_the_bounds(
    spectrum, power, noise, data
):
    d = len(spectrum)
    rank = data.draw(st.integers(1, d))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    Q = ortho_group.rvs(d, random_state=generator) if d > 1 else np.eye(1)
    cov = Q @ np.diag(spectrum) @ Q.T
    best, given_powers = water_filling(spectrum, power, noise, rank)
    A = generator.normal(size=(rank, d))
    A *= np.sqrt(power / (A**2).sum())
    assert capacity_proxy(A, cov, noise) <= best + 1e-9
    reached = capacity_proxy(np.sqrt(given_powers)[:, None] * Q.T, cov, noise)
    assert reached == pytest.approx(best, abs=1e-9)
    assert np.count_nonzero(given_powers) <= rank
    assert (given_powers >= 0).all()
    if max(spectrum) > 1e-3:
        assert given_powers.sum() == pytest.approx(power, rel=1e-9, abs=1e-12)
    args = (spectrum, power, noise, rank)
    assert best <= rank_power_bound(*args) + 1e-12
    assert best <= spectral_bound(*args) + 1e-12
    assert capacity_upper_bound(*args) == min(rank_power_bound(*args), spectral_bound(*args))


def test_water_filling_is_the_optimum_a_general_solver_finds():
    spectrum, power, noise = np.array([0.3, 5.0, 1.0, 0.9]), 2.5, 0.8
    for rank in (1, 2, 3, 4):
        top = np.sort(spectrum)[-rank:]
        found = minimize(
            lambda p, top=top: -0.5 * np.log1p(p * top / noise).sum(),
            np.full(rank, power / rank),
            bounds=[(0, power)] * rank,
            constraints=LinearConstraint(np.ones((1, rank)), power, power),
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        capacity, filled = water_filling(spectrum, power, noise, rank)
        assert capacity == pytest.approx(-found.fun, abs=1e-9)
        np.testing.assert_allclose(filled[np.argsort(spectrum)[-rank:]], found.x, atol=1e-5)


def test_water_filling_at_its_limits():
    assert water_filling([2.0, 2.0], 3.0, 1.0, 2)[1] == pytest.approx([1.5, 1.5])
    assert water_filling([2.0, 2.0], 3.0, 1.0, 1)[1].tolist() == [3.0, 0.0]
    capacity, filled = water_filling([0.0, 0.0], 3.0, 1.0, 2)
    assert (capacity, filled.tolist()) == (0.0, [0.0, 0.0])
    assert water_filling([1.0, 2.0], 0.0, 1.0, 2)[0] == 0
    tiny, filled = water_filling([1e-200, 5e-324], 1.0, 1.0, 2)
    assert (tiny, filled.tolist()) == (pytest.approx(0.5e-200), [1.0, 0.0])


def test_bounds_by_hand():
    spectrum = [1.0, 4.0, 2.0]
    assert rank_power_bound(spectrum, 3.0, 2.0, 2) == pytest.approx(np.log(1 + 3 * 4 / 4))
    expected = 0.5 * (np.log(1 + 3 * 4 / 2) + np.log(1 + 3 * 2 / 2))
    assert spectral_bound(spectrum, 3.0, 2.0, 2) == pytest.approx(expected)


# --- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: capacity_proxy(np.ones((2, 3)), np.eye(2), 1.0),
            "A must be a matrix of shape any x 2",
        ),
        (lambda: capacity_proxy(np.eye(2), np.triu(np.ones((2, 2))), 1.0), "cov is not symmetric"),
        (lambda: capacity_proxy(np.eye(2), np.diag([1.0, -1.0]), 1.0), "cov is no covariance"),
        (lambda: capacity_proxy(np.eye(2), np.eye(2), 0.0), "noise must be above 0"),
        (lambda: capacity_proxy([[np.nan, 0]], np.eye(2), 1.0), r"A\[0, 0\] is nan"),
        (
            lambda: delta_capacity(np.eye(2), np.ones((4, 3)), np.eye(2), 1.0),
            "B must be a matrix of shape any x 2",
        ),
        (
            lambda: delta_capacity(np.eye(2), np.eye(2), np.eye(2), 1.0, -1.0),
            "scale must be 0 or more",
        ),
        (
            lambda: delta_capacity(np.eye(2), np.eye(2), np.diag([1.0, -1]), 1.0),
            "cov is no covariance",
        ),
        (lambda: unit_snr_noise(np.zeros((2, 2)), np.eye(2)), "A must read some variance"),
        (lambda: unit_snr_noise(np.zeros((0, 2)), np.eye(2)), "A must read some variance"),
        (lambda: rank_power_bound([], 1.0, 1.0, 1), "eigenvalues must be a list of finite numbers"),
        (lambda: rank_power_bound([np.inf], 1.0, 1.0, 1), "eigenvalues must be a list of finite"),
        (
            lambda: spectral_bound([1.0, -0.5], 1.0, 1.0, 1),
            "negative eigenvalue, -0.5 of the largest",
        ),
        (
            lambda: spectral_bound([1.0], 1.0, 1.0, 2),
            "rank 2 needs as many eigenvalues, but there are 1",
        ),
        (lambda: spectral_bound([1.0], 1.0, 1.0, 0), "rank must be a whole number of at least 1"),
        (lambda: water_filling([1.0], -1.0, 1.0, 1), "power must be 0 or more"),
        (lambda: water_filling([1.0], 1.0, 0.0, 1), "noise must be above 0"),
    ],
    ids=[
        *("A-shape", "asymmetric", "indefinite", "no-noise", "nan", "B-shape", "scale"),
        *("indefinite-delta", "reads-nothing", "no-rows", "no-eigenvalues", "inf", "negative"),
        *("rank-large", "rank-0", "power", "noise"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
