"""Merged updates against closed forms, an entry by entry oracle, and PEFT's functions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from coadapt._errors import InputError
from coadapt.merging import Merge, merge_folds
from coadapt.merging.combining import refactor
from tests.reference.slow_merging import slow_elect, slow_trim

SHAPES = {"query": (7, 5), "value": (4, 9), "wide": (3, 3)}  # out, in
NAMES = ("a", "b", "c")
METHODS = ["average", "task_arithmetic", "dare", "dare_task_arithmetic", "ties", "dare_ties"]


def random_fold(seed, rank=2, shapes=SHAPES):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, width, generator=rng), torch.randn(out, rank, generator=rng))
        for name, (out, width) in shapes.items()
    }


def exact_fold(deltas):
    """Return a fold that multiplies out to just these entries: A is the identity."""
    return {name: (torch.eye(delta.shape[1]), delta) for name, delta in deltas.items()}


def whole_fold(seed, levels, shapes=SHAPES):
    """Return updates whose entries are small whole numbers, many of equal magnitude or zero."""
    rng = torch.Generator().manual_seed(seed)
    made = {n: torch.randint(-levels, levels + 1, s, generator=rng) for n, s in shapes.items()}
    return exact_fold({name: delta.float() for name, delta in made.items()})


def dense(fold):
    return {name: B @ A for name, (A, B) in fold.items()}


def close(found, wanted, atol=1e-5):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], torch.as_tensor(value), rtol=1e-5, atol=atol)


FOLDS = [random_fold(seed, rank) for seed, rank in enumerate((2, 1, 3))]


def merged_by(folds=FOLDS, names=NAMES, seed=0, **fields):
    return merge_folds(folds, names[: len(folds)], Merge(**fields), seed)


# Sums and means ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "share"), [("average", 1 / 3), ("task_arithmetic", 1.0)])
def test_average_and_sum_are_exact_factors(method, share):
    found = merged_by(method=method, weight=0.7)
    wanted = {name: sum(0.7 * share * dense(fold)[name] for fold in FOLDS) for name in SHAPES}
    close(dense(found.factors), wanted)
    assert (found.error, found.no_sign) == (0.0, None)
    assert found.ranks == dict.fromkeys(SHAPES, 6)


def test_one_adapter_stays_what_it_is():
    alone = dense(FOLDS[0])
    for method in ("average", "task_arithmetic"):
        close(dense(merged_by(FOLDS[:1], method=method).factors), alone)
    for method in ("dare", "dare_task_arithmetic", "ties", "dare_ties"):
        found = merged_by(FOLDS[:1], method=method, density=1.0)
        close(dense(found.factors), alone)
        assert found.ranks == dict.fromkeys(SHAPES, 2)  # no more than the adapter's own
    trimmed = merged_by(FOLDS[:1], method="ties", density=0.3)
    wanted = slow_trim(alone, "0.3", together=True)
    close(dense(trimmed.factors), wanted)


def test_nothing_dropped_is_the_average_or_the_sum():
    for dare, plain in (("dare", "average"), ("dare_task_arithmetic", "task_arithmetic")):
        found = merged_by(method=dare, density=1.0, weight=0.5)
        close(dense(found.factors), dense(merged_by(method=plain, weight=0.5).factors))


def test_identical_updates():
    same, delta = [FOLDS[0]] * 3, dense(FOLDS[0])
    close(dense(merged_by(same, method="ties", density=1.0).factors), delta)
    close(dense(merged_by(same, method="average").factors), delta)
    three = {name: 3 * value for name, value in delta.items()}
    close(dense(merged_by(same, method="task_arithmetic").factors), three)


def test_opposite_updates_are_nothing_and_counted():
    opposite = [FOLDS[0], {name: (A, -B) for name, (A, B) in FOLDS[0].items()}]
    ties = merged_by(opposite, method="ties", density=1.0)
    assert ties.no_sign == 1.0
    assert "cancel to no sign" in ties.notes[0]
    for found in (ties, merged_by(opposite, method="average")):
        close(dense(found.factors), {name: torch.zeros(shape) for name, shape in SHAPES.items()})
    assert ties.ranks == dict.fromkeys(SHAPES, 1)  # a plan has no block of rank 0
    # What is trimmed away by all has no sign to have, which is not a vote that was tied.
    assert merged_by(opposite, method="ties", density=0.5).no_sign == pytest.approx(0.5, abs=0.01)


# TIES ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(["0.01", "0.1", "0.2", "0.5", "0.9", "1.0"]),
    st.sampled_from(["global", "tensor"]),
    st.integers(1, 4),
)
def test_ties_against_entry_by_entry(seed, levels, density, scope, num):
    folds = [whole_fold(seed + task, levels) for task in range(num)]
    names = [f"task{index}" for index in range(num)]
    method = Merge(method="ties", density=float(density), scope=scope, weight=0.6)
    found = merge_folds(folds, names, method)
    together = scope == "global"
    trimmed = [slow_trim(dense(fold), density, together=together) for fold in folds]
    wanted, without = slow_elect(trimmed, 0.6)
    close(dense(found.factors), wanted)
    size = sum(out * width for out, width in SHAPES.values())
    assert found.no_sign == pytest.approx(without / size)


def test_scopes_differ_where_modules_do():
    scales = {"query": 100, "value": 1, "wide": 1}
    large = {name: (A, B * scales[name]) for name, (A, B) in FOLDS[0].items()}
    by_all = dense(merged_by([large], method="ties", density=0.3).factors)
    alone = dense(merged_by([large], method="ties", density=0.3, scope="tensor").factors)
    nonzero = {n: int((by_all[n].abs() > 1e-3).sum()) for n in SHAPES}
    assert nonzero == {"query": 24, "value": 0, "wide": 0}  # ceil(0.3 * 80) of all
    nonzero = {n: int((alone[n].abs() > 1e-3).sum()) for n in SHAPES}
    assert nonzero == {"query": 11, "value": 11, "wide": 3}


@pytest.mark.parametrize("density", [0.2, 0.4, 0.6])
def test_ties_by_tensor_is_peft_s_on_updates(density):
    shapes = {"query": (5, 6), "value": (10, 4)}  # sizes of which a density is a whole number
    folds = [random_fold(seed, shapes=shapes) for seed in range(3)]
    found = merged_by(folds, method="ties", density=density, scope="tensor", weight=1.5)
    weights = torch.full((3,), 1.5)
    wanted = {
        name: merge_utils.ties([dense(fold)[name] for fold in folds], weights, density)
        for name in shapes
    }
    close(dense(found.factors), wanted)
    assert found.no_sign == 0.0  # without which PEFT and we elect alike


# DARE ------------------------------------------------------------------------------------------


def test_dare_has_the_mean_and_variance_that_it_claims():
    delta = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    fold, method = exact_fold({"query": delta}), Merge(method="dare", density=0.4)
    num = 10_000
    drawn = torch.stack(
        [dense(merge_folds([fold], ["a"], method, seed).factors)["query"] for seed in range(num)]
    ).double()
    variance = delta.double() ** 2 * 0.6 / 0.4
    mean_error = (variance / num).sqrt()
    assert ((drawn.mean(0) - delta).abs() <= 5 * mean_error).all()
    q = 0.4  # of a Bernoulli(q): the fourth central moment gives the variance's standard error
    fourth = (delta.double() / q) ** 4 * q * (1 - q) * (1 - 3 * q * (1 - q))
    variance_error = ((fourth - variance**2) / num).sqrt()
    assert ((drawn.var(0) - variance).abs() <= 5 * variance_error).all()


def test_dare_keeps_entries_with_their_value_or_rescaled():
    fold = random_fold(3, shapes={"query": (40, 50)})
    delta = dense(fold)["query"]
    for rescale, value in ((True, delta / 0.3), (False, delta)):
        found = merged_by([fold], method="dare", density=0.3, rescale=rescale)
        update = dense(found.factors)["query"]
        kept = update.abs() > 1e-4
        assert kept.float().mean() == pytest.approx(0.3, abs=0.05)
        torch.testing.assert_close(update, torch.where(kept, value, 0.0), rtol=1e-4, atol=1e-4)


def test_masks_of_tasks_and_modules_are_their_own():
    shapes = {"query": (30, 30), "value": (30, 30)}
    ones = exact_fold({name: torch.ones(shape) for name, shape in shapes.items()})
    by_name = {
        name: dense(merge_folds([ones], [name], Merge(method="dare", density=0.5)).factors)
        for name in ("a", "b")
    }
    masks = [by_name[name][module] > 1 for name in ("a", "b") for module in shapes]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert (mask == other).float().mean() < 0.6


def test_dare_ties_elects_among_what_is_left():
    shapes = {"query": (12, 15)}
    folds = [random_fold(seed, shapes=shapes) for seed in range(3)]
    dropped = [
        dense(merge_folds([fold], [name], Merge(method="dare", density=0.5), 9).factors)["query"]
        for fold, name in zip(folds, NAMES, strict=True)
    ]
    # A singular value decomposition leaves rounding where the mask left zeros.
    tasks = [{"query": torch.where(d.abs() < 1e-5, 0.0, d).double().tolist()} for d in dropped]
    wanted, without = slow_elect(tasks, 2.0)
    found = merged_by(folds, method="dare_ties", density=0.5, weight=2.0, seed=9)
    close(dense(found.factors), wanted, atol=1e-4)
    assert found.no_sign == without / 180


def test_dare_says_where_updates_are_large():
    found = merged_by(method="dare")
    largest = {
        name: max(float(d.abs().max()) for d in dense(fold).values())
        for name, fold in zip(NAMES, FOLDS, strict=True)
    }
    assert found.largest == pytest.approx(largest)
    assert "largest |delta|: a " in found.notes[0]
    small = [{name: (A, 1e-5 * B) for name, (A, B) in fold.items()} for fold in FOLDS]
    assert merged_by(small, method="dare").notes == ()
    assert merged_by(method="ties").notes == ()


# All of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_adapters_does_not_matter(method):
    found = merged_by(method=method, seed=4)
    turned = merge_folds(FOLDS[::-1], NAMES[::-1], Merge(method=method), 4)
    other = merged_by(method=method, seed=5)
    for name, pair in found.factors.items():
        assert all(map(torch.equal, pair, turned.factors[name]))
    changed = any(
        A.shape != other.factors[name][0].shape or not torch.equal(A, other.factors[name][0])
        for name, (A, _) in found.factors.items()
    )
    assert changed == method.startswith("dare")


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("method", ["average", "ties", "dare"])
def test_the_error_is_that_of_the_discarded_singular_values(method, rank):
    whole, cut = merged_by(method=method), merged_by(method=method, rank=rank)
    assert whole.error < 1e-6
    lost = total = 0.0
    for name, delta in dense(whole.factors).items():
        squares = torch.linalg.svdvals(delta.double()) ** 2
        lost, total = lost + float(squares[rank:].sum()), total + float(squares.sum())
        found = cut.factors[name]
        assert found[0].shape[0] == rank
        assert float(((found[1] @ found[0]) - delta).norm()) == pytest.approx(
            math.sqrt(float(squares[rank:].sum())), abs=1e-4
        )
    assert cut.error == pytest.approx(math.sqrt(lost / total), rel=1e-4, abs=1e-6)
    assert f"cut to rank {rank}" in cut.notes[-1]


def test_a_rank_that_holds_everything_cuts_nothing():
    for method in ("average", "ties"):
        found = merged_by(method=method, rank=50)
        close(dense(found.factors), dense(merged_by(method=method).factors))
        assert found.error < 1e-6
        assert found.notes == ()
        assert max(found.ranks.values()) <= 6


def test_factors_share_the_singular_values():
    A, B, lost, whole = refactor(dense(FOLDS[0])["query"])
    values = torch.linalg.svdvals(dense(FOLDS[0])["query"])[:2]
    torch.testing.assert_close((A**2).sum(1), values)
    torch.testing.assert_close((B**2).sum(0), values)
    assert lost <= 1e-12 * whole
    assert whole == pytest.approx(float((values**2).sum()))


def test_plain_data_go_into_json():
    plain = merged_by(method="ties", rank=1).to_plain()
    assert list(plain) == ["ranks", "error", "largest", "no_sign", "notes"]
    assert plain["ranks"] == [1, 1]
    assert list(plain["largest"]) == list(NAMES)


# What is refused -------------------------------------------------------------------------------


def test_folds_that_do_not_fit_are_refused():
    fold = FOLDS[0]
    broken = {**fold, "value": (fold["value"][0] * math.inf, fold["value"][1])}
    for folds, names, message in (
        ([], [], "there is no adapter"),
        ([fold], ["a", "b"], "1 adapters but 2 names"),
        ([fold, fold], ["a", "a"], "two of the adapters are called 'a'"),
        ([fold, {"query": fold["query"]}], ["a", "b"], "'a' adapts module 'value', which 'b'"),
        ([fold, {**fold, "query": fold["value"]}], ["a", "b"], "different base models"),
        ([fold, broken], ["a", "b"], "'b' has values in module 'value' that are not finite"),
    ):
        with pytest.raises(InputError, match=message):
            merge_folds(folds, names, Merge(method="ties"))
