import pytest
import torch
from torch.distributions import Normal, kl_divergence

from coadapt.regularizers import AlignKL, Captured, Need
from tests.reference import slow_regularizers as slow
from tests.reference.slow_regularizers import make_captured, value_and_gradients

POOLS = ["token", "sequence", "last", "position"]


def of_two(first, second, **changes):
    """A batch of two rows, one a task."""
    z = torch.stack([first, second])
    return Captured(
        task_ids=torch.tensor([0, 1]),
        valid=torch.ones(z.shape[:2], dtype=torch.bool),
        representations={"a": z},
        **changes,
    )


def unit(n, dims=1):
    """Samples whose mean is 0 and whose variance, dividing by n, is 1."""
    x = torch.randn(n, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x - x.mean(dim=0)
    return x / x.std(dim=0, correction=0)


def test_what_it_is():
    part = AlignKL()
    assert (part.kind, part.weight, part.needs) == ("align_kl", 0.1, Need.REPRESENTATION)
    assert part.several_tasks


@pytest.mark.parametrize("reduction", ["mean", "sum_pairs"])
@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
@pytest.mark.parametrize("pool", POOLS)
def test_value_and_gradients_against_a_loop(pool, tokens, reduction):
    captured = make_captured(ranks=(3, 1, 2), tasks=(0, 2, 0, 2, 5, 5, 3, 0), length=6)
    options = {"pool": pool, "tokens": tokens, "reduction": reduction}
    found = value_and_gradients(AlignKL(**options).loss(captured), captured)
    expected = value_and_gradients(slow.align_kl(captured, **options), captured)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(part.abs().sum() > 0 for part in found)


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": 3}, {"min_count": 1}, {"min_count": 6}, {"floor": 0.0}, {"floor": 0.3}],
    ids=str,
)
def test_options_against_a_loop(options):
    captured = make_captured(tasks=(0, 2, 0, 2, 0, 3), length=7)
    found = value_and_gradients(AlignKL(**options).loss(captured), captured)
    expected = value_and_gradients(slow.align_kl(captured, **options), captured)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_every_position_has_the_pairs_that_are_there():
    # The third task's rows are short: the other two are compared behind them all the same.
    valid = torch.ones(6, 4, dtype=torch.bool)
    valid[4:, 1:] = False
    captured = make_captured(length=4, valid=valid)
    part = AlignKL(pool="position")
    loss = part.loss(captured).item()
    torch.testing.assert_close(part.loss(captured), slow.align_kl(captured, pool="position"))
    moved = {name: z.detach().clone() for name, z in captured.representations.items()}
    moved["module0"][0, 3] += 1
    other = part.loss(make_captured(length=4, valid=valid, representations=moved)).item()
    assert other != pytest.approx(loss)


def test_two_unit_gaussians():
    # KL is 6^2 / 2 either way; the sum over ordered pairs, over twice the tasks, is 9.
    captured = of_two(unit(50) - 3, unit(50) + 3)
    assert AlignKL(floor=0.0).loss(captured).item() == pytest.approx(18, rel=1e-5)


def test_gaussians_of_different_width_against_torch():
    x, y = 2 * unit(30, 2) + 1, 0.5 * unit(30, 2)
    p, q = Normal(1.0, 2.0), Normal(0.0, 0.5)
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).item()  # a half, of two dimensions
    assert AlignKL(floor=0.0).loss(of_two(x, y)).item() == pytest.approx(expected, rel=1e-4)


def test_gradients_against_finite_differences():
    captured = make_captured(ranks=(2,), length=3)

    # A floor moves with the samples, and no gradient goes through it; so none here but 1e-6.
    def loss(z):
        return AlignKL(floor=0.0).loss(make_captured(length=3, representations={"a": z}))

    z = captured.representations["module0"].detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (z,))


@pytest.mark.parametrize("pool", POOLS)
def test_a_scale_of_a_dimension_does_not_matter_but_for_the_floor(pool):
    captured = make_captured(length=9)
    scale = torch.tensor([1e3, 1e4, 3e2], dtype=torch.float64)
    scaled = {name: scale * z for name, z in captured.representations.items()}
    larger = {name: 1e3 * z for name, z in captured.representations.items()}
    part = AlignKL(pool=pool, floor=0.0)
    torch.testing.assert_close(
        part.loss(make_captured(length=9, representations=scaled)),
        part.loss(make_captured(length=9, representations=larger)),
        rtol=1e-4,
        atol=0,
    )


def test_shrinking_is_no_way_out():
    captured = make_captured()
    small = {name: 0.1 * z for name, z in captured.representations.items()}
    loss = AlignKL().loss(captured)
    torch.testing.assert_close(AlignKL().loss(make_captured(representations=small)), loss)


def test_identical_tasks_are_zero():
    x = unit(20, 3)
    captured = of_two(x, x.flip(0))
    assert AlignKL().loss(captured).item() == pytest.approx(0, abs=1e-12)


def test_the_floor_bounds_constant_tasks():
    # Two constants 2 apart: variance 1 of all, so the floor is 1e-3 and KL 2^2 / (2 * 1e-3).
    x = torch.ones(4, 1, dtype=torch.float64)
    assert AlignKL().loss(of_two(x, -x)).item() == pytest.approx(2000)


def test_large_means_keep_their_digits():
    captured = make_captured(length=20)
    far = {name: (z.detach() + 300).float() for name, z in captured.representations.items()}
    expected = AlignKL().loss(captured).item()
    found = AlignKL().loss(make_captured(length=20, representations=far)).item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_ranges_of_its_own():
    with pytest.raises(ValueError, match=r"floor must be at least 0, not -0\.1"):
        AlignKL(floor=-0.1)
    with pytest.raises(ValueError, match="max_tokens: 9 has no effect on pool: 'last'"):
        AlignKL(max_tokens=9, pool="last")
