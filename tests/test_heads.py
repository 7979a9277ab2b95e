"""Task heads against a loop over rows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from coadapt.adapters import Route
from coadapt.heads import TaskHeads, with_unit, without_unit
from tests.small import MIXED, TASKS

D = 8
BATCHES = {
    "mixed": MIXED,
    "classes": (0, 1, 1),
    "values_only": (2, 2),
    "narrowest_task": (0, 0),
    "one_row": (1,),
    "no_row": (),
}


@pytest.fixture(params=BATCHES.values(), ids=list(BATCHES))
def task_ids(request):
    return request.param


def make_heads(tasks=TASKS, seed=0, *, std=1.0) -> TaskHeads:
    heads = TaskHeads(tasks, D, seed)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * std)
    return heads.double()


def make_rows(task_ids) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    pooled = torch.randn(len(task_ids), D, generator=rng, dtype=torch.float64)
    labels = [
        float(torch.randn((), generator=rng))
        if TASKS[task].kind == "regression"
        else int(torch.randint(TASKS[task].num_outputs, (), generator=rng))
        for task in task_ids
    ]
    return pooled, torch.tensor(labels, dtype=torch.float32)


def route_of(task_ids) -> Route:
    route = Route()
    route.set(torch.tensor(task_ids, dtype=torch.long))
    return route


def run(heads: TaskHeads, pooled: Tensor, labels: Tensor, task_ids) -> tuple[Tensor, Tensor]:
    outputs = heads(pooled, route_of(task_ids))
    return outputs, heads.row_losses(outputs, labels, torch.tensor(task_ids, dtype=torch.long))


def loop(heads: TaskHeads, pooled: Tensor, labels: Tensor, task_ids) -> tuple[list, list]:
    """One row at a time, as a model with one head would do it."""
    outputs, losses = [], []
    for row, label, task in zip(pooled, labels, task_ids, strict=True):
        output = heads.weight[task] @ row + heads.bias[task]
        if TASKS[task].kind == "regression":
            loss = F.mse_loss(output, label.double()[None])
        else:
            loss = F.cross_entropy(output[None], label.long()[None])
        outputs.append(output)
        losses.append(loss)
    return outputs, losses


@pytest.mark.parametrize("grad", [True, False], ids=["training", "evaluating"])
def test_outputs_and_losses_are_those_of_the_loop(task_ids, grad):
    heads = make_heads()
    pooled, labels = make_rows(task_ids)
    with torch.set_grad_enabled(grad):
        outputs, losses = run(heads, pooled, labels, task_ids)
        expected, expected_losses = loop(heads, pooled, labels, task_ids)
    sizes = [TASKS[task].num_outputs for task in (range(3) if grad else set(task_ids) or range(3))]
    assert outputs.shape == (len(task_ids), max(sizes))
    assert losses.shape == (len(task_ids),)
    for mine, exact in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine[: len(exact)], exact, rtol=1e-12, atol=1e-12)
        assert torch.isneginf(mine[len(exact) :]).all()
    for mine, exact in zip(losses, expected_losses, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_loop(task_ids):
    weights = torch.arange(1.0, len(task_ids) + 1)
    found = []
    for function in (run, loop):
        heads = make_heads()
        pooled, labels = make_rows(task_ids)
        pooled.requires_grad_()
        losses = function(heads, pooled, labels, task_ids)[1]
        if len(losses):
            (torch.stack(list(losses)) * weights).sum().backward()
        found.append({"pooled": pooled.grad, **{n: p.grad for n, p in heads.named_parameters()}})
    for name, mine in found[0].items():
        exact = found[1][name]
        if mine is not None:
            assert torch.isfinite(mine).all(), name
            exact = torch.zeros_like(mine) if exact is None else exact
            torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)
        else:
            assert exact is None


@pytest.mark.parametrize("task_ids", [MIXED, (2, 0), (2,)], ids=str)
def test_columns_that_are_not_a_rows_own_never_reach_a_gradient(task_ids):
    """-inf to the right of a narrow row, and outputs so large that probabilities are 0 and 1."""
    heads = make_heads(std=30.0)
    pooled, labels = make_rows(task_ids)
    pooled.requires_grad_()
    losses = run(heads, pooled, labels, task_ids)[1]
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    for tensor in (pooled, *heads.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    absent = set(range(3)) - set(task_ids)
    for task in range(3):
        assert bool(heads.weight[task].grad.any()) == (task not in absent)


def test_every_head_is_in_the_graph_of_every_step():
    heads = make_heads()
    pooled, labels = make_rows((1,))
    run(heads, pooled, labels, (1,))[1].sum().backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_a_head_with_a_unit_is_the_plain_head_that_it_is_exported_as(task_ids):
    """y = center + scale (w x + b), and a loss that does not depend on the unit of the labels."""
    unit = (1200.0, 350.0)
    value = replace(TASKS[2], unit=unit)
    heads, plain = make_heads((*TASKS[:2], value)), make_heads()
    with torch.no_grad():
        for key, tensor in without_unit(value, heads.weight[2], heads.bias[2]).items():
            getattr(plain, key)[2].copy_(tensor)
    back = with_unit(value, plain.weight[2], plain.bias[2])
    torch.testing.assert_close(back["weight"], heads.weight[2])
    torch.testing.assert_close(back["bias"], heads.bias[2])
    pooled, labels = make_rows(task_ids)
    is_value = torch.tensor(task_ids, dtype=torch.long) == 2
    labels = torch.where(is_value, unit[0] + unit[1] * labels, labels)
    outputs, losses = run(heads, pooled, labels, task_ids)
    expected, expected_losses = run(plain, pooled, labels, task_ids)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses[~is_value], expected_losses[~is_value])
    torch.testing.assert_close(losses[is_value], expected_losses[is_value] / unit[1] ** 2)


def test_a_regression_rows_loss_is_its_squared_error_alone():
    heads = make_heads()
    pooled, _ = make_rows((2,))
    value = float((heads.weight[2] @ pooled[0] + heads.bias[2]).detach())
    losses = run(heads, pooled, torch.tensor([value - 3.0]), (2,))[1]
    assert losses.item() == pytest.approx(9.0, rel=1e-5)
    # A label far outside any class: it must not be read as one.
    losses = run(heads, pooled, torch.tensor([1e4]), (2,))[1]
    assert losses.item() == pytest.approx((value - 1e4) ** 2)


def test_init_is_small_and_seeded_by_name():
    heads, same, other = (TaskHeads(TASKS, 4000, seed) for seed in (0, 0, 1))
    turned = TaskHeads(TASKS[::-1], 4000, 0)
    for task in range(3):
        assert torch.equal(heads.weight[task], same.weight[task])
        assert torch.equal(heads.weight[task], turned.weight[2 - task])
        assert not torch.equal(heads.weight[task], other.weight[task])
        assert float(heads.weight[task].detach().std()) == pytest.approx(0.02, rel=0.05)
        assert not heads.bias[task].any()
        assert heads.weight[task].dtype == torch.float32
    assert not torch.equal(heads.weight[0][0], heads.weight[1][0])
