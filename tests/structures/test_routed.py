"""What heads and routers add: when heads separate, what a start keeps, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from coadapt import InputError
from coadapt.inits import RLora, RLoraCode
from coadapt.planning import Block, Plan
from coadapt.structures import Experts, Heads, RoutedHeads, Single
from tests.small import MIXED, NAMES, blocks_of, make_batch, make_model, randomize

PLAN = Plan.shared(NAMES, 3)


def train_steps(model, *, steps=5, seed=0):
    """A few steps of Adam, dropout on."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            optimizer.zero_grad()
            model(**make_batch(MIXED, seed=step))["loss"].backward()
            optimizer.step()
    return model.eval()


def heads_of(model):
    """The B of every head in the first layer, and how far they are from each other."""
    layer = next(iter(model.attached.layers.values()))
    return [B.detach() for B in layer.B]


def distance(heads):
    return min(float((a - b).abs().max()) for i, a in enumerate(heads) for b in heads[:i])


@pytest.mark.parametrize("structure", [Heads(dropout=0.5), RoutedHeads()], ids=lambda s: s.kind)
def test_heads_that_start_alike_separate_by_their_masks_or_their_router(tiny_bert, structure):
    heads = heads_of(train_steps(make_model(tiny_bert, structure, PLAN)))
    assert distance(heads) > 1e-4


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_heads_without_router_and_with_one_mask_stay_equal_forever(tiny_bert, dropout):
    """The documented symmetric case: HydraLoRA without its router is one LoRA."""
    structure = Heads(num_heads=4, dropout=dropout, common_mask=True)
    heads = heads_of(train_steps(make_model(tiny_bert, structure, PLAN)))
    assert float(heads[0].abs().max()) > 1e-3
    assert distance(heads) == 0.0


def test_equal_heads_are_a_lora_of_n_times_the_scale(tiny_bert):
    """A sum of N equal heads is one head N times, in value and in A's gradient."""
    heads = make_model(tiny_bert, Heads(num_heads=4, scale=0.5, common_mask=True), PLAN)
    single = make_model(tiny_bert, Single(scale=2.0), PLAN)
    randomize(single)
    single.eval()
    heads.eval()
    known = single.state_tensors()
    tensors = {}
    for name in heads.state_tensors():
        block, _, rest = name.partition("/")
        tensors[name] = known[name if block == "heads" else f"shared/{rest}"]
    heads.load_state_tensors(tensors, "the single one")
    batch = make_batch(MIXED)
    torch.testing.assert_close(heads(**batch)["outputs"], single(**batch)["outputs"])


def test_a_router_over_one_head_is_lora(tiny_bert):
    """In the layer; the structure refuses it, since a softmax of one logit has nothing to say."""
    from coadapt.adapters import PartitionedLinear, Route, RouterGate

    torch.manual_seed(0)
    base, route = nn.Linear(6, 5), Route()
    gate = RouterGate("map", 6, [3])
    layer = PartitionedLinear(base, [3], gate=gate, route=route, scale=2.0, shared_A=True)
    with torch.no_grad():
        for parameter in (*layer.A, *layer.B, gate.weight):
            parameter.normal_()
        x = torch.randn(2, 4, 6)
        expected = base(x) + 2.0 * x @ layer.A[0].T @ layer.B[0].T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("structure", "exact"),
    [
        (Heads(num_heads=3), True),
        (Heads(num_heads=3, reduction="mean"), True),
        (RoutedHeads(num_heads=3, router_init="zero"), True),
        (RoutedHeads(num_heads=3), False),
        (Single(), True),
    ],
    ids=["sum", "mean", "router_at_zero", "router_of_the_code", "single"],
)
@pytest.mark.parametrize("init", [RLora(), RLoraCode()], ids=lambda i: i.kind)
def test_a_random_start_keeps_the_base_function_where_the_gate_is_known(
    tiny_bert, structure, exact, init
):
    model = make_model(tiny_bert, structure, PLAN, init=init, dtype="float64").eval()
    batch = make_batch(MIXED)
    started = model(**batch)["outputs"].detach()
    for factor in blocks_of(model).values():
        factor.data.zero_()
    for name, factor in model.attached.tensors().items():
        if name.endswith("/B0"):
            factor.data.zero_()
    base = model(**batch)["outputs"].detach()
    finite = torch.isfinite(base)
    difference = float((started - base)[finite].abs().max())
    assert (difference < 1e-6) == exact or init.kind == "r_lora_code"
    assert not exact or difference < 1e-6


def test_r_lora_starts_with_the_papers_spread(tiny_bert):
    model = make_model(
        tiny_bert, Heads(num_heads=4), Plan.shared(NAMES, 64), init=RLora(gamma=16.0)
    )
    layer = next(iter(model.attached.layers.values()))
    c = 32**0.25 / 4.0  # d_out = 32
    assert layer.A[0].std().item() == pytest.approx(c * 32**-0.5, rel=0.05)
    for B in layer.B:
        assert B.std().item() == pytest.approx(c * 32**-0.5, rel=0.06)
    assert distance(heads_of(model)) > 0.1


def test_the_published_code_starts_its_heads_with_very_unequal_norms(tiny_bert):
    """The sheet's numbers: r = 4, gamma = 64, N = 5 multiply A by 1.7e-4, heads up to 0.177."""
    model = make_model(tiny_bert, RoutedHeads(num_heads=5), Plan.shared(NAMES, 4), init=RLoraCode())
    layer = next(iter(model.attached.layers.values()))
    c = 4**0.25 / 8.0
    assert c == pytest.approx(0.177, abs=5e-4)
    assert layer.A[0].std().item() == pytest.approx(c**5 * 32**-0.5, rel=0.25)
    for index, B in enumerate(layer.B):
        assert B.std().item() == pytest.approx(c ** (5 - index) * 32**-0.5, rel=0.25)


@pytest.mark.parametrize(("reduction", "share"), [("sum", 1.0), ("mean", 1 / 3)])
def test_m_lora_folds_into_one_lora_of_its_rank(tiny_bert, reduction, share):
    model = randomize(make_model(tiny_bert, Heads(reduction=reduction), PLAN))
    layer = next(iter(model.attached.layers.values()))
    A, B = layer.fold(0)
    assert (len(A), B.shape[1]) == (3, 3)
    torch.testing.assert_close(B, 2.0 * share * sum(layer.B))
    started = make_model(tiny_bert, Heads(reduction=reduction), PLAN, init=RLora())
    A, _ = next(iter(started.attached.layers.values())).fold(0)
    assert len(A) == 6  # what training reached, and the start that is subtracted


def test_multi_sample_dropout_is_the_mean_of_masks(tiny_bert):
    structure = Single(dropout=0.5, dropout_samples=4)
    layer = next(iter(make_model(tiny_bert, structure, PLAN).attached.layers.values()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = layer.dropout.drop(torch.ones(20_000))
    assert sorted({round(v, 6) for v in z.tolist()}) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert float(z.mean()) == pytest.approx(1.0, abs=0.02)


def test_top_k_of_all_experts_is_the_dense_mixture(tiny_bert):
    models = [
        randomize(make_model(tiny_bert, replace(Experts(num_experts=3), top_k=k), PLAN)).eval()
        for k in (None, 3, 2)
    ]
    dense, all_three, two = (m(**make_batch(MIXED))["outputs"] for m in models)
    torch.testing.assert_close(dense, all_three)
    assert not torch.allclose(dense, two)


def test_routers_of_the_same_seed_start_alike_whatever_else_there_is(tiny_bert):
    few, many = (
        make_model(tiny_bert, RoutedHeads(), PLAN, target_modules=names).attached.tensors()
        for names in (["query"], "all-linear")
    )
    routers = [name for name in few if name.startswith("router/")]
    assert len(routers) == 2
    assert all(torch.equal(few[name], many[name]) for name in routers)


REFUSED = {
    "one_head": (lambda: RoutedHeads(num_heads=1), "router over one block has nothing to choose"),
    "one_expert": (lambda: Experts(num_experts=1), "num_experts is 1"),
    "no_head": (lambda: Heads(num_heads=0), "num_heads must be at least 1"),
    "top_k": (lambda: Experts(num_experts=4, top_k=5), "top_k is 5, but there are 4 experts"),
    "top_0": (lambda: Experts(top_k=0), "top_k is 0"),
    "samples": (lambda: Single(dropout_samples=0), "dropout_samples must be at least 1"),
    "samples_of_x": (lambda: Single(dropout_samples=2, dropout_at="x"), "take dropout_at: z"),
    "gamma": (lambda: RLora(gamma=0.0), "gamma must be positive"),
}


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=list(REFUSED))
def test_impossible_parts_are_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()


@pytest.mark.parametrize("structure", [Heads(), RoutedHeads(), Experts()], ids=lambda s: s.kind)
def test_a_plan_of_several_blocks_is_refused(tiny_bert, structure):
    two = {"a": Block(rank=1, tasks=NAMES), "b": Block(rank=1, tasks=NAMES)}
    for plan in (Plan(blocks=two), Plan.private(NAMES, 3)):
        with pytest.raises(InputError, match=r"one block for all tasks, not [23]"):
            make_model(tiny_bert, structure, plan)


def test_top_k_and_a_random_start_are_refused(tiny_bert):
    with pytest.raises(InputError, match="cannot start as the base model under top_k"):
        make_model(tiny_bert, Experts(top_k=2), PLAN, init=RLora())
