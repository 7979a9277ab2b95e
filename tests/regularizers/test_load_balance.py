import pytest
import torch

from coadapt.regularizers import Captured, LoadBalance, Need, Routing
from tests.reference import slow_regularizers as slow
from tests.reference.slow_regularizers import make_routing, value_and_gradients


def of_tokens(probabilities, top_k=None):
    """A batch of one row."""
    p = torch.tensor([probabilities], dtype=torch.float64).requires_grad_()
    return Captured(
        task_ids=torch.tensor([0]),
        valid=torch.ones(p.shape[:2], dtype=torch.bool),
        routing={"a": Routing(probabilities=p, top_k=top_k)},
    )


def test_what_it_is():
    part = LoadBalance()
    assert (part.kind, part.weight, part.needs) == ("load_balance", 0.001, Need.ROUTING)
    assert not part.several_tasks
    assert part.select(["a", "b"]) == ("a", "b")
    with pytest.raises(ValueError, match="weight must be at least 0"):
        LoadBalance(weight=-0.1)


@pytest.mark.parametrize("top_k", [None, 1, 2, 4])
def test_value_and_gradients_against_a_loop(top_k):
    captured = make_routing(modules=3, top_k=top_k)
    found = value_and_gradients(LoadBalance().loss(captured), captured)
    expected = value_and_gradients(slow.load_balance(captured), captured)
    torch.testing.assert_close(found, expected)
    assert all(part.abs().sum() > 0 for part in found)


@pytest.mark.parametrize(("top_k", "expected"), [(None, 1), (1, 1), (2, 2), (3, 3)])
def test_uniform_routing_is_k(top_k, expected):
    captured = of_tokens([[0.25] * 4] * 7, top_k)
    assert LoadBalance().loss(captured).item() == pytest.approx(expected)


def test_collapse_is_the_number_of_blocks():
    captured = of_tokens([[0, 0, 1, 0]] * 5)
    assert LoadBalance().loss(captured).item() == pytest.approx(4)


def test_it_may_fall_below_k():
    # Nine tokens of ten choose a block of little more than a third, one is sure of another.
    captured = of_tokens([[0.34, 0.33, 0.33]] * 9 + [[0, 0, 1.0]])
    expected = 3 * (0.9 * 0.306 + 0.1 * 0.397)
    assert expected < 1
    assert LoadBalance().loss(captured).item() == pytest.approx(expected)


def test_modules_count_together():
    # Each module uses one block alone; together they are balanced.
    first, second = ([[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3)
    both = of_tokens(first)
    both.routing["b"] = of_tokens(second).routing["a"]
    assert LoadBalance().loss(of_tokens(first)).item() == pytest.approx(2)
    assert LoadBalance().loss(both).item() == pytest.approx(1)


def test_padding_and_the_order_of_rows_do_not_matter():
    captured = make_routing(top_k=2)
    order = torch.tensor([2, 0, 3, 1])
    changed = Captured(
        task_ids=captured.task_ids[order],
        valid=captured.valid[order],
        routing={
            name: Routing(
                probabilities=routing.probabilities.masked_fill(~captured.valid[..., None], 9.0)[
                    order
                ],
                top_k=2,
            )
            for name, routing in captured.routing.items()
        },
    )
    torch.testing.assert_close(LoadBalance().loss(changed), LoadBalance().loss(captured))


def test_a_packed_batch():
    captured = make_routing(modules=1)
    p = captured.routing["module0"].probabilities
    packed = Captured(
        task_ids=captured.position_tasks.reshape(1, -1),
        valid=captured.valid.reshape(1, -1),
        routing={"module0": Routing(probabilities=p.reshape(1, -1, 4))},
    )
    torch.testing.assert_close(LoadBalance().loss(packed), LoadBalance().loss(captured))


def test_nothing_valid_is_an_exact_zero_with_a_graph():
    captured = make_routing()
    empty = Captured(
        task_ids=captured.task_ids,
        valid=torch.zeros_like(captured.valid),
        routing=captured.routing,
    )
    loss = LoadBalance().loss(empty)
    assert loss.item() == 0.0
    assert loss.requires_grad


def test_modules_must_be_alike():
    captured = make_routing(modules=1)
    captured.routing["b"] = make_routing(modules=1, experts=3).routing["module0"]
    with pytest.raises(ValueError, match=r"different numbers of blocks .*\(3, None\), \(4, None\)"):
        LoadBalance().loss(captured)


def test_gradients_against_finite_differences():
    # Only of P: what a token uses does not move with a small step.
    captured = make_routing(modules=1, top_k=2, tasks=(0, 1), length=3)

    def loss(p):
        routing = {"a": Routing(probabilities=p, top_k=2)}
        return LoadBalance().loss(
            Captured(task_ids=captured.task_ids, valid=captured.valid, routing=routing)
        )

    p = captured.routing["module0"].probabilities.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (p,))
