"""Weighted sums of factors and of updates against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.merging import check_composable, compose_deltas, compose_factors
from tests.reference.slow_hub import dense_of_deltas, dense_of_factors

SHAPES = {"query": (7, 5), "value": (4, 9)}  # out, in


def adapters(num, rank, seed=0, ranks=None):
    """Return ``{module: (A, B)}`` of each adapter, B without a scale."""
    rng = torch.Generator().manual_seed(seed)
    return [
        {
            name: (
                torch.randn(r, width, generator=rng),
                torch.randn(out, r, generator=rng),
            )
            for name, (out, width) in SHAPES.items()
        }
        for r in ranks or [rank] * num
    ]


def folded(adapter, scale):
    return {name: (A, scale * B) for name, (A, B) in adapter.items()}


def product(composed, name):
    A, B = composed.factors[name]
    return B @ A


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.3])
def test_factors_have_the_cross_terms_and_one_scale(scale):
    found, weights = adapters(3, 2), [0.7, -1.2, 0.4]
    composed = compose_factors([folded(adapter, scale) for adapter in found], weights)
    assert composed.error == 0.0
    for name in SHAPES:
        dense = dense_of_factors(scale, [adapter[name] for adapter in found], weights)
        close(product(composed, name), dense)
        assert composed.factors[name][0].shape[0] == 2


def test_factors_are_no_sum_of_updates():
    found, weights = adapters(2, 2), [1.0, 1.0]
    composed = compose_factors(found, weights)
    dense = dense_of_deltas([1.0, 1.0], [adapter["query"] for adapter in found], weights)
    assert (product(composed, "query") - dense).norm() > 0.1 * dense.norm()


@settings(max_examples=20)
@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_negated_weights_make_the_same_update_of_factors(weights):
    found = adapters(3, 2)
    one, other = (compose_factors(found, [sign * w for w in weights]) for sign in (1, -1))
    for name in SHAPES:
        assert torch.equal(product(one, name), product(other, name))


@pytest.mark.parametrize("weight", [0.0, 0.5, -0.5, 2.0])
def test_a_single_adapter_acts_as_the_square_of_its_weight(weight):
    (found,) = adapters(1, 3)
    for name, (A, B) in found.items():
        close(product(compose_factors([found], [weight]), name), weight**2 * (B @ A))
        close(product(compose_deltas([found], [weight]), name), weight * (B @ A))


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2)], ids=str)
def test_deltas_are_exact_at_the_summed_rank(ranks):
    found, weights, scales = adapters(3, 0, ranks=ranks), [0.7, -1.2, 0.4], [2.0, 0.5, 1.0]
    folds = [folded(adapter, scale) for adapter, scale in zip(found, scales, strict=True)]
    composed = compose_deltas(folds, weights)
    assert composed.error == 0.0
    for name in SHAPES:
        dense = dense_of_deltas(scales, [adapter[name] for adapter in found], weights)
        close(product(composed, name), dense)
        assert composed.factors[name][0].shape[0] == 6


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_cut_update_is_the_nearest_of_its_rank(rank):
    found, weights = adapters(3, 2), [0.7, -1.2, 0.4]
    composed = compose_deltas(found, weights, rank=rank)
    lost = whole = 0.0
    for name in SHAPES:
        dense = dense_of_deltas([1.0] * 3, [adapter[name] for adapter in found], weights)
        U, s, Vt = torch.linalg.svd(dense.double())
        best = U[:, :rank] * s[:rank] @ Vt[:rank]
        close(product(composed, name), best.float())
        assert composed.factors[name][0].shape[0] == composed.factors[name][1].shape[1] == rank
        lost, whole = lost + float((s[rank:] ** 2).sum()), whole + float((s**2).sum())
    assert composed.error == pytest.approx((lost / whole) ** 0.5, rel=1e-5, abs=1e-6)


def test_a_rank_that_holds_everything_costs_nothing_and_is_filled_with_zeros():
    found, weights = adapters(2, 1), [0.7, -1.2]
    composed = compose_deltas(found, weights, rank=5)
    assert composed.error < 1e-6
    for name in SHAPES:
        dense = dense_of_deltas([1.0] * 2, [adapter[name] for adapter in found], weights)
        close(product(composed, name), dense)
        A, B = composed.factors[name]
        assert A.shape[0] == B.shape[1] == 5
        assert A[2:].abs().max() == B[:, 2:].abs().max() == 0


@pytest.mark.parametrize("compose", [compose_factors, lambda f, w: compose_deltas(f, w, 2)])
def test_zero_weights_make_no_update(compose):
    composed = compose(adapters(3, 2), [0.0] * 3)
    assert composed.error == 0.0
    assert all(not product(composed, name).any() for name in SHAPES)


def test_the_adapters_stay_as_they_were():
    found = adapters(2, 2)
    for composed in (compose_factors(found, [1.0, 0.5]), compose_deltas(found, [1.0, 0.5], 1)):
        for A, B in composed.factors.values():
            A.zero_()
            B.zero_()
    for adapter, before in zip(found, adapters(2, 2), strict=True):
        for name in SHAPES:
            assert torch.equal(adapter[name][0], before[name][0])
            assert torch.equal(adapter[name][1], before[name][1])


def test_ranks_that_differ_are_refused_for_factors_alone():
    folds, names = adapters(3, 0, ranks=(2, 2, 3)), ["a", "b", "c"]
    message = r"'query' has rank 2 in 'a' and 3 in 'c'.*compose='deltas'"
    with pytest.raises(InputError, match=message):
        check_composable(folds, names)
    with pytest.raises(InputError, match="rank 2 in 'adapter 0' and 3 in 'adapter 2'"):
        compose_factors(folds, [1.0] * 3)
    check_composable(folds, names, compose="deltas")


def test_scales_that_differ_are_refused_for_factors_alone():
    folds, names, scales = adapters(3, 2), ["a", "b", "c"], [2.0, 2.0, 1.0]
    with pytest.raises(InputError, match=r"'a' has scale 2.0 and 'c' 1.0.*compose='deltas'"):
        check_composable(folds, names, scales=scales)
    check_composable(folds, names, scales=scales, compose="deltas")
    check_composable(folds, names, scales=[2.0] * 3)


@pytest.mark.parametrize("compose", ["factors", "deltas"])
def test_other_modules_or_maps_are_refused(compose):
    one, other = adapters(2, 2)
    lacking = {"query": other["query"]}
    for folds, message in {
        "lacks": ([one, lacking], "'a' adapts module 'value', which 'b' does not"),
        "has more": ([lacking, one], "'b' adapts module 'value', which 'a' does not"),
        "map": (
            [one, {**other, "value": (other["value"][0], torch.ones(3, 2))}],
            r"'value' is a map of shape \(4, 9\) in 'a' and \(3, 9\) in 'b'",
        ),
    }.values():
        with pytest.raises(InputError, match=message):
            check_composable(folds, ["a", "b"], compose=compose)


def test_numbers_that_do_not_fit_are_refused():
    folds = adapters(2, 2)
    for message, call in {
        "2 adapters but 1 weights": lambda: compose_factors(folds, [1.0]),
        "2 adapters but 3 weights": lambda: compose_deltas(folds, [1.0] * 3),
        "rank must be at least 1, not 0": lambda: compose_deltas(folds, [1.0] * 2, rank=0),
        "no adapter to compose": lambda: compose_deltas([], []),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
