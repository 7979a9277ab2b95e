"""What a bank of adapters adds: independence of its tasks, and a route that cannot go stale."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from coadapt import InputError
from coadapt.planning import Block, Plan
from coadapt.structures import Bank, Single
from tests.small import (
    MIXED,
    NAMES,
    TASKS,
    blocks_of,
    gradients,
    make_batch,
    make_model,
    randomize,
    take,
)

PLANS = {
    "private": Plan.private(NAMES, 6),
    "clustered": Plan.clustered({"classes": NAMES[:2], "values": NAMES[2:]}, 5),
    "shared_private": Plan.shared_private(NAMES, 8),
}


@pytest.fixture(params=PLANS.values(), ids=list(PLANS))
def plan(request):
    return request.param


def test_one_cluster_is_single_to_the_bit(tiny_bert):
    plan = Plan.shared(NAMES, 4)
    single, bank = (
        randomize(make_model(tiny_bert, structure, plan)) for structure in (Single(), Bank())
    )
    batch = make_batch(MIXED)
    assert torch.equal(single(**batch)["outputs"], bank(**batch)["outputs"])
    mine, exact = gradients(bank, batch), gradients(single, batch)
    assert mine.keys() == exact.keys()
    assert all(torch.equal(mine[name], exact[name]) for name in exact)
    with torch.no_grad():
        assert torch.equal(single(**batch)["outputs"], bank(**batch)["outputs"])


def test_a_task_added_leaves_the_others_bits(tiny_bert, plan):
    """In evaluation batches of one task; the old blocks and heads come from the narrow model."""
    narrow = randomize(make_model(tiny_bert, Bank(), plan)).eval()
    added = replace(TASKS[1], name="added")
    wide_plan = plan.with_task("added", rank=3)
    wide = make_model(tiny_bert, Bank(), wide_plan, tasks=(*TASKS, added)).eval()
    randomize(wide, seed=9)
    known = narrow.state_tensors()
    assert set(known) < set(wide.state_tensors())
    wide.load_state_tensors({**wide.state_tensors(), **known}, "the narrow model")
    for task in range(len(TASKS)):
        assert_same_bits(narrow, wide, task)


def test_a_task_removed_leaves_the_others_bits(tiny_bert, plan):
    wide = randomize(make_model(tiny_bert, Bank(), plan)).eval()
    narrow = make_model(tiny_bert, Bank(), plan.without_task("value"), tasks=TASKS[:2]).eval()
    narrow.load_state_tensors(wide.state_tensors(), "the wide model")
    for task in range(2):
        assert_same_bits(wide, narrow, task)


@torch.no_grad()
def assert_same_bits(one, other, task):
    batch = make_batch((task,) * 5)
    mine, theirs = one(**batch)["outputs"], other(**batch)["outputs"]
    assert mine.shape == (5, TASKS[task].num_outputs)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("grad", [False, True], ids=["evaluating", "training"])
def test_rows_do_not_depend_on_other_tasks_blocks(tiny_bert, plan, grad):
    model = randomize(make_model(tiny_bert, Bank(), plan))
    batch = make_batch(MIXED)
    with torch.set_grad_enabled(grad):
        before = model(**batch)["outputs"]
    for index, name in enumerate(NAMES):
        kept = {n: p.detach().clone() for n, p in blocks_of(model).items()}
        foreign = [n for n in kept if n.split("/")[0] not in plan.blocks_of(name)]
        assert foreign
        with torch.no_grad():
            for n in foreign:
                blocks_of(model)[n].mul_(-100)
        with torch.set_grad_enabled(grad):
            after = model(**batch)["outputs"]
        rows = batch["task_ids"] == index
        assert torch.equal(before[rows], after[rows])
        assert not torch.equal(before[~rows], after[~rows])
        with torch.no_grad():
            for n, p in blocks_of(model).items():
                p.copy_(kept[n])


def test_evaluation_computes_only_the_blocks_at_hand(tiny_bert):
    model = make_model(tiny_bert, Bank(), PLANS["private"])
    gate: Any = next(iter(model.attached.layers.values())).gate
    model(**make_batch((1, 1)))
    assert gate.blocks(model.route) == (0, 1, 2)
    with torch.no_grad():
        model(**make_batch((1, 1)))
        assert gate.blocks(model.route) == (1,)
        model(**make_batch((2, 0)))
        assert gate.blocks(model.route) == (0, 2)


def test_a_layer_without_task_ids_is_refused(tiny_bert, plan):
    model = make_model(tiny_bert, Bank(), plan)
    with pytest.raises(RuntimeError, match=r"got 2 rows but task ids for none; .* with task_ids"):
        model.backbone(input_ids=torch.ones(2, 3, dtype=torch.long))


def test_task_ids_of_another_batch_are_refused(tiny_bert, plan):
    model = make_model(tiny_bert, Bank(), plan)
    model(**make_batch(MIXED))
    with pytest.raises(RuntimeError, match=r"got 2 rows but task ids for 7"):
        model.backbone(input_ids=torch.ones(2, 3, dtype=torch.long))


def test_task_ids_that_do_not_fit_the_rows_are_refused(tiny_bert, plan):
    model = make_model(tiny_bert, Bank(), plan)
    batch = make_batch(MIXED)
    batch["task_ids"] = batch["task_ids"][:3]
    with pytest.raises(RuntimeError, match=r"got 7 rows but task ids for 3"):
        model(**batch)


@pytest.mark.parametrize("structure", [Single(), Bank()], ids=["single", "bank"])
def test_a_plan_with_blocks_of_unequal_rank_scales_them_alike(tiny_bert, structure):
    """The scale is of the structure, not lora_alpha divided by each block's own rank."""
    plan = Plan(blocks={"few": Block(rank=1, tasks=NAMES), "many": Block(rank=5, tasks=NAMES)})
    model = randomize(make_model(tiny_bert, replace(structure, scale=3.0), plan))
    layer = next(iter(model.attached.layers.values()))
    A, B = layer.fold(0)
    torch.testing.assert_close(B[:, :1] @ A[:1], 3.0 * layer.B[0] @ layer.A[0])
    torch.testing.assert_close(B[:, 1:] @ A[1:], 3.0 * layer.B[1] @ layer.A[1])


def test_single_refuses_a_plan_that_only_a_gate_could_follow(tiny_bert):
    with pytest.raises(InputError, match=r"'two' serves 1 of 3 tasks.* structure 'bank'"):
        make_model(tiny_bert, Single(), PLANS["private"])


def test_a_row_takes_part_with_its_own_task_only(tiny_bert):
    """Swapping two rows' tasks changes these two rows and no other."""
    model = randomize(make_model(tiny_bert, Bank(), PLANS["private"])).eval()
    batch = make_batch((0, 1, 0, 1))
    with torch.no_grad():
        before = model(**batch)["outputs"]
        batch["task_ids"] = torch.tensor([0, 1, 1, 0])
        after = model(**batch)["outputs"]
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2:], after[2:])
    reordered = take(batch, torch.tensor([3, 1, 2, 0]))
    with torch.no_grad():
        torch.testing.assert_close(model(**reordered)["outputs"][[3, 1, 2, 0]], after)
