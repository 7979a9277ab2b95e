"""Coupling against regressions, closed forms and every order of the rows; how often it covers."""

from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coadapt.diagnosis.coupling import class_residuals, delta_hat, regression_residuals
from tests.reference.slow_coupling import (
    coupled_classes,
    coupling_by_regressions,
    mean_null_of_gaussians,
    null_by_all_orders,
    paper_delta,
)

FEW: dict[str, Any] = {"num_permutations": 19, "num_bootstrap": 39}


def rng(seed=0):
    return np.random.default_rng(seed)


def equicorrelated(num_tasks, rho):
    return np.full((num_tasks, num_tasks), rho) + (1 - rho) * np.eye(num_tasks)


def gaussian(n, R, generator):
    return generator.normal(size=(n, len(R))) @ np.linalg.cholesky(R).T


def delta_of(R):
    return -0.5 * np.log(np.linalg.det(R))


def mixed_blocks(n, generator, sizes=(1, 2, 3)):
    factor = generator.normal(size=(n, 1))
    return [0.7 * factor + generator.normal(size=(n, k)) for k in sizes]


def same(found, other, **tolerances):
    """Whether two estimates agree in all their numbers."""
    for field in fields(found):
        ours, theirs = getattr(found, field.name), getattr(other, field.name)
        if isinstance(ours, float | np.ndarray):
            np.testing.assert_allclose(ours, theirs, **tolerances, err_msg=field.name)
        else:
            assert ours == theirs, field.name


# --- the formula


def test_blocks_equal_a_chain_of_regressions():
    blocks = mixed_blocks(200, rng())
    found = delta_hat(blocks, shrinkage=1e-12, generator=rng(), **FEW)
    assert found.raw == pytest.approx(coupling_by_regressions(blocks), rel=1e-9)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        alone = coupling_by_regressions([blocks[i], blocks[j]])
        bias = alone - found.pairs[i, j]
        # Half the squares of k_i k_j correlations of 1 / (n - 1) each; 19 draws give a third of it.
        assert bias == pytest.approx(blocks[i].shape[1] * blocks[j].shape[1] / 398, rel=0.6)
    assert found.value == found.raw - found.bias
    assert found.num_rows == 200
    assert found.num_tasks == 3
    assert found.p_bartlett is None
    assert found.pair_counts is None
    assert found.assumption == ""
    np.testing.assert_array_equal(found.pairs, found.pairs.T)
    assert not found.pairs.diagonal().any()


@pytest.mark.parametrize("eps", [1e-6, 0.1, 1.0], ids=str)
def test_scalars_equal_the_determinant_of_the_shrunk_correlations(eps):
    x = gaussian(300, equicorrelated(4, 0.4), rng()) * [1, 10, 1e-4, 1e5] + [0, 1e3, 1, 1e6]
    found = delta_hat(x, shrinkage=eps, generator=rng(), **FEW)
    R = (np.corrcoef(x, rowvar=False) + eps * np.eye(4)) / (1 + eps)
    assert found.raw == pytest.approx(delta_of(R), rel=1e-9)
    lists = delta_hat(list(x.T), shrinkage=eps, generator=rng(), **FEW)
    same(found, lists, rtol=1e-12)


def test_the_papers_formula_is_below_zero_for_uncorrelated_tasks_and_ours_is_zero():
    signs = np.array([[1, 1], [1, -1]])
    x = np.kron(signs, np.kron(signs, signs))[:, 1:6]  # orthogonal columns of mean 0
    for eps in (0.01, 1e-6):
        assert paper_delta(x, eps) == pytest.approx(-2.5 * np.log1p(eps))
        found = delta_hat(x, shrinkage=eps, generator=rng(), **FEW)
        assert found.raw == pytest.approx(0, abs=1e-12)
        assert found.p_value == 1.0
        assert found.value == -found.bias < 0
    assert paper_delta(x, 0.01) == pytest.approx(-0.0249, abs=5e-5)


def test_equal_columns_are_bounded_by_the_shrinkage():
    x = rng().normal(size=(50, 1))
    found = delta_hat([x, x], generator=rng(), **FEW)
    assert found.raw == pytest.approx(delta_of([[1, 1 / (1 + 1e-6)], [1 / (1 + 1e-6), 1]]))
    assert found.raw == pytest.approx(6.56, abs=0.01)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_recoding_a_task_changes_nothing_and_order_only_the_order(seed):
    generator = rng(seed)
    blocks = mixed_blocks(60, generator)
    found = delta_hat(blocks, generator=rng(1), **FEW)
    # Orthogonal times scales: invertible and not close to singular.
    maps = [
        np.linalg.qr(generator.normal(size=(k, k)))[0] * 7.0 ** -np.arange(k) for k in (1, 2, 3)
    ]
    recoded = [x @ m + generator.normal() for x, m in zip(blocks, maps, strict=True)]
    same(found, delta_hat(recoded, generator=rng(1), **FEW), rtol=1e-8, atol=1e-10)
    turned = delta_hat(blocks[::-1], generator=rng(1), **FEW)
    assert turned.raw == pytest.approx(found.raw, rel=1e-9)
    assert found.raw >= 0


def test_which_class_is_dropped_does_not_matter():
    generator = rng(3)
    pairs = list(coupled_classes(250, 1.0, generator, num_classes=(3, 4, 2)))
    found = delta_hat([class_residuals(p, y) for p, y in pairs], generator=rng(1), **FEW)
    for shift in (1, 2):
        rolled = [class_residuals(np.roll(p, shift, 1), (y + shift) % p.shape[1]) for p, y in pairs]
        same(found, delta_hat(rolled, generator=rng(1), **FEW), rtol=1e-8, atol=1e-10)


# --- bias, p-value, interval


def test_bias_and_p_value_agree_with_every_order_of_the_rows():
    x = rng(5).normal(size=(6, 2))
    x[:, 1] += x[:, 0]
    every = np.array(list(null_by_all_orders([x[:, :1], x[:, 1:]])))
    assert len(every) == 720
    found = delta_hat(x, shrinkage=1e-12, num_permutations=4000, num_bootstrap=39, generator=rng())
    assert found.bias == pytest.approx(every.mean(), abs=4 * every.std() / np.sqrt(4000))
    share = np.mean(every >= found.raw - 1e-9)
    assert 0.02 < share < 0.5
    assert found.p_value == pytest.approx(share, abs=4 * np.sqrt(share / 4000))
    assert found.pairs[0, 1] == pytest.approx(found.value, rel=1e-9)


def test_bias_of_five_tasks_on_277_rows():
    x = rng(2).normal(size=(277, 5))
    found = delta_hat(x, num_permutations=1999, num_bootstrap=39, generator=rng())
    exact = mean_null_of_gaussians(5, 277)
    se = np.sqrt(2 * 10) / (2 * 276) / np.sqrt(1999)  # 2 (n - 1) Delta is nearly chi^2 with 10
    assert found.bias == pytest.approx(exact, abs=4 * se)
    assert exact == pytest.approx(5 * 4 / (4 * 276), rel=0.02)
    assert round(5 * 4 / (4 * 276), 3) == round(found.bias, 3) == 0.018


def test_p_values_are_uniform_where_tasks_are_independent():
    generator, jitter = rng(11), rng(12)
    by_order, by_chi2 = [], []
    for _ in range(200):
        x = generator.normal(size=(60, 3))
        found = delta_hat(x, num_permutations=99, num_bootstrap=39, generator=generator)
        by_order.append(found.p_value - jitter.random() / 100)  # of 100 steps, hence uniform
        by_chi2.append(found.p_bartlett)
    assert stats.kstest(by_order, "uniform").pvalue > 1e-3
    assert stats.kstest(by_chi2, "uniform").pvalue > 1e-3
    assert np.abs(np.subtract(by_order, by_chi2)).max() < 0.2


def test_bartlett_by_hand():
    x = gaussian(40, equicorrelated(3, 0.2), rng(4))
    found = delta_hat(x, generator=rng(), **FEW)
    assert found.p_bartlett == pytest.approx(stats.chi2.sf(2 * (39 - 11 / 6) * found.raw, 3))


def test_true_coupling_of_a_linear_gaussian_model_is_in_the_interval():
    generator = rng(7)
    n, d, T = 2000, 6, 4
    U, A = generator.normal(size=(d, T)), generator.normal(size=(2, d))
    X, noise = generator.normal(size=(n, d)), generator.normal(size=(n, 2))
    Y = X @ U + generator.normal(size=(n, T))
    Z = X @ A.T + 0.5 * noise
    S_Z = A @ A.T + 0.25 * np.eye(2)
    B = np.linalg.solve(S_Z, A @ U)  # E[Y | Z] = Z B
    S = U.T @ U + np.eye(T) - U.T @ A.T @ B
    truth = delta_of(S / np.sqrt(np.outer(np.diag(S), np.diag(S))))
    residuals = [regression_residuals(Z @ B[:, t], Y[:, t]) for t in range(T)]
    found = delta_hat(residuals, num_permutations=99, num_bootstrap=199, generator=rng())
    assert truth > 0.3
    assert found.low < truth < found.high
    assert found.high - found.low < 0.5 * truth
    assert found.p_value == 0.01
    assert found.p_bartlett is not None
    assert found.p_bartlett < 1e-6


def coverage(draw, truth, num_draws, generator):
    """Return the share of the draws' intervals that hold the truth, and the mean value."""
    held, values = 0, []
    for _ in range(num_draws):
        found = delta_hat(draw(), num_permutations=39, num_bootstrap=119, generator=generator)
        assert found.low <= found.value <= found.high
        held += found.low <= truth <= found.high
        values.append(found.value)
    return held / num_draws, np.array(values)


@pytest.mark.parametrize("rho", [0.0, 0.3], ids=["independent", "moderate"])
def test_interval_covers_on_300_rows(rho):
    R, generator = equicorrelated(4, rho), rng(21)
    held, values = coverage(lambda: gaussian(300, R, generator), delta_of(R), 60, generator)
    assert 0.9 <= held <= (1.0 if rho == 0 else 0.99)
    assert values.mean() == pytest.approx(delta_of(R), abs=4 * values.std() / np.sqrt(60))


@pytest.mark.slow
@pytest.mark.parametrize("n", [300, 2000])
@pytest.mark.parametrize(("num_tasks", "rho"), [(2, 0.0), (2, 0.2), (5, 0.0), (5, 0.2), (10, 0.2)])
def test_interval_covers_gaussians(n, num_tasks, rho):
    R, generator = equicorrelated(num_tasks, rho), rng(31)
    held, values = coverage(lambda: gaussian(n, R, generator), delta_of(R), 300, generator)
    assert 0.9 <= held <= (1.0 if rho == 0 else 0.99)
    assert values.mean() == pytest.approx(delta_of(R), abs=4 * values.std() / np.sqrt(300))


@pytest.mark.slow
@pytest.mark.parametrize("n", [300, 2000])
@pytest.mark.parametrize("shared", [0.0, 1.5], ids=["independent", "moderate"])
def test_interval_covers_class_residuals(n, shared):
    def draw(n):
        return [class_residuals(p, y) for p, y in coupled_classes(n, shared, generator)]

    generator = rng(41)
    truth = coupling_by_regressions(draw(1_000_000)) if shared else 0.0
    held, _ = coverage(lambda: draw(n), truth, 300, generator)
    assert 0.9 <= held <= (0.99 if shared else 1.0)


def test_same_generator_same_estimate_however_much_is_held(monkeypatch):
    blocks = mixed_blocks(80, rng())
    found = delta_hat(blocks, generator=rng(9), **FEW)
    monkeypatch.setattr("coadapt.diagnosis.coupling._FLOATS_HELD", 36 * 5)
    same(found, delta_hat(blocks, generator=rng(9), **FEW), rtol=1e-12)
    assert delta_hat(blocks, generator=rng(8), **FEW).bias != found.bias


def test_level_widens_the_interval_alone():
    x = rng().normal(size=(80, 3))
    wide, narrow = (delta_hat(x, level=level, generator=rng()) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    others = {"low", "high", "pairs"}
    assert {k: v for k, v in asdict(wide).items() if k not in others} == {
        k: v for k, v in asdict(narrow).items() if k not in others
    }
