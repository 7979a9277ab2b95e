"""A mixture of feed-forwards made by hand: against whole experts run one by one."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from coadapt import InputError
from coadapt.adapters import feed_forward_groups, target_names
from coadapt.structures import Attached, Mixture
from tests.mixtures import MIXTURE, attach, close, normal, scatter
from tests.reference.slow_mixture import SlowMixture

# Feed-forwards made by hand ----------------------------------------------------------------------

D, WIDE = 6, 10


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, WIDE), nn.Linear(WIDE, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Gated(nn.Module):
    """With its last map in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(D, WIDE, bias=False), nn.Linear(WIDE, D)
        self.w3 = nn.Linear(D, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Fused(nn.Module):
    """Phi-3's and ModernBERT's, with a norm on the last dimension in between."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.norm = nn.Linear(D, 2 * WIDE), nn.LayerNorm(WIDE)
        self.last = nn.Linear(WIDE, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.last(self.norm(F.silu(gate) * up))


FORMS = {"plain": Plain, "gated": Gated, "fused": Fused}
MAPS = {"plain": ("fc1", "fc2"), "gated": ("w1", "w2", "w3"), "fused": ("both", "last")}


class Host(nn.Module):
    """One layer that is a feed-forward."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"mlp": part})])


class Made(NamedTuple):
    """A feed-forward with a mixture in it, what was added, and the same, slow, in float64."""

    part: nn.Module
    attached: Attached
    slow: SlowMixture
    exact: dict[str, Tensor]


def made(form: str, structure: Mixture, dtype: torch.dtype = torch.float64) -> Made:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        part = FORMS[form]()
    frozen = copy.deepcopy(part.to(dtype)).double()
    attached = attach(Host(part), structure, "all-linear")
    scatter(attached)
    if dtype == torch.float64:
        part.double()
    exact = {
        name: tensor.detach().double().requires_grad_()
        for name, tensor in attached.tensors().items()
    }
    slow = SlowMixture(
        frozen,
        router=exact["router/layers.0.mlp." + MAPS[form][0] + "/weight"],
        experts=[
            {
                name: (
                    exact[f"{block}/layers.0.mlp.{name}/A"],
                    exact[f"{block}/layers.0.mlp.{name}/B"],
                )
                for name in MAPS[form]
            }
            for block in attached.blocks
        ],
        scale=structure.scale,
        top_k=structure.top_k,
    )
    return Made(part, attached, slow, exact)


def compare(found: Made, x: Tensor, tolerance: float) -> None:
    """Output and all gradients."""
    x = x.detach().requires_grad_()
    y = found.part(x)
    weights = normal(*y.shape, seed=5)
    (y.double() * weights).sum().backward()
    x_exact = x.detach().double().requires_grad_()
    y_exact = found.slow(x_exact)
    (y_exact * weights).sum().backward()
    assert y.dtype == x.dtype
    close(y, y_exact, tolerance)
    close(x.grad, x_exact.grad, tolerance)
    for name, tensor in found.attached.tensors().items():
        wanted = found.exact[name].grad
        close(tensor.grad, torch.zeros_like(tensor) if wanted is None else wanted, tolerance, name)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_whole_experts_run_one_by_one_in_float64(form, top_k):
    structure = Mixture(scale=1.5, num_experts=3, top_k=top_k)
    for shape in ((2, 5), (7,), (1, 1)):
        compare(made(form, structure), normal(*shape, D), 1e-10)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_whole_experts_in_low_precision(form, dtype, tolerance):
    found = made(form, MIXTURE, dtype)
    compare(found, normal(2, 5, D).to(dtype), tolerance)
    tensors = found.attached.tensors().values()
    assert {t.dtype for t in tensors} == {torch.float32}


def test_the_frozen_maps_run_once_a_token_however_many_experts_there_are():
    found = made("gated", Mixture(num_experts=5, top_k=4))
    seen: list[tuple[int, ...]] = []
    for layer in found.attached.layers.values():
        layer.base.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    found.part(normal(2, 5, D))
    assert sorted(seen) == [(2, 5, D), (2, 5, D), (2, 5, WIDE)]


def test_all_experts_are_the_dense_mixture_and_one_is_the_most_probable():
    x = normal(2, 5, D)
    for top_k in (1, 3):
        found = made("plain", Mixture(scale=1.5, num_experts=3, top_k=top_k))
        p = (x @ found.slow.router.T).softmax(dim=-1)
        if top_k == 1:
            p = F.one_hot(p.argmax(dim=-1), 3).double()
        outputs = []
        for expert in range(3):
            weights = {
                f"{name}.weight": found.slow.feed_forward.get_parameter(f"{name}.weight")
                + 1.5 * (B @ A)
                for name, (A, B) in found.slow.experts[expert].items()
            }
            outputs.append(functional_call(found.slow.feed_forward, weights, (x,)))
        torch.testing.assert_close(
            found.part(x), torch.einsum("bse,ebsd->bsd", p, *[torch.stack(outputs)])
        )


def test_experts_that_no_token_chose_have_a_gradient_of_zero():
    """As DistributedDataParallel needs it: every parameter is in the graph."""
    found = made("gated", Mixture(num_experts=4, top_k=2))
    router = found.attached.tensors()["router/layers.0.mlp.w1/weight"]
    with torch.no_grad():
        router.zero_()
        router[0], router[2] = 2.0, 1.0
    found.part(normal(2, 5, D).abs()).sum().backward()
    for name, tensor in found.attached.tensors().items():
        assert tensor.grad is not None, name
        chosen = name.split("/")[0] in ("expert0", "expert2", "router")
        assert bool(tensor.grad.any()) == chosen, name


def test_no_token_at_all():
    found = made("gated", MIXTURE)
    y = found.part(torch.zeros(0, 5, D, dtype=torch.float64))
    y.sum().backward()
    assert y.shape == (0, 5, D)
    for tensor in found.attached.tensors().values():
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_the_router_is_exact_where_logits_would_be_equal_in_bfloat16():
    found = made("plain", Mixture(num_experts=3, top_k=1), torch.bfloat16)
    router = found.attached.tensors()["router/layers.0.mlp.fc1/weight"]
    with torch.no_grad():
        router.copy_(1.0 + 1e-3 * torch.arange(3)[:, None])
    found.part(normal(2, 5, D).abs().bfloat16()).sum().backward()
    last = [found.attached.tensors()[f"expert{e}/layers.0.mlp.fc2/B"] for e in range(3)]
    assert [B.grad is not None and bool(B.grad.any()) for B in last] == [False, False, True]


def test_a_forward_that_was_broken_off_leaves_nothing_behind():
    found, x = made("gated", MIXTURE), normal(2, 5, D)
    wanted = found.part(x)
    layer: Any = found.part.get_submodule("w1")
    layer(normal(2, 5, D, seed=8))
    assert torch.equal(found.part(x), wanted)
    again = copy.deepcopy(found.part)
    assert torch.equal(again(x), wanted)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(found.part(x), wanted)


# Dropout -----------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Without anything between its maps, so that the mean over masks is known."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, WIDE), nn.Linear(WIDE, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


@pytest.mark.parametrize("where", ["z", "x"])
def test_dropout_is_unbiased_and_leaves_the_base_alone(where):
    structure = Mixture(num_experts=3, top_k=2, dropout=0.4, dropout_at=where)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        part = Linear().double()
        frozen = copy.deepcopy(part)
        attached = attach(Host(part), structure, "all-linear")
        scatter(attached, 0.3)
        x = normal(1, D).expand(40_000, D)
        exact = part.eval()(x[:1])[0]
        y = part.train()(x)
        standard_error = y.std(dim=0) / len(y) ** 0.5
        assert (standard_error > 0).all()
        assert ((y.mean(dim=0) - exact).abs() < 4.5 * standard_error).all()
        assert ((exact - frozen(x[0])).abs() * 0.4 > 9 * standard_error).any()
        for alone in ("fc1", "fc2"):  # each of them drops
            for name, tensor in attached.tensors().items():
                if name.endswith("/B"):
                    tensor.fill_(float(alone in name))
            assert (part(x[:99]).std(dim=0) > 0).all()
        for name, tensor in attached.tensors().items():
            if name.endswith("/B"):
                tensor.zero_()
        torch.testing.assert_close(part(x[:3]), frozen(x[:3]))


# Refused -----------------------------------------------------------------------------------------

REFUSED = {
    "one_expert": (lambda: Mixture(num_experts=1, top_k=1), "num_experts is 1"),
    "too_many": (lambda: Mixture(num_experts=2, top_k=3), "top_k is 3, but there are 2 experts"),
    "none": (lambda: Mixture(top_k=0), "top_k is 0"),
}


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=list(REFUSED))
def test_impossible_parts_are_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()


class Flattening(Plain):
    """Which joins all dimensions but the last between its maps."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).flatten(0, -2)).view(x.shape)


def test_what_cannot_be_followed_is_told_where_it_runs():
    part = Flattening()
    attach(Host(part), MIXTURE, "all-linear")
    with pytest.raises(InputError, match=r"'layers.0.mlp.fc2' got an input of shape \(20, 10\)"):
        part(torch.zeros(2, 5, D))


def test_groups_are_the_maps_that_read_and_the_one_that_is_last():
    for form, (reading, last) in {
        "plain": (["fc1"], "fc2"),
        "gated": (["w1", "w3"], "w2"),
        "fused": (["both"], "last"),
    }.items():
        host = Host(FORMS[form]())
        prefix = "layers.0.mlp."
        found = feed_forward_groups(host, target_names(host, "all-linear"))
        assert found == [(tuple(prefix + name for name in reading), prefix + last)]
        assert feed_forward_groups(host, ()) == []
