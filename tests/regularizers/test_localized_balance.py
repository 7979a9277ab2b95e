import pytest
import torch

from coadapt.regularizers import Captured, LocalizedBalance, Need, Routing
from tests.reference import slow_regularizers as slow
from tests.reference.slow_regularizers import make_routing, value_and_gradients

TYPES = {"task_types": (0, 1, 1), "expert_types": (0, 0, 1, 1)}


def of_rows(rows, tasks):
    """A batch of rows of one token."""
    p = torch.tensor(rows, dtype=torch.float64)[:, None].requires_grad_()
    return Captured(
        task_ids=torch.tensor(tasks),
        valid=torch.ones(len(tasks), 1, dtype=torch.bool),
        routing={"a": Routing(probabilities=p)},
    )


def test_what_it_is():
    part = LocalizedBalance(**TYPES)
    assert (part.kind, part.weight, part.delta) == ("localized_balance", 0.01, 0.1)
    assert part.needs is Need.ROUTING
    assert not part.several_tasks
    assert part.select(["a", "b"]) == ("a", "b")


@pytest.mark.parametrize("dispersion", ["cv2", "var_over_mean"])
@pytest.mark.parametrize("delta", [0.0, 0.1, 1.0])
def test_value_and_gradients_against_a_loop(dispersion, delta):
    captured = make_routing(modules=3)
    options = {"delta": delta, "dispersion": dispersion, **TYPES}
    found = value_and_gradients(LocalizedBalance(**options).loss(captured), captured)
    expected = value_and_gradients(slow.localized_balance(captured, **options), captured)
    torch.testing.assert_close(found, expected)
    assert all(part.abs().sum() > 0 for part in found)


def test_types_may_be_any_numbers_of_any_order():
    captured = make_routing(experts=3)
    options = {"delta": 0.3, "task_types": (7, 1, 7), "expert_types": (1, 7, 3)}
    found = LocalizedBalance(**options).loss(captured)
    torch.testing.assert_close(found, slow.localized_balance(captured, **options))


def test_zero_where_own_experts_are_used_more_by_just_that():
    # 0.9 to 1.1 makes up for 1.1 to 0.9.
    own, other = 0.9 / 4, 1.1 / 4
    captured = of_rows([[own, own, other, other], [other, other, own, own]], [0, 1])
    part = LocalizedBalance(**TYPES)
    assert part.loss(captured).item() == pytest.approx(0, abs=1e-12)
    uniform = of_rows([[0.25] * 4] * 2, [0, 1])
    # Entries 1.1 / 4 and 0.9 / 4, half of each: variance (0.1 / 4)^2 8/7, mean 1 / 4.
    assert part.loss(uniform).item() == pytest.approx(0.01 * 8 / 7)
    no_types = LocalizedBalance(delta=0.0, **TYPES)
    assert no_types.loss(uniform).item() == pytest.approx(0, abs=1e-12)


def test_padding_and_the_order_of_rows_do_not_matter():
    captured, part = make_routing(), LocalizedBalance(**TYPES)
    order = torch.tensor([2, 0, 3, 1])
    padding = ~captured.valid[..., None]
    changed = Captured(
        task_ids=captured.task_ids[order],
        valid=captured.valid[order],
        routing={
            name: Routing(probabilities=routing.probabilities.masked_fill(padding, 9.0)[order])
            for name, routing in captured.routing.items()
        },
    )
    torch.testing.assert_close(part.loss(changed), part.loss(captured))


def test_rows_of_padding_are_no_rows():
    captured, part = make_routing(tasks=(0, 1, 2)), LocalizedBalance(**TYPES)
    valid = captured.valid.clone()
    valid[1] = False
    fewer = Captured(task_ids=captured.task_ids, valid=valid, routing=captured.routing)
    left = Captured(
        task_ids=captured.task_ids[[0, 2]],
        valid=captured.valid[[0, 2]],
        routing={
            name: Routing(probabilities=routing.probabilities[[0, 2]])
            for name, routing in captured.routing.items()
        },
    )
    torch.testing.assert_close(part.loss(fewer), part.loss(left))


@pytest.mark.parametrize("tasks", [[], [0]], ids=["no row", "one entry"])
def test_one_entry_or_none_is_an_exact_zero_with_a_graph(tasks):
    part = LocalizedBalance(task_types=(0,), expert_types=(0,))
    p = torch.ones(len(tasks), 2, 1, requires_grad=True)
    captured = Captured(
        task_ids=torch.tensor(tasks, dtype=torch.long),
        valid=torch.ones(len(tasks), 2, dtype=torch.bool),
        routing={"a": Routing(probabilities=p)},
    )
    loss = part.loss(captured)
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, [p])
    assert not gradient.any()


def test_gradients_against_finite_differences():
    captured = make_routing(modules=1, tasks=(0, 1), length=3)

    def loss(p):
        routing = {"a": Routing(probabilities=p)}
        return LocalizedBalance(**TYPES).loss(
            Captured(task_ids=captured.task_ids, valid=captured.valid, routing=routing)
        )

    p = captured.routing["module0"].probabilities.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (p,))


def test_what_does_not_fit():
    captured = make_routing(modules=1, tasks=(0, 3))
    with pytest.raises(ValueError, match="task_types has 3 numbers, and the batch has task 3"):
        LocalizedBalance(**TYPES).loss(captured)
    part = LocalizedBalance(task_types=(0,) * 4, expert_types=(0, 1))
    with pytest.raises(ValueError, match="2 numbers, and module 'module0' has 4 experts"):
        part.loss(captured)
    packed = Captured(
        task_ids=captured.position_tasks.reshape(1, -1),
        valid=captured.valid.reshape(1, -1),
        routing=captured.routing,
    )
    with pytest.raises(ValueError, match="packing: false"):
        LocalizedBalance(**TYPES).loss(packed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"delta": 1.1}, r"delta must lie in \[0, 1\], not 1\.1"),
        ({"task_types": ()}, "task_types is empty; it needs a number for each task"),
        ({"expert_types": ()}, "expert_types is empty; it needs a number for each expert"),
    ],
    ids=["weight", "delta", "tasks", "experts"],
)
def test_ranges(changes, message):
    with pytest.raises(ValueError, match=message):
        LocalizedBalance(**{**TYPES, **changes})
