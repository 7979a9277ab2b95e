"""The search for weights: what it finds, what it may call, and its algorithm step by step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.merging import minimize
from tests.reference.slow_hub import slow_cma

METHODS = ["built_in", "cobyla", "nevergrad"]


def sphere(w):
    return float(((w - 0.4) ** 2).sum())


def bent(w):
    """Return Rosenbrock's valley, shallow, with its least value at 0.8."""
    u = w / 0.8
    return float((5 * (u[1:] - u[:-1] ** 2) ** 2 + (1 - u[:-1]) ** 2).sum())


def need(method):
    if method == "nevergrad":
        pytest.importorskip("nevergrad")


def random_search(function, num_weights, budget, seed):
    """Return the least of zero and uniform draws."""
    rng = np.random.default_rng(seed)
    points = [np.zeros(num_weights), *rng.uniform(-1.5, 1.5, (budget - 1, num_weights))]
    return min(function(point) for point in points)


def uneven(w):
    return bent(np.append(w, 0.3)) + 0.1 * sphere(w)


def slope(w):
    """Return a line, down which the step size grows until the covariance's path is held."""
    return float(w @ np.arange(1, len(w) + 1))


@pytest.mark.parametrize("function", [uneven, slope])
@pytest.mark.parametrize("num_weights", [1, 2, 3])
def test_the_built_in_search_is_the_tutorial_s(function, num_weights):
    width = 2e6 if function is slope else 3.0
    low, high = -width / 2, width / 2
    options = {"budget": 90, "seed": 3}
    found = minimize(function, num_weights, bounds=(low, high), method="built_in", **options)
    sigma = 0.2 * width / math.sqrt(num_weights)
    slow = slow_cma(function, num_weights, low=low, high=high, sigma=sigma, **options)
    np.testing.assert_allclose(found.history, slow, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", ["built_in", "cobyla"])
@pytest.mark.parametrize("function", [sphere, bent])
@pytest.mark.parametrize(("num_weights", "budget"), [(3, 40), (5, 150)])
def test_the_search_beats_random_points(function, num_weights, budget, method):
    options = {"budget": budget, "method": method}
    found = [minimize(function, num_weights, seed=seed, **options).value for seed in range(15)]
    random = [random_search(function, num_weights, budget, seed) for seed in range(15)]
    assert np.median(found) < 0.8 * np.median(random)
    assert np.mean(np.array(found) < random) >= 0.6


def test_the_search_comes_as_near_as_it_may_take_evaluations():
    found = minimize(sphere, 4, budget=600, seed=0, method="built_in")
    assert found.value < 1e-8
    np.testing.assert_allclose(found.weights, [0.4] * 4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_nevergrad_and_ours_find_the_least_of_a_sphere(method):
    need(method)
    found = minimize(sphere, 2, budget=40, seed=0, method=method)
    assert found.method == method
    assert found.value < 0.05


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 17, 40])
def test_the_budget_is_kept_exactly_and_the_start_comes_first(method, budget):
    need(method)
    seen = []

    def function(w):
        seen.append(w.copy())
        return sphere(w)

    found = minimize(function, 5, budget=budget, seed=1, method=method)
    assert len(seen) == len(found.history) == budget
    assert not seen[0].any()
    assert found.history == tuple(sphere(w) for w in seen)
    assert found.value == min(found.history) == sphere(np.array(found.weights))
    assert found.weights == tuple(seen[int(np.argmin(found.history))])


@pytest.mark.parametrize("method", METHODS)
def test_bounds_are_kept_and_reached(method):
    need(method)
    seen = []

    def far(w):
        seen.append(w.copy())
        return float(((w - np.array([3.0, -2.0])) ** 2).sum())

    found = minimize(far, 2, budget=90, bounds=(-0.5, 0.25), seed=0, method=method)
    points = np.stack(seen)
    assert points.min() >= -0.5
    assert points.max() <= 0.25
    if method == "built_in":  # NGOpt's choice bounces off the bounds
        np.testing.assert_allclose(found.weights, [0.25, -0.5], atol=0.02)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 60), st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1))
def test_no_result_is_worse_than_the_start(num_weights, budget, seed, shape):
    rng = np.random.default_rng(shape)
    slope, center = rng.standard_normal((2, num_weights))

    def function(w):
        return float(np.sin(5 * (w - center)).sum() + slope @ w)

    found = minimize(function, num_weights, budget=budget, seed=seed, method="built_in")
    assert found.value <= function(np.zeros(num_weights))
    again = minimize(function, num_weights, budget=budget, seed=seed, method="built_in")
    assert found == again


def test_another_seed_draws_other_points():
    found = [minimize(sphere, 3, budget=9, seed=seed, method="built_in") for seed in (1, 2)]
    assert found[0].history[0] == found[1].history[0]
    assert found[0].history[1:] != found[1].history[1:]


@pytest.mark.parametrize("num_weights", [3, 20])
def test_nevergrad_draws_nothing_at_the_paper_s_budget(num_weights):
    need("nevergrad")
    first, other = (
        minimize(sphere, num_weights, budget=40, seed=seed, method="nevergrad") for seed in (1, 2)
    )
    assert first == other


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_counts_as_worst(method, bad):
    need(method)

    def function(w):
        return bad if w[0] > 0.45 else sphere(w)

    found = minimize(function, 2, budget=40, seed=0, method=method)
    assert math.inf in found.history
    assert found.value < sphere(np.zeros(2))
    with pytest.raises(InputError, match=r"is (nan|inf) at zero weights"):
        minimize(lambda w: bad, 2, budget=40, seed=0, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_function_does_to_its_weights_changes_nothing(method):
    need(method)

    def spoil(w):
        value = sphere(w)
        w += 7.0
        return value

    options = {"budget": 30, "seed": 3, "method": method}
    assert minimize(spoil, 3, **options) == minimize(sphere, 3, **options)


def test_the_function_s_own_errors_pass_through():
    def broken(w):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        minimize(broken, 2, budget=5, seed=0)


def test_auto_takes_what_is_installed(monkeypatch):
    monkeypatch.setattr("coadapt.merging.searching.find_spec", lambda name: None)
    assert minimize(sphere, 2, budget=3, seed=0).method == "cobyla"
    with pytest.raises(InputError, match=r"pip install 'coadapt\[hub\]'"):
        minimize(sphere, 2, budget=3, seed=0, method="nevergrad")


def test_cobyla_goes_on_from_the_best_point_where_it_ends_early():
    found = minimize(sphere, 2, budget=400, seed=0, method="cobyla")
    assert len(found.history) == 400
    assert found.value < 1e-8


def test_auto_takes_nevergrad_where_it_is():
    pytest.importorskip("nevergrad")
    assert minimize(sphere, 2, budget=3, seed=0).method == "nevergrad"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_weights": 0}, "num_weights must be at least 1, not 0"),
        ({"budget": 0}, "budget must be at least 1, not 0"),
        ({"bounds": (0.0, 1.0)}, "low < 0 < high"),
        ({"bounds": (-1.0, math.inf)}, "low < 0 < high"),
        ({"bounds": (-1.0, math.nan)}, "low < 0 < high"),
        ({"method": "nevergrat"}, "did you mean 'nevergrad'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        minimize(sphere, **{"num_weights": 2, "budget": 5, "seed": 0, **changed})
