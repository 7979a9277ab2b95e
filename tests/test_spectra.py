"""Randomised and full decompositions of W C against the textbook one."""

import pytest
import torch

from coadapt import InputError, spectra
from coadapt.spectra import Spectrum, full, leading, spectral_entropy_of


def decaying(out, size, *, power, seed=0):
    """Return W and an input's second moment with eigenvalues 1, 2^-power, 3^-power, ..."""
    rng = torch.Generator().manual_seed(seed)
    W = torch.randn(out, size, dtype=torch.float64, generator=rng)
    Q = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=rng)).Q
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return W, (Q * values) @ Q.T


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("out", "size"), [(200, 300), (300, 200)])
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_randomised_triplets_are_those_of_the_full_decomposition(out, size, power):
    W, C = decaying(out, size, power=power)
    found = leading(W, C, 12, generator=generator(), tolerance=1e-3)
    U, S, _ = torch.linalg.svd(W @ C, full_matrices=False)
    assert 0 < found.residual <= 1e-3  # it was not the full one
    torch.testing.assert_close(found.sigma[:12], S[:12], rtol=1e-5, atol=0)
    # A singular value is off by no more than the residual says.
    assert ((found.sigma[:12] - S[:12]).abs() <= found.residual * S[:12]).all()
    cosines = torch.linalg.svdvals(U[:, :8].T @ found.U[:, :12])
    assert cosines.min() > 1 - 1e-4  # what leads is in the span


def test_a_loose_tolerance_is_kept_at_the_end_of_the_spectrum_and_hardly_felt_before():
    W, C = decaying(300, 400, power=1.0)
    found = leading(W, C, 40, generator=generator())
    U, S, _ = torch.linalg.svd(W @ C, full_matrices=False)
    assert 1e-3 < found.residual <= 0.3
    assert ((found.sigma[:40] - S[:40]).abs() <= found.residual * S[:40]).all()
    torch.testing.assert_close(found.sigma[:10], S[:10], rtol=1e-4, atol=0)
    assert torch.linalg.svdvals(U[:, :10].T @ found.U[:, :10]).min() > 0.9999


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_the_unit_of_the_moments_is_of_no_matter(unit):
    W, C = decaying(200, 300, power=1.0)
    one, other = (leading(W, u * C, 12, generator=generator()) for u in (1.0, unit))
    assert other.residual > 0
    torch.testing.assert_close(other.sigma / unit, one.sigma, rtol=1e-5, atol=0)


def test_a_start_nearby_saves_passes_and_gives_the_same(monkeypatch):
    W, C = decaying(300, 400, power=1.0)
    _, other = decaying(300, 400, power=1.2)
    near = leading(W, other, 40, generator=generator()).U
    calls = []
    original = spectra._ritz
    monkeypatch.setattr(spectra, "_ritz", lambda Q, Z: calls.append(1) or original(Q, Z))
    cold = leading(W, C, 40, generator=generator())
    passes = len(calls)
    warm = leading(W, C, 40, generator=generator(), near=near)
    assert len(calls) - passes < passes
    torch.testing.assert_close(warm.sigma[:20], cold.sigma[:20], rtol=1e-3, atol=0)


def test_without_moments_it_is_the_weight_s():
    W, _ = decaying(150, 160, power=1.0)
    W = W @ torch.diag(torch.linspace(1, 0.01, 160, dtype=torch.float64) ** 3)
    found = leading(W, None, 5, generator=generator(), tolerance=1e-3)
    torch.testing.assert_close(found.sigma[:5], torch.linalg.svdvals(W)[:5], rtol=1e-5, atol=0)


def test_a_flat_spectrum_falls_back_to_the_full_decomposition():
    rng = generator(3)
    W = torch.linalg.qr(torch.randn(120, 120, dtype=torch.float64, generator=rng)).Q
    W = W + 1e-3 * torch.randn(120, 120, dtype=torch.float64, generator=rng)
    found = leading(W, None, 4, generator=generator(), tolerance=1e-8)
    assert found.residual == 0.0
    torch.testing.assert_close(found.sigma[:4], torch.linalg.svdvals(W)[:4])


def test_same_generator_same_result():
    W, C = decaying(200, 220, power=1.0)
    one, two = (leading(W, C, 6, generator=generator(5)) for _ in range(2))
    assert torch.equal(one.U, two.U)


@pytest.mark.parametrize("smallest", [False, True])
def test_either_end_of_the_full_decomposition(smallest):
    W, C = decaying(20, 30, power=1.0)
    found = full(W, C, count=4, smallest=smallest)
    U, S, _ = torch.linalg.svd(W @ C, full_matrices=False)
    kept = slice(16, 20) if smallest else slice(0, 4)
    torch.testing.assert_close(found.sigma, S[kept])
    torch.testing.assert_close((found.U.T @ U[:, kept]).abs(), torch.eye(4, dtype=U.dtype))


def test_rank_counts_what_is_not_zero():
    W, C = decaying(20, 30, power=1.0)
    few = torch.randn(3, 30, dtype=torch.float64, generator=generator())
    assert full(W, C, count=20).rank == 20
    assert full(W, few.T @ few, count=20).rank == 3
    assert full(W, torch.zeros_like(C), count=20).rank == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    W, C = decaying(20, 30, power=1.0)
    C[0, 0] = value
    with pytest.raises(InputError, match="second moment is not finite"):
        leading(W, C, 3, generator=generator())


def test_entropy_of_known_spectra():
    even, single = torch.ones(8), torch.tensor([3.0, 0.0, 0.0])
    assert spectral_entropy_of(even) == pytest.approx(1.0)
    assert spectral_entropy_of(even, normalised=False) == pytest.approx(2.0794415)
    assert spectral_entropy_of(single) == 0.0
    assert spectral_entropy_of(torch.zeros(4)) == 0.0
    assert Spectrum(U=torch.eye(2), sigma=torch.tensor([1.0, 1e-13])).rank == 1
