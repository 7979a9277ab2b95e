"""What SPR, PEGO and O-LoRA have in common."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt import InputError
from coadapt.regularizers import Need, OLora, Pego, Spr
from tests.reference import slow_orthogonality as slow
from tests.reference.slow_orthogonality import captured_of, make_layer, value_and_gradients

PARTS = {
    "spr": (Spr(), slow.spr),
    "spr_normalized": (Spr(normalized=True), lambda c: slow.spr(c, normalized=True)),
    "pego": (Pego(chunk=2), slow.pego),
    "pego_output": (Pego(orientation="output"), lambda c: slow.pego(c, orientation="output")),
    "pego_preserve": (Pego(preserve=True, chunk=4), lambda c: slow.pego(c, preserve=True)),
    "o_lora": (OLora(), slow.o_lora),
}
each_part = pytest.mark.parametrize(("part", "oracle"), PARTS.values(), ids=list(PARTS))
SHARED_A = [name for name in PARTS if name != "o_lora"]


@each_part
def test_what_it_is(part, oracle):
    assert part.needs is Need.WEIGHTS
    assert not part.several_tasks
    assert part.select(["b", "a"]) == ("b", "a")
    with pytest.raises(InputError, match="weight must be at least 0"):
        replace(part, weight=-1e-9)


def test_weights_are_the_authors():
    assert (Spr().weight, Pego().weight, OLora().weight) == (1e-4, 1e-3, 0.5)


@each_part
def test_value_and_gradients_against_pairs(part, oracle):
    layers = [make_layer(1), make_layer(2, ranks=(1, 4), d_in=3), make_layer(3, cooperative=0)]
    captured = captured_of(*layers)
    found = value_and_gradients(part.loss(captured), captured)
    expected = value_and_gradients(oracle(captured), captured)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert found[0] > 0


@pytest.mark.parametrize("name", SHARED_A)
def test_heads_over_one_A_against_pairs(name):
    part, oracle = PARTS[name]
    captured = captured_of(make_layer(shared_A=True, ranks=(2, 2, 2)))
    found = value_and_gradients(part.loss(captured), captured)
    expected = value_and_gradients(oracle(captured), captured)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # SPR has nothing to hold apart in their A, and PEGO's updates do.
    moves_A = bool((found[1] != 0).any())
    assert moves_A == name.startswith("pego")


@settings(max_examples=15)
@given(
    modules=st.lists(
        st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3
    ),
    cooperative=st.integers(0, 2),
)
def test_any_ranks_and_numbers_of_blocks(modules, cooperative):
    layers = [
        make_layer(seed, ranks=ranks, cooperative=cooperative) for seed, ranks in enumerate(modules)
    ]
    captured = captured_of(*layers)
    for part, oracle in PARTS.values():
        found = part.loss(captured)
        torch.testing.assert_close(found.double(), oracle(captured), rtol=1e-9, atol=1e-9)
        assert found.requires_grad


@each_part
def test_gradients_against_finite_differences(part, oracle):
    layer = make_layer(4, ranks=(1, 2), cooperative=1, d_in=3, d_out=4)
    names = list(layer.B)

    def loss(*parts):
        A, B = (dict(zip(names, of, strict=True)) for of in (parts[:3], parts[3:]))
        return part.loss(captured_of(replace(layer, A=A, B=B)))

    assert torch.autograd.gradcheck(loss, (*layer.A.values(), *layer.B.values()))


@each_part
def test_orthogonal_blocks_are_zero_and_stay(part, oracle):
    # Each block reads two coordinates and writes two, none of them another's; W maps onto the rest.
    eye = torch.eye(8, dtype=torch.float64)
    rows = {"a": [0, 1], "b": [2, 3]}
    base = torch.nn.Linear(8, 8, bias=False).double()
    with torch.no_grad():
        base.weight.copy_(torch.diag(torch.tensor([0.0] * 4 + [1.0] * 4)))
    layer = replace(
        make_layer(),
        A={name: (3 * eye[of]).requires_grad_() for name, of in rows.items()},
        B={name: (2 * eye[:, of]).requires_grad_() for name, of in rows.items()},
        base=base,
    )
    captured = captured_of(layer)
    found = value_and_gradients(part.loss(captured), captured)
    assert all((value == 0).all() for value in found)


@each_part
def test_the_sign_of_a_block_does_not_matter(part, oracle):
    layer = make_layer(5)
    turned = replace(
        layer,
        A={**layer.A, "task1": -layer.A["task1"]},
        B={**layer.B, "task0": -layer.B["task0"]},
    )
    torch.testing.assert_close(part.loss(captured_of(layer)), part.loss(captured_of(turned)))


@each_part
def test_the_order_of_blocks_does_not_matter(part, oracle):
    layer = make_layer(6)
    names = ["cooperative", "task2", "task0", "task1"]
    turned = replace(layer, A={n: layer.A[n] for n in names}, B={n: layer.B[n] for n in names})
    torch.testing.assert_close(part.loss(captured_of(layer)), part.loss(captured_of(turned)))


@each_part
def test_common_blocks_do_not_matter_and_get_no_gradient(part, oracle):
    layer = make_layer(7)
    moved = replace(
        layer,
        A={**layer.A, "cooperative": layer.A["cooperative"] + 1},
        B={**layer.B, "cooperative": 9 * layer.B["cooperative"]},
    )
    loss = part.loss(captured_of(layer))
    assert torch.equal(loss, part.loss(captured_of(moved)))
    parts = [layer.A["cooperative"], layer.B["cooperative"]]
    assert torch.autograd.grad(loss, parts, allow_unused=True) == (None, None)


@each_part
def test_a_block_at_zero_contributes_nothing_and_has_finite_gradients(part, oracle):
    layer = make_layer(8, ranks=(2, 2, 2))
    with torch.no_grad():
        layer.A["task1"].zero_()
        layer.B["task1"].zero_()
    captured = captured_of(layer)
    found = value_and_gradients(part.loss(captured), captured)
    without = replace(
        layer,
        A={n: a for n, a in layer.A.items() if n != "task1"},
        B={n: b for n, b in layer.B.items() if n != "task1"},
    )
    torch.testing.assert_close(found[0], part.loss(captured_of(without)).detach())
    assert all(value.isfinite().all() for value in found)


@each_part
def test_float32_and_half_precision_factors(part, oracle):
    exact = oracle(captured_of(make_layer(9)))
    found = part.loss(captured_of(make_layer(9, dtype=torch.float32)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    half = captured_of(make_layer(9, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = part.loss(half)
    assert loss.dtype == torch.float32
    doubled = {
        name: replace(
            layer,
            A={n: a.double() for n, a in layer.A.items()},
            B={n: b.double() for n, b in layer.B.items()},
            base=layer.base.double(),
        )
        for name, layer in half.factors.items()
    }
    # The factors were rounded, and nothing after.
    torch.testing.assert_close(
        loss.double(), oracle(replace(half, factors=doubled)), rtol=1e-5, atol=0
    )


@each_part
def test_one_task_block_is_an_exact_zero_that_is_attached(part, oracle):
    captured = captured_of(make_layer(ranks=(3,)))
    found = value_and_gradients(part.loss(captured), captured)
    assert all((value == 0).all() for value in found)


@each_part
def test_a_model_without_two_blocks_is_refused(part, oracle):
    one = {"a": make_layer(ranks=(3,)), "b": make_layer(ranks=(2,), cooperative=0)}
    with pytest.raises(InputError, match=f"'{part.kind}' keeps .* take a plan with a block a task"):
        part.check(3, one)
    part.check(3, {**one, "c": make_layer(ranks=(2, 2))})
    part.check(1, {"c": make_layer(ranks=(2, 2))})  # two blocks for one task are two blocks
