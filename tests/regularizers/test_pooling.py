from typing import get_args

import pytest
import torch

from coadapt.regularizers import AlignKL, AlignMMD, Captured
from coadapt.regularizers.pooling import Pool, pool_samples, spread
from tests.reference.slow_regularizers import groups_of_samples, make_captured

POOLS = get_args(Pool)
PARTS = [AlignKL(), AlignMMD(max_tokens=None)]


def pooled(captured, pool="token", tokens="all", **counts):
    options = {"pool": pool, "tokens": tokens, "max_tokens": None, "min_count": 2}
    return pool_samples(captured, **{**options, **counts})


def in_order(vectors):
    return torch.tensor(sorted(vector.tolist() for vector in vectors), dtype=torch.float64)


def by_task(samples):
    """As `groups_of_samples`, without the tasks' names; each task's samples sorted."""
    return [
        [in_order(values[row.bool()]) for row in member if row.any()]
        for values, member in zip(samples.values, samples.member, strict=True)
    ]


@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
@pytest.mark.parametrize("pool", POOLS)
def test_samples_against_a_loop(pool, tokens):
    captured = make_captured(ranks=(3,), tasks=(0, 2, 0, 2, 5, 5, 3))
    found = by_task(pooled(captured, pool, tokens))
    expected = [
        [in_order(group[task]) for task in sorted(group)]
        for group in groups_of_samples(captured, "module0", pool, tokens)
    ]
    if pool == "position":  # those with a single task are left out
        expected = [group for group in expected if len(group) > 1]
    assert len(found) == len(expected) > 0
    for group, other in zip(found, expected, strict=True):
        torch.testing.assert_close(group, other)


def test_modules_of_any_rank_stand_side_by_side():
    captured = make_captured(ranks=(1, 4, 2))
    samples = pooled(captured)
    assert samples.ranks == (1, 4, 2)
    for part, z in zip(
        samples.values[0].split((1, 4, 2), dim=-1), captured.representations.values(), strict=True
    ):
        torch.testing.assert_close(part, z[captured.valid])


def test_a_half_precision_batch_gets_float32_statistics():
    captured = make_captured()
    halves = {name: z.bfloat16() for name, z in captured.representations.items()}
    half = make_captured(representations=halves)
    assert pooled(half).values.dtype == torch.float32
    for part in PARTS:
        assert part.loss(half).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = part.loss(half)
        assert inside == part.loss(half)


def test_few_samples_leave_a_task_out():
    captured = make_captured(tasks=(0, 2, 0, 2, 5))
    assert pooled(captured, "last").member.shape == (1, 2, 5)
    assert pooled(captured, "last", min_count=1).member.shape == (1, 3, 5)
    assert pooled(captured, "last", min_count=3).member.shape == (1, 0, 5)


def test_tokens_are_thinned_evenly_and_alike_each_time():
    z = torch.arange(40.0)[:, None].expand(40, 1).reshape(4, 10, 1)
    captured = Captured(
        task_ids=torch.tensor([0, 1, 0, 0]),
        valid=torch.ones(4, 10, dtype=torch.bool),
        representations={"a": z},
    )
    found = by_task(pooled(captured, max_tokens=4))
    # Of task 0 the rows 0, 2 and 3: 30 tokens, of which the steps are 0, 9, 19 and 29.
    assert [group[:, 0].tolist() for group in found[0]] == [[0, 9, 29, 39], [10, 13, 16, 19]]
    everything = pooled(captured, max_tokens=30)
    assert everything.counts.tolist() == [[30, 10]]


def test_rows_without_a_chosen_token_are_no_samples():
    captured = make_captured()
    learned = torch.zeros_like(captured.valid)
    learned[2:] = True
    captured = make_captured(learned=learned)
    assert pooled(captured, "sequence", "answer").values.shape[1] == 4
    assert pooled(captured, "last", "answer").values.shape[1] == 4
    assert pooled(captured, "sequence", "prompt").values.shape[1] == 2


def test_a_packed_batch_has_tokens_and_no_rows():
    rows = make_captured(ranks=(3,))
    packed = Captured(
        task_ids=rows.position_tasks.reshape(1, -1),
        valid=rows.valid.reshape(1, -1),
        learned=rows.chosen("answer").reshape(1, -1),
        representations={"module0": rows.representations["module0"].reshape(1, -1, 3)},
    )
    for part in PARTS:
        torch.testing.assert_close(part.loss(packed), part.loss(rows))
    for pool in POOLS[1:]:
        with pytest.raises(ValueError, match=f"'{pool}' .*packing: false, or pool: token"):
            AlignKL(pool=pool).loss(packed)


def test_prompts_and_answers_of_an_encoder():
    with pytest.raises(ValueError, match="take 'all'"):
        AlignKL(tokens="prompt").loss(make_captured(learned=None))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "abcdefg"), (9, "abcdefg"), (7, "abcdefg"), (3, "adg"), (2, "ag"), (1, "d")],
)
def test_modules_are_spread(limit, expected):
    assert AlignKL(max_modules=limit).select("abcdefg") == tuple(expected)
    assert spread(expected, limit) == tuple(expected)  # once more changes nothing


def test_modules_of_an_alignment_by_default():
    names = [f"m{index}" for index in range(12)]
    assert AlignKL().select(names) == tuple(names)
    assert AlignMMD().select(names) == ("m0", "m3", "m7", "m11")


@pytest.mark.parametrize("part", [AlignKL, AlignMMD], ids=lambda part: part.__name__)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "weight must be at least 0, not -1.0"),
        ({"max_modules": 0}, "max_modules must be at least 1, not 0"),
        ({"max_tokens": 1}, "max_tokens must be at least 2, not 1"),
        ({"min_count": 0}, "min_count must be at least 1, not 0"),
    ],
    ids=str,
)
def test_ranges(part, changes, message):
    with pytest.raises(ValueError, match=message):
        part(**changes)


# What holds of both alignments


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", [AlignKL, AlignMMD], ids=lambda kind: kind.__name__)
class TestBoth:
    def part(self, kind, pool, **changes):
        return kind(pool=pool, max_tokens=None, **changes)

    def test_rows_and_names_of_tasks_do_not_matter(self, kind, pool):
        captured, part = make_captured(), self.part(kind, pool)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        turned = make_captured(
            task_ids=(7 - captured.task_ids)[order],
            valid=captured.valid[order],
            representations={name: z[order] for name, z in captured.representations.items()},
        )
        torch.testing.assert_close(part.loss(turned), part.loss(captured))

    @pytest.mark.parametrize("content", [1e4, float("nan")], ids=["large", "nan"])
    def test_padding_does_not_matter(self, kind, pool, content):
        captured, part = make_captured(), self.part(kind, pool)
        padding = ~captured.valid[..., None]
        filled = make_captured(
            representations={
                name: z.detach().masked_fill(padding, content).requires_grad_()
                for name, z in captured.representations.items()
            }
        )
        loss = part.loss(filled)
        torch.testing.assert_close(loss, part.loss(captured))
        for gradient in torch.autograd.grad(loss, list(filled.representations.values())):
            assert gradient.abs().sum() > 0
            assert not gradient[~filled.valid].any()

    def test_a_scale_of_all_does_not_matter(self, kind, pool):
        captured, part = make_captured(), self.part(kind, pool)
        larger = {name: 1e3 * z for name, z in captured.representations.items()}
        torch.testing.assert_close(
            part.loss(make_captured(representations=larger)), part.loss(captured)
        )

    def test_one_task_is_an_exact_zero_with_a_graph(self, kind, pool):
        captured = make_captured(tasks=(4, 4, 4, 4))
        loss = self.part(kind, pool).loss(captured)
        assert loss.item() == 0.0
        assert loss.requires_grad
        loss.backward()
        for z in captured.representations.values():
            assert z.grad is not None
            assert not z.grad.any()

    def test_a_second_task_with_one_sample_is_as_one_task(self, kind, pool):
        captured = make_captured(tasks=(4, 4, 4, 0))
        if pool == "token":
            valid = captured.valid.clone()
            valid[3, 1:] = False
            captured = make_captured(tasks=(4, 4, 4, 0), valid=valid)
        assert self.part(kind, pool).loss(captured).item() == 0.0

    def test_no_rows(self, kind, pool):
        captured = Captured(
            task_ids=torch.zeros(0, dtype=torch.long),
            valid=torch.zeros(0, 5, dtype=torch.bool),
            representations={"a": torch.zeros(0, 5, 3, requires_grad=True)},
        )
        loss = self.part(kind, pool).loss(captured)
        assert loss.item() == 0.0
        assert loss.requires_grad

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_constant_representations_are_finite(self, kind, pool, dtype):
        # 0.1 is none of the floating-point numbers, so sums round.
        constant = torch.full((6, 5, 3), 0.1, dtype=dtype, requires_grad=True)
        captured = make_captured(representations={"a": constant})
        loss = self.part(kind, pool).loss(captured)
        assert abs(loss.item()) < 1e-6
        (gradient,) = torch.autograd.grad(loss, [constant])
        assert gradient.abs().max() < 1e-2

    def test_sum_over_pairs(self, kind, pool):
        captured = make_captured(length=9)  # three tasks, three pairs
        mean = self.part(kind, pool).loss(captured)
        summed = self.part(kind, pool, reduction="sum_pairs").loss(captured)
        torch.testing.assert_close(summed, 3 * mean)

    def test_modules_are_averaged(self, kind, pool):
        captured, part = make_captured(ranks=(2, 4, 3)), self.part(kind, pool)
        alone = [
            part.loss(make_captured(ranks=(2, 4, 3), representations={name: z}))
            for name, z in captured.representations.items()
        ]
        torch.testing.assert_close(part.loss(captured), torch.stack(alone).mean())
