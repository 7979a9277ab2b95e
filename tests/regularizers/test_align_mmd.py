from itertools import combinations

import pytest
import torch

from coadapt.regularizers import AlignMMD, Captured, Need
from tests.reference import slow_regularizers as slow
from tests.reference.slow_regularizers import make_captured, value_and_gradients

POOLS = ["token", "sequence", "last", "position"]


def of_rows(*rows):
    """A batch of a row a task."""
    z = torch.stack(rows)
    return Captured(
        task_ids=torch.arange(len(rows)),
        valid=torch.ones(z.shape[:2], dtype=torch.bool),
        representations={"a": z},
    )


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_it_is():
    part = AlignMMD()
    assert (part.kind, part.weight, part.needs) == ("align_mmd", 0.15, Need.REPRESENTATION)
    assert part.several_tasks


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("bandwidths", ["median", "official"])
@pytest.mark.parametrize("pool", POOLS)
def test_value_and_gradients_against_a_loop(pool, bandwidths, estimator):
    captured = make_captured(ranks=(3, 1), tasks=(0, 2, 0, 2, 5, 3), length=4)
    options = {"pool": pool, "bandwidths": bandwidths, "estimator": estimator}
    found = value_and_gradients(AlignMMD(**options).loss(captured), captured)
    expected = value_and_gradients(slow.align_mmd(captured, **options), captured)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert all(part.abs().sum() > 0 for part in found)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 3},
        {"min_count": 1},
        {"min_count": 6},
        {"tokens": "answer", "reduction": "sum_pairs"},
        {"tokens": "prompt", "pool": "last"},
    ],
    ids=str,
)
def test_options_against_a_loop(options):
    captured = make_captured(ranks=(2,), tasks=(0, 2, 0, 2, 3))
    found = value_and_gradients(AlignMMD(**options).loss(captured), captured)
    expected = value_and_gradients(slow.align_mmd(captured, **options), captured)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_position_is_compared_with_itself_alone():
    # The tasks have the same two vectors, at swapped positions.
    a, b = normal(2, 1, 3)
    there, back = torch.cat([a, b]), torch.cat([b, a])
    captured = Captured(
        task_ids=torch.tensor([0, 0, 1, 1]),
        valid=torch.ones(4, 2, dtype=torch.bool),
        representations={"a": torch.stack([there, there, back, back])},
    )
    assert AlignMMD().loss(captured).item() == pytest.approx(0, abs=1e-12)
    assert AlignMMD(pool="position").loss(captured).item() > 0.5


@pytest.mark.parametrize("bandwidths", ["median", "official"])
def test_identical_samples_are_zero(bandwidths):
    x = normal(20, 3)
    part = AlignMMD(bandwidths=bandwidths)
    assert part.loss(of_rows(x, x.flip(0))).item() == pytest.approx(0, abs=1e-12)


def test_far_apart_is_the_kernels_sum():
    # Each task a point, so far from the other that no kernel reaches: 1 + 1 of each of 19.
    x = torch.zeros(3, 2, dtype=torch.float64)
    part = AlignMMD(bandwidths="official")
    assert part.loss(of_rows(x, x + 1e5)).item() == pytest.approx(2 * 19)


def test_gradients_against_finite_differences():
    captured = make_captured(ranks=(2,), length=3)

    def loss(z):
        part = AlignMMD(bandwidths="official")
        return part.loss(make_captured(length=3, representations={"a": z}))

    z = captured.representations["module0"].detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (z,))


def test_gradients_at_a_median_that_stays_against_finite_differences():
    x = normal(10, 2)
    distances = {(i, j): (x[i] - x[j]).square().sum() for i, j in combinations(range(10), 2)}
    # Small steps of samples other than these two leave the median of the 45 where it is.
    of_median = sorted(distances, key=lambda pair: distances[pair].item())[22]
    others = torch.tensor([i for i in range(10) if i not in of_median])

    def loss(moved):
        return AlignMMD().loss(of_rows(*x.index_copy(0, others, moved).view(2, 5, 2)))

    assert torch.autograd.gradcheck(loss, (x[others].requires_grad_(),))


def test_the_sum_to_the_mixture_is_half_the_mean_over_pairs():
    # sum_i MMD^2(i, mixture) = 1/(2M) sum_ij MMD^2(i, j), by kernel means and no distance.
    rows = [normal(6, 2, seed=seed) + seed for seed in range(3)]
    part = AlignMMD(bandwidths="official", reduction="sum_pairs")
    of_pairs = part.loss(of_rows(*rows)).item()
    to_mixture = sum(part.loss(of_rows(torch.cat([row] * 3), torch.cat(rows))) for row in rows)
    assert float(to_mixture) == pytest.approx(2 * of_pairs / (2 * 3))


def test_shrinking_is_a_way_out_of_the_official_kernels():
    captured = make_captured()
    losses = []
    for scale in (1.0, 1e-2, 1e-4, 1e-6):
        small = {name: scale * z for name, z in captured.representations.items()}
        part = AlignMMD(bandwidths="official")
        losses.append(part.loss(make_captured(representations=small)).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1
    assert losses[-1] < 1e-5


def test_unbiased_is_around_zero_for_one_distribution():
    found = [
        AlignMMD(estimator="unbiased").loss(of_rows(*normal(2, 20, 3, seed=seed))).item()
        for seed in range(40)
    ]
    biased = [AlignMMD().loss(of_rows(*normal(2, 20, 3, seed=seed))).item() for seed in range(40)]
    error = torch.tensor(found).std().item() / 40**0.5
    assert abs(sum(found) / 40) < 3 * error
    assert min(found) < 0 < min(biased)


def test_most_samples_equal():
    # The median distance is 0: what is left is a kernel of the least width, and finite.
    z = torch.zeros(2, 8, 2)
    z[1, 0] = 3.0
    z.requires_grad_()
    captured = of_rows(*z)
    loss = AlignMMD().loss(captured)
    # Task 1 is 7/8 at 0 and 1/8 elsewhere: (1/8)^2 + (1 - 7/8)^2.
    assert loss.item() == pytest.approx(2 / 64)
    (gradient,) = torch.autograd.grad(loss, [z])
    assert gradient.isfinite().all()


def test_ranges_of_its_own():
    with pytest.raises(ValueError, match="min_count: 1 lets tasks with one in; take at least 2"):
        AlignMMD(estimator="unbiased", min_count=1)
