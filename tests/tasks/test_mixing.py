import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.tasks import Proportional, StepBatchSampler, Temperature, Uniform

NAMES = ("long", "mid", "short")
SIZES = (37, 14, 6)


def make_sampler(names=NAMES, sizes=SIZES, **options) -> StepBatchSampler:
    """A sampler over rows whose lengths a task draws from a stream of its own."""
    lengths = [
        np.random.default_rng(len(name)).integers(3, 40, size)
        for name, size in zip(names, sizes, strict=True)
    ]
    defaults = {"mixing": Proportional(), "per_device_batch_size": 8, "bucket": 2, "seed": 0}
    return StepBatchSampler(
        lengths=np.concatenate(lengths),
        task_ids=np.repeat(np.arange(len(names)), sizes),
        task_names=names,
        **(defaults | options),
    )


def epochs(sampler, count=3):
    """The batches of several epochs."""
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def steps(samplers, accumulation, count=3):
    """The set of rows of each optimizer step, over all ranks, as the Trainer groups the batches."""
    ranks = [[b for epoch in epochs(s, count) for b in epoch] for s in samplers]
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) % accumulation == 0
    return [
        sorted(row for rank in ranks for b in rank[i : i + accumulation] for row in b)
        for i in range(0, len(ranks[0]), accumulation)
    ]


@pytest.mark.parametrize("composition", ["mixed", "balanced", "single_task"])
@pytest.mark.parametrize("sizes", [SIZES, (40, 16, 8), (1, 1, 1)], ids=str)
def test_the_steps_depend_on_the_number_of_rows_alone(sizes, composition):
    options = {"sizes": sizes, "composition": composition}
    eight = steps([make_sampler(**options)], 1)
    for per_device, accumulation, world in [(1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (1, 2, 4)]:
        ranks = [
            make_sampler(
                per_device_batch_size=per_device,
                gradient_accumulation_steps=accumulation,
                world_size=world,
                rank=rank,
                **options,
            )
            for rank in range(world)
        ]
        assert steps(ranks, accumulation) == eight


@pytest.mark.parametrize("composition", ["mixed", "balanced", "single_task"])
def test_every_step_has_its_micro_batches_and_no_rank_has_more_than_fits(composition):
    for rank in range(2):
        sampler = make_sampler(
            per_device_batch_size=2,
            gradient_accumulation_steps=3,
            world_size=2,
            rank=rank,
            composition=composition,
        )
        for epoch in epochs(sampler):
            assert len(epoch) == len(sampler)
            assert len(epoch) % 3 == 0
            assert all(len(batch) <= 2 for batch in epoch)
            assert all(isinstance(row, int) for batch in epoch for row in batch)


def test_each_row_comes_once_an_epoch_and_the_order_changes():
    first, second, third = epochs(make_sampler())
    for epoch in (first, second, third):
        assert sorted(row for batch in epoch for row in batch) == list(range(sum(SIZES)))
        assert [len(batch) for batch in epoch] == [8] * 7 + [1]  # the short one is last
    assert first != second != third
    assert epochs(make_sampler()) == [first, second, third]
    assert epochs(make_sampler(seed=1))[0] != first


def test_an_epoch_can_be_entered_without_those_before():
    sampler = make_sampler(mixing=Uniform())
    expected = epochs(sampler, 4)[3]
    fresh = make_sampler(mixing=Uniform())
    fresh.set_epoch(3)
    assert list(fresh) == expected
    assert list(fresh) == expected  # and again: iteration leaves no trace


def test_no_rank_and_no_global_state_decides():
    np.random.seed(0)  # noqa: NPY002 (the very state that must not matter)
    before = str(np.random.get_state())  # noqa: NPY002
    batches = epochs(make_sampler())
    assert str(np.random.get_state()) == before  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert epochs(make_sampler()) == batches


@pytest.mark.parametrize("mixing", [Proportional(), Uniform(), Temperature(temperature=3.0)])
@pytest.mark.parametrize("composition", ["mixed", "balanced", "single_task"])
def test_counts_are_the_quotas(mixing, composition):
    sampler = make_sampler(mixing=mixing, composition=composition)
    drawn_by = Uniform() if composition == "balanced" else mixing
    quotas = dict(zip(NAMES, drawn_by.quotas(SIZES), strict=True))
    task_of = np.repeat(np.arange(3), SIZES).tolist()
    for epoch, batches in enumerate(epochs(sampler)):
        sampler.set_epoch(epoch)
        drawn = Counter(NAMES[task_of[row]] for batch in batches for row in batch)
        assert sampler.counts() == dict(drawn) == quotas


def test_a_small_task_runs_through_whole_passes():
    sampler = make_sampler(mixing=Uniform())  # 19 draws an epoch of 6 rows
    drawn = Counter(row for epoch in epochs(sampler, 6) for batch in epoch for row in batch)
    short = [drawn[row] for row in range(37 + 14, sum(SIZES))]
    assert set(short) == {19}  # 6 epochs x 19 draws are 19 passes
    long = [drawn[row] for row in range(37)]
    assert set(long) <= {3, 4}  # 114 draws of 37 rows


def test_single_task_batches_hold_one_task():
    task_of = np.repeat(np.arange(3), SIZES).tolist()
    batches = [
        batch for epoch in epochs(make_sampler(composition="single_task")) for batch in epoch
    ]
    assert all(len({task_of[row] for row in batch}) == 1 for batch in batches)
    turns = [int(task_of[batch[0]]) for batch in batches]
    assert turns != sorted(turns)
    mixed = [batch for epoch in epochs(make_sampler()) for batch in epoch]
    assert any(len({task_of[row] for row in batch}) > 1 for batch in mixed)


@pytest.mark.parametrize("per_device", [3, 6, 8])
def test_balanced_micro_batches_hold_every_task_alike(per_device):
    task_of = np.repeat(np.arange(3), SIZES)
    ranks = [
        make_sampler(
            composition="balanced",
            per_device_batch_size=per_device,
            gradient_accumulation_steps=2,
            world_size=2,
            rank=rank,
        )
        for rank in range(2)
    ]
    for sampler in ranks:
        for epoch in epochs(sampler):
            for batch in epoch[:-2]:  # of the last, short step not
                counts = np.bincount(task_of[batch], minlength=3)
                assert len(batch) == per_device
                assert counts.max() - counts.min() <= 1


def test_balanced_batches_pad_less_than_random_ones():
    sizes = (400, 300, 100)
    lengths = np.concatenate(
        [
            np.random.default_rng(len(n)).integers(3, 40, s)
            for n, s in zip(NAMES, sizes, strict=True)
        ]
    )

    def padding(bucket: int) -> float:
        sampler = make_sampler(sizes=sizes, composition="balanced", bucket=bucket)
        batches = [lengths[batch] for batch in epochs(sampler, 1)[0]]
        return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)

    assert padding(16) < 0.5 * padding(1)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("task", range(3))
def test_a_tasks_batches_are_those_it_has_alone(task, accumulation):
    options = {
        "composition": "single_task",
        "per_device_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    offset = sum(SIZES[:task])
    rows = range(offset, offset + SIZES[task])
    joint = epochs(make_sampler(**options))
    alone = epochs(
        make_sampler(names=NAMES[task : task + 1], sizes=SIZES[task : task + 1], **options)
    )
    for together, single in zip(joint, alone, strict=True):
        mine = [
            [row - offset for batch in together[i : i + accumulation] for row in batch]
            for i in range(0, len(together), accumulation)
            if set().union(*together[i : i + accumulation]) <= set(rows)
        ]
        assert mine == [
            [row for batch in single[i : i + accumulation] for row in batch]
            for i in range(0, len(single), accumulation)
        ]


def test_a_tasks_stream_does_not_depend_on_the_others():
    joint = make_sampler()
    alone = make_sampler(names=NAMES[1:2], sizes=SIZES[1:2])
    for epoch in range(3):
        joint.set_epoch(epoch)
        alone.set_epoch(epoch)
        assert (joint._draws(1) - SIZES[0]).tolist() == alone._draws(0).tolist()


def test_buckets_save_padding():
    shares = []
    for bucket in (1, 4, 100):
        sampler = make_sampler(sizes=(370, 140, 60), bucket=bucket)
        padded = real = 0
        lengths = sampler._lengths
        for batch in sampler:
            padded += max(lengths[batch]) * len(batch)
            real += sum(lengths[batch])
        assert sampler.padding_share() == pytest.approx(1 - real / padded)
        shares.append(sampler.padding_share())
    assert shares[0] > 1.5 * shares[1] > shares[2]


def test_padding_is_counted_over_all_ranks():
    ranks = [make_sampler(world_size=2, rank=rank, per_device_batch_size=4) for rank in range(2)]
    assert ranks[0].padding_share() == ranks[1].padding_share()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"per_device_batch_size": 0}, "per_device_batch_size is 0; give 1 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"bucket": 0}, "bucket is 0"),
        ({"sizes": (3, 0, 2)}, "task 'mid' has no training rows"),
    ],
)
def test_sampler_refuses(option, message):
    with pytest.raises(InputError, match=message):
        make_sampler(**option)


sizes_lists = st.lists(st.integers(1, 10_000), min_size=1, max_size=8)


@settings(deadline=None)
@given(sizes_lists, st.floats(0.01, 1e6))
def test_quotas_add_up_and_keep_the_order(sizes, temperature):
    for mixing in (Proportional(), Uniform(), Temperature(temperature=temperature)):
        quotas = mixing.quotas(sizes)
        assert sum(quotas) == sum(sizes)
        assert all(quota >= 0 for quota in quotas)
    quotas = Temperature(temperature=temperature).quotas(sizes)
    for a, qa in zip(sizes, quotas, strict=True):
        for b, qb in zip(sizes, quotas, strict=True):
            assert not (a > b and qa < qb)


@settings(deadline=None)
@given(sizes_lists)
def test_temperature_lies_between_proportional_and_uniform(sizes):
    assert Temperature(temperature=1.0).quotas(sizes) == Proportional().quotas(sizes) == sizes
    for mixing in (Temperature(temperature=1e9), Uniform()):
        assert max(mixing.quotas(sizes)) - min(mixing.quotas(sizes)) <= 1


def test_temperature_against_its_formula():
    weights = [math.sqrt(n) for n in (900, 100)]
    assert Temperature(temperature=2.0).quotas([900, 100]) == [
        round(1000 * w / sum(weights)) for w in weights
    ]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperature_refuses(temperature):
    with pytest.raises(InputError, match="give a number above 0"):
        Temperature(temperature=temperature)
