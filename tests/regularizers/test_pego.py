from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from coadapt import InputError
from coadapt.regularizers import Pego
from tests.reference import slow_orthogonality as slow
from tests.reference.slow_orthogonality import captured_of, make_layer, value_and_gradients

BOTH = pytest.mark.parametrize("orientation", ["input", "output"])


def test_a_known_value():
    # B_i A_i = e1 (1, -2), B_j A_j = e1 (3, 1): their product over the output is (1, -2)' (3, 1).
    e1 = torch.tensor([[1.0], [0.0], [0.0]])
    layer = replace(
        make_layer(),
        A={"i": torch.tensor([[1.0, -2.0]]), "j": torch.tensor([[3.0, 1.0]])},
        B={"i": e1, "j": e1},
    )
    assert Pego().loss(captured_of(layer)).item() == 3 + 1 + 6 + 2
    # Over the input, <(1, -2), (3, 1)> = 1 at the one place that both write to.
    assert Pego(orientation="output").loss(captured_of(layer)).item() == 1


@BOTH
@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_chunks_do_not_matter(chunk, preserve, orientation):
    layers = [make_layer(1, d_in=9, d_out=7), make_layer(2, ranks=(2, 2, 0, 1), d_in=4, d_out=11)]
    captured = captured_of(*layers)
    options = {"orientation": orientation, "preserve": preserve}
    found = value_and_gradients(Pego(chunk=chunk, **options).loss(captured), captured)
    whole = value_and_gradients(Pego(chunk=None, **options).loss(captured), captured)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


@BOTH
def test_a_gradient_from_above_is_passed_on(orientation):
    captured = captured_of(make_layer(3))
    part = Pego(orientation=orientation, preserve=True, chunk=2)
    once = value_and_gradients(part.loss(captured), captured)
    thrice = value_and_gradients(-3 * part.loss(captured), captured)
    for value, other in zip(once, thrice, strict=True):
        torch.testing.assert_close(-3 * value, other)


def test_the_subgradient_at_zero_is_zero():
    # A zero entry beside others: its sign counts for nothing, in a chunk as without.
    eye = torch.eye(3, dtype=torch.float64)
    layer = replace(
        make_layer(),
        A={"i": eye[:1].clone().requires_grad_(), "j": eye[1:2].clone().requires_grad_()},
        B={"i": eye[:, :1].clone().requires_grad_(), "j": eye[:, :1].clone().requires_grad_()},
    )
    for chunk in (None, 2):
        captured = captured_of(layer)
        loss, *gradients = value_and_gradients(Pego(chunk=chunk).loss(captured), captured)
        assert loss == 1
        torch.testing.assert_close(gradients[0], eye[:1])


def test_memory_is_that_of_a_chunk():
    """No tensor of the chunked term has as many entries as the matrices that it sums up."""
    d, rank, chunk = 300, 2, 10
    layer = make_layer(ranks=(rank, rank), cooperative=0, d_in=d, d_out=d, dtype=torch.float32)
    largest = {}
    for rows in (chunk, None):
        sizes = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                found = func(*args, **(kwargs or {}))
                if isinstance(found, torch.Tensor):
                    sizes.append(found.numel())  # noqa: B023
                return found

        with Watch():
            Pego(chunk=rows).loss(captured_of(layer)).backward()
        largest[rows] = max(sizes)
    assert largest == {chunk: chunk * d, None: d * d}


def test_preserve_reads_a_bfloat16_base_in_the_factors_precision():
    layer = make_layer(5, dtype=torch.float32)
    rounded = nn.Linear(5, 6, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        rounded.weight.copy_(layer.base.get_parameter("weight"))
    same = nn.Linear(5, 6, bias=False)
    with torch.no_grad():
        same.weight.copy_(rounded.weight)
    for chunk in (None, 2):
        found, expected = (
            Pego(preserve=True, chunk=chunk).loss(captured_of(replace(layer, base=base)))
            for base in (rounded, same)
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_preserve_knows_a_transposed_weight():
    layer = make_layer(6)
    turned = Conv1D(6, 5).double()
    with torch.no_grad():
        turned.weight.copy_(layer.base.get_parameter("weight").T)
    found = Pego(preserve=True).loss(captured_of(replace(layer, base=turned)))
    torch.testing.assert_close(found, slow.pego(captured_of(layer), preserve=True))


class Quantised(nn.Module):
    """Four bits an entry, as a flat row of bytes."""

    def __init__(self) -> None:
        super().__init__()
        packed = torch.zeros(15, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


def test_what_is_refused():
    with pytest.raises(InputError, match="chunk must be at least 1 row, or null for all, not 0"):
        Pego(chunk=0)
    packed = {"query": replace(make_layer(), base=Quantised())}
    Pego().check(3, packed)
    with pytest.raises(InputError, match=r"weight of 'query', which is quantised \(torch.uint8\)"):
        Pego(preserve=True).check(3, packed)
