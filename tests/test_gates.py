"""Gates: which blocks a row uses, and the route that tells them."""

import pytest
import torch
from torch import Tensor

from coadapt.adapters import AbstractGate, ConstantGate, Route, TaskGate

# Task 0 uses blocks 0 and 2, task 1 block 1, task 2 all; block k has rank k + 1.
USES, RANKS = ((0, 2), (1,), (0, 1, 2)), (1, 2, 3)
ROWS = ([1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1])


def route_of(*task_ids: int, grad: bool = True) -> Route:
    route = Route()
    with torch.set_grad_enabled(grad):
        route.set(torch.tensor(task_ids, dtype=torch.long))
    return route


def values_of(gate: AbstractGate, x: Tensor, route: Route) -> Tensor:
    values = gate(x, route, None)
    assert values is not None
    return values


def test_what_gates_depend_on():
    assert ConstantGate.depends_on == "nothing"
    assert TaskGate.depends_on == "task"


def test_constant_gate_is_one_for_every_block():
    gate = ConstantGate(3)
    for route in (Route(), route_of(0, 1), route_of(0, grad=False)):
        assert gate.blocks(route) == (0, 1, 2)
        assert gate(torch.zeros(2, 4), route, None) is None
    assert gate.constants(0) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("between", [(), (4,), (4, 2)], ids=["B_d", "B_S_d", "B_S_H_d"])
def test_task_gate_repeats_the_tasks_blocks_over_their_ranks(between, dtype):
    task_ids = (1, 0, 2, 0)
    x = torch.zeros(4, *between, 5, dtype=dtype)
    values = values_of(TaskGate(USES, RANKS), x, route_of(*task_ids))
    assert values.dtype == dtype
    assert values.shape == (4, *(1 for _ in between), 6)
    assert values.reshape(4, 6).tolist() == [ROWS[task] for task in task_ids]


def test_task_gate_leaves_out_the_blocks_no_row_uses_when_no_gradient_flows():
    gate, x = TaskGate(USES, RANKS), torch.zeros(2, 5)
    assert gate.blocks(route_of(0, 1)) == (0, 1, 2)
    assert gate.blocks(route_of(1, 1, grad=False)) == (1,)
    assert gate.blocks(route_of(0, 0, grad=False)) == (0, 2)
    assert gate.blocks(route_of(1, 0, grad=False)) == (0, 1, 2)
    assert gate.blocks(route_of(grad=False)) == (0, 1, 2)
    narrow = TaskGate(((0,), (2,), (1,)), RANKS)
    values = values_of(narrow, x, route_of(1, 0, grad=False))
    assert narrow.blocks(route_of(1, 0, grad=False)) == (0, 2)
    assert values.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]


def test_task_gate_is_none_exactly_where_all_values_are_one():
    gate, x = TaskGate(USES, RANKS), torch.zeros(2, 5)
    assert gate(x, route_of(2, 2), None) is None
    assert gate(x, route_of(0, 0, grad=False), None) is None
    assert gate(x, route_of(0, 0), None) is not None
    assert gate(x, route_of(2, 0), None) is not None
    assert gate(x[:0], route_of(), None) is None


def test_task_gate_constants_are_its_rows():
    gate = TaskGate(USES, RANKS)
    assert [gate.constants(task) for task in range(3)] == [(1, 0, 1), (0, 1, 0), (1, 1, 1)]


def test_the_blocks_in_the_graph_are_settled_when_the_route_is_set():
    """Re-entrant checkpointing runs a layer without gradients first: both passes must agree."""
    gate, route = TaskGate(USES, RANKS), route_of(1, 1)
    with torch.no_grad():
        assert gate.blocks(route) == (0, 1, 2)
    frozen = route_of(1, 1, grad=False)
    with torch.enable_grad():
        assert gate.blocks(frozen) == (1,)


def test_values_are_made_once_a_forward_and_never_outlive_it():
    gate, route, x = TaskGate(USES, RANKS), route_of(0, 1), torch.zeros(2, 3, 5)
    first = values_of(gate, x, route)
    assert values_of(gate, torch.ones(2, 7, 5), route).data_ptr() == first.data_ptr()
    assert values_of(gate, x.double(), route).dtype == torch.float64
    other = TaskGate(((1,), (0,)), (3, 3))
    assert not torch.equal(values_of(other, x, route), first)
    route.set(torch.tensor([1, 0]))
    assert torch.equal(values_of(gate, x, route), first.flip(0))


MANY = TaskGate([(k,) for k in range(32)], [2] * 32)  # rank 64 in all, 2 of a row's own


def own(gate: AbstractGate, x: Tensor, route: Route) -> Tensor:
    found = gate.own(x, route)
    assert found is not None
    return found


def test_rows_entries_where_a_row_uses_few_of_many():
    x = torch.zeros(2, 5)
    assert own(MANY, x, route_of(3, 0)).tolist() == [[6, 7], [0, 1]]
    few = TaskGate([(k,) for k in range(31)], [2] * 31)
    assert few.own(x, route_of(3, 0)) is None
    wide = TaskGate([(0,), (1,), (2,)], [30, 30, 30])
    assert wide.own(x, route_of(0, 2)) is None
    assert ConstantGate(64).own(x, route_of(0, 1)) is None


def test_rows_entries_of_unequal_ranks_end_in_the_one_past_the_last(monkeypatch):
    monkeypatch.setattr(TaskGate, "min_rank", 0)
    monkeypatch.setattr(TaskGate, "min_share", 0)
    gate, x = TaskGate(USES, RANKS), torch.zeros(2, 5)
    assert own(gate, x, route_of(1, 0)).tolist() == [[1, 2, 6, 6], [0, 3, 4, 5]]
    # Without gradients the axis is that of the blocks at hand.
    narrow = TaskGate(((0,), (2,), (1,)), RANKS)
    assert own(narrow, x, route_of(1, 0, grad=False)).tolist() == [[1, 2, 3], [0, 4, 4]]


def test_no_entries_of_rows_where_positions_or_all_rows_have_them():
    route = Route()
    route.set(torch.tensor([[0, 1, 1]]))  # a packed row
    assert MANY.own(torch.zeros(1, 3, 5), route) is None
    route = route_of(0, 1)
    with route.fixing([1.0] * 32):
        assert MANY.own(torch.zeros(2, 5), route) is None
    assert MANY.own(torch.zeros(0, 5), route_of()) is None


def test_no_batch_is_by_row_but_the_one_the_route_was_set_for():
    with pytest.raises(RuntimeError, match="got 3 rows but task ids for 2"):
        MANY.own(torch.zeros(3, 5), route_of(0, 1))


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_route_refuses_rows_it_was_not_set_for(num_rows):
    gate, route = TaskGate(USES, RANKS), route_of(0, 1)
    with pytest.raises(RuntimeError, match=f"got {num_rows} rows but task ids for 2"):
        gate(torch.zeros(num_rows, 5), route, None)
    with pytest.raises(RuntimeError, match="task ids for none"):
        gate(torch.zeros(num_rows, 5), Route(), None)
