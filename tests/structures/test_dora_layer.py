"""DoRA's layer against the paper's equation, row by row."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from coadapt._errors import InputError
from coadapt.adapters import DoraLinear, Dropout, Route
from tests.reference.slow_dora import slow_norm, slow_weight

IN, OUT, R, SCALE = 6, 5, 3, 1.5


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear(*, bias: bool = True, conv: bool = False, out: int = OUT) -> nn.Module:
    base = Conv1D(out, IN) if conv else nn.Linear(IN, out, bias=bias)
    for index, parameter in enumerate(base.parameters()):
        parameter.data = normal(*parameter.shape, seed=10 + index, dtype=torch.float32)
    return base


BASES = {
    "linear": linear,
    "no_bias": lambda: linear(bias=False),
    "conv1d": lambda: linear(conv=True),
}


def make(base: nn.Module | None = None, *, random: bool = True, **options: Any) -> Any:
    """Return a layer; with factors away from zero, and magnitudes away from the norms."""
    options = {"route": Route(), "scale": SCALE, "dropout": Dropout(at="x"), "name": "q", **options}
    layer: Any = DoraLinear(base or linear(), R, **options)
    with torch.no_grad():
        layer.A[0].copy_(normal(*layer.A[0].shape, seed=1))
        if random:
            layer.B[0].copy_(0.5 * normal(*layer.B[0].shape, seed=2))
            layer.m.mul_(1 + 0.3 * normal(*layer.m.shape, seed=3))
    return layer


def parts(layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """W (out, in), A, B, m and the bias in float64."""
    base: Any = layer.base
    W = base.weight.T if isinstance(base, Conv1D) else base.weight
    bias = None if base.bias is None else base.bias.detach().double()
    found = (W, layer.A[0], layer.B[0], layer.m)
    W, A, B, m = (tensor.detach().double() for tensor in found)
    return W, A, B, m, bias


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "through_norm"])
@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_output_and_gradients_are_those_of_the_paper_s_weight(base, detach_norm):
    layer = make(base(), detach_norm=detach_norm).double()
    W, A, B, m, bias = parts(layer)
    x, exact_x = (normal(2, 4, IN, seed=4).requires_grad_() for _ in range(2))
    exact = [tensor.requires_grad_() for tensor in (A, B, m)]
    y = layer(x)
    wanted = F.linear(exact_x, slow_weight(W, A, B, m, SCALE, detach_norm=detach_norm), bias)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    weights = normal(*y.shape, seed=5)
    (y * weights).sum().backward()
    (wanted * weights).sum().backward()
    mine = [x, layer.A[0], layer.B[0], layer.m]
    for tensor, other in zip(mine, [exact_x, *exact], strict=True):
        assert tensor.grad.abs().max() > 0.1
        torch.testing.assert_close(tensor.grad, other.grad, rtol=1e-10, atol=1e-12)
    assert not any(p.requires_grad for p in layer.base.parameters())


def test_the_gradient_through_the_norm_is_the_slope():
    layer = make(detach_norm=False).double()

    def output(x: Tensor, A: Tensor, B: Tensor, m: Tensor) -> Tensor:
        return functional_call(layer, {"A.0": A, "B.0": B, "m": m}, (x,))

    _, A, B, m, _ = parts(layer)
    inputs = [tensor.requires_grad_() for tensor in (normal(2, IN, seed=4), A, B, m)]
    assert torch.autograd.gradcheck(output, inputs)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    rank=st.integers(1, 7),
    scale=st.floats(0.01, 30),
    size=st.floats(0, 10),
)
def test_norm_without_the_sum_is_that_of_the_sum(seed, rank, scale, size):
    layer = DoraLinear(linear(), rank, route=Route(), scale=scale, dropout=Dropout())
    with torch.no_grad():
        layer.A[0].copy_(normal(rank, IN, seed=seed))
        layer.B[0].copy_(size * normal(OUT, rank, seed=seed + 1))
    W, A, B, *_ = parts(layer)
    torch.testing.assert_close(
        layer.norm().double(), slow_norm(W, A, B, scale), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_norm_of_a_low_precision_weight_is_in_float32(dtype):
    base = linear(out=2500).to(dtype)  # more rows than are converted at once
    layer = make(base)
    W, A, B, *_ = parts(layer)
    assert layer.norm().dtype == torch.float32
    torch.testing.assert_close(layer.norm().double(), slow_norm(W, A, B, SCALE), rtol=2e-6, atol=0)
    assert {p.dtype for p in (*layer.A, *layer.B, layer.m)} == {torch.float32}


def test_norm_follows_a_weight_that_is_changed():
    layer = make(random=False)
    before = layer.norm()
    with torch.no_grad():
        layer.base.get_parameter("weight").mul_(2.0)
    torch.testing.assert_close(layer.norm(), 2 * before)
    torch.testing.assert_close(layer.double().norm(), 2 * before.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_a_fresh_layer_has_the_base_map_s_bits(base, dtype):
    layer = make(base().to(dtype), random=False)
    x = normal(7, IN, seed=4, dtype=dtype)
    assert torch.equal(layer(x), layer.base(x))
    assert not layer.delta(0).any()
    W, *_, m, _ = parts(layer)
    torch.testing.assert_close(m, W.square().sum(dim=1, keepdim=True).sqrt(), rtol=1e-6, atol=0)


def test_a_bfloat16_base_is_near_the_exact_output():
    layer = make(linear().to(torch.bfloat16))
    W, A, B, m, bias = parts(layer)
    x = normal(4, IN, seed=4, dtype=torch.bfloat16)
    wanted = F.linear(x.double(), slow_weight(W, A, B, m, SCALE), bias)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.double() - wanted).abs().max() < 3e-2 * wanted.abs().max()
    y.float().sum().backward()
    assert {p.grad.dtype for p in (*layer.A, *layer.B, layer.m)} == {torch.float32}


@pytest.mark.parametrize("at", ["x", "z"])
@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_dropout_keeps_the_frozen_part_whole(base, at):
    layer = make(base(), dropout=Dropout(p=0.4, at=at)).double()
    W, A, B, m, bias = parts(layer)
    x = normal(8, IN, seed=4)
    g = (m / slow_norm(W, A, B, SCALE).unsqueeze(1)).T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        found = layer.train()(x)
        torch.manual_seed(6)
        if at == "x":
            dropped = F.dropout(x, 0.4)
            update = (g - 1) * (dropped @ W.T) + g * SCALE * (dropped @ A.T @ B.T)
        else:
            update = (g - 1) * (x @ W.T) + g * SCALE * (F.dropout(x @ A.T, 0.4) @ B.T)
    torch.testing.assert_close(found, F.linear(x, W, bias) + update, rtol=0, atol=1e-12)
    exact = F.linear(x, slow_weight(W, A, B, m, SCALE), bias)
    torch.testing.assert_close(layer.eval()(x), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_delta_is_what_the_paper_s_weight_adds(base, dtype):
    layer = make(base().to(dtype))
    W, A, B, m, _ = parts(layer)
    delta = layer.delta(0)
    assert delta.dtype == torch.float32
    wanted = slow_weight(W, A, B, m, SCALE) - W
    torch.testing.assert_close(delta.double(), wanted, rtol=0, atol=1e-5)


def test_a_row_of_zeros_stays_zero_and_finite():
    base = linear(bias=False)
    with torch.no_grad():
        base.get_parameter("weight")[2] = 0.0
    layer = make(base, random=False, detach_norm=False)
    for step in range(3):
        y = layer(normal(4, IN, seed=step, dtype=torch.float32))
        assert not y[:, 2].any()
        y.square().sum().backward()
        with torch.no_grad():
            for parameter in (layer.A[0], layer.B[0], layer.m):
                assert parameter.grad.isfinite().all()
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None


def test_what_has_no_matrix_of_floats_is_refused():
    class Packed(nn.Module):
        """As bitsandbytes stores a map of four bits."""

        in_features, out_features = IN, OUT

        def __init__(self) -> None:
            super().__init__()
            packed = torch.zeros(15, 1, dtype=torch.uint8)
            self.weight = nn.Parameter(packed, requires_grad=False)

    with pytest.raises(InputError, match=r"'q' \(Packed\) has a weight of torch.uint8 .*without"):
        make(Packed())
    hidden = linear()
    del hidden.weight
    with pytest.raises(InputError, match=r"'q' \(Linear\) has no weight.*recipe 'lora'"):
        make(hidden)


def test_what_it_cannot_give_is_refused():
    with pytest.raises(ValueError, match="no exact LoRA form"):
        make().fold(0)
    with pytest.raises(ValueError, match="no offset"):
        make().freeze_offset()
