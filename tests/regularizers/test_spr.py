from dataclasses import replace

import pytest
import torch

from coadapt.regularizers import Spr
from tests.reference import slow_orthogonality as slow
from tests.reference.slow_orthogonality import captured_of, make_layer, value_and_gradients


def loss_of(layer, **options):
    return Spr(**options).loss(captured_of(layer))


def test_the_sum_of_two_known_pairs():
    # B_t' B_u = 2 * 5 + 1 * 0 = 10, A_t A_u' = 3 * 1 + 0 * 4 = 3.
    layer = replace(
        make_layer(),
        A={"t": torch.tensor([[3.0, 0.0]]), "u": torch.tensor([[1.0, 4.0]])},
        B={"t": torch.tensor([[2.0], [1.0]]), "u": torch.tensor([[5.0], [0.0]])},
    )
    assert loss_of(layer).item() == 10**2 + 3**2
    normalized = 100 / (5 * 25) + 9 / (9 * 17)
    assert loss_of(layer, normalized=True).item() == pytest.approx(normalized)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_rotation_within_a_block_does_not_matter(normalized):
    layer = make_layer(1, ranks=(3, 2, 3))
    generator = torch.Generator().manual_seed(3)
    A, B = dict(layer.A), dict(layer.B)
    for name in ("task0", "task2"):
        drawn = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        Q, _ = torch.linalg.qr(drawn)
        A[name], B[name] = Q.T @ A[name], B[name] @ Q
    turned = replace(layer, A=A, B=B)
    assert not torch.allclose(turned.B["task0"], layer.B["task0"])
    torch.testing.assert_close(
        loss_of(layer, normalized=normalized), loss_of(turned, normalized=normalized)
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_the_scale_of_a_block(normalized):
    layer = make_layer(2, ranks=(2, 2))
    larger = replace(
        layer,
        A={**layer.A, "task0": 3 * layer.A["task0"]},
        B={**layer.B, "task0": 3 * layer.B["task0"]},
    )
    by = 1 if normalized else 9
    torch.testing.assert_close(
        loss_of(larger, normalized=normalized), by * loss_of(layer, normalized=normalized)
    )


def test_normalized_pairs_lie_between_0_and_1():
    # Two blocks of one direction are alike: 1 for B and 1 for A; three pairs are three times it.
    row = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = ("t", "u", "v")
    layer = replace(
        make_layer(),
        A={name: (1 + index) * row for index, name in enumerate(names)},
        B={name: (2 - 3 * index) * row.T for index, name in enumerate(names)},
    )
    assert loss_of(layer, normalized=True).item() == pytest.approx(6)
    for seed in range(5):
        assert 0 < loss_of(make_layer(seed, ranks=(2, 3)), normalized=True).item() < 2


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12])
def test_normalized_blocks_close_to_zero_stay_finite_in_float32(size):
    layer = make_layer(dtype=torch.float32)
    with torch.no_grad():
        layer.B["task0"].mul_(size)
        layer.A["task1"].mul_(size)
    captured = captured_of(layer)
    found = value_and_gradients(Spr(normalized=True).loss(captured), captured)
    assert all(value.isfinite().all() for value in found)


def test_products_of_zero_do_not_ask_for_two_orthogonal_factors():
    """Proposition 3.2: either is enough for <B_t A_t, B_u A_u> = 0, and the term asks for both."""
    layer = make_layer(3, ranks=(2, 2), cooperative=0)
    Q, _ = torch.linalg.qr(torch.cat(list(layer.B.values()), dim=1).detach())
    B = dict(zip(layer.B, Q.split(2, dim=1), strict=True))
    half = replace(layer, B=B)
    inner = ((B["task0"] @ layer.A["task0"]) * (B["task1"] @ layer.A["task1"])).sum()
    assert inner.item() == pytest.approx(0, abs=1e-12)
    expected = (layer.A["task0"] @ layer.A["task1"].T).square().sum()
    torch.testing.assert_close(loss_of(half), expected)


def test_descent_makes_blocks_orthogonal():
    layer = make_layer(4, ranks=(1, 2, 1))
    captured = captured_of(layer)
    optimizer = torch.optim.Adam(slow.leaves(captured), lr=0.05)
    start = slow.spr(captured, normalized=True).item()
    for _ in range(150):
        optimizer.zero_grad()
        Spr(normalized=True).loss(captured).backward()
        optimizer.step()
    assert start > 0.3
    assert slow.spr(captured, normalized=True).item() < 1e-3
    assert all(part.norm() > 0.3 for part in slow.leaves(captured))


def test_nothing_of_the_size_of_the_factors_is_kept_beside_them():
    layer = make_layer(d_in=300, d_out=200, ranks=(2, 2), dtype=torch.float32)
    factors = {part.untyped_storage().data_ptr() for part in slow.leaves(captured_of(layer))}
    kept = []

    def keep(value):
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss_of(layer)
    own = [value for value in kept if value.untyped_storage().data_ptr() in factors]
    assert len(own) == 4
    assert all(value.numel() <= 16 for value in kept if not any(value is mine for mine in own))


def test_the_span_of_a_sum_of_blocks_may_be_less_than_their_spans():
    """What proposition 3.1 of ThanoRA denies: two blocks of full rank that cancel."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randint(-3, 4, size, generator=generator).float() for size in ((2, 6), (5, 2)))
    stacked = torch.cat([B, -B], dim=1) @ torch.cat([A, A])
    assert torch.linalg.matrix_rank(B @ A) == 2
    assert torch.equal(stacked, torch.zeros(5, 6))  # whole numbers: exactly, not up to rounding
