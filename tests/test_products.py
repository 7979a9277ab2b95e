"""Products that several layers share, and those without autograd's passes, against plain ones."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config

from coadapt.adapters import PartitionedLinear, Together, readers_of_one_input, target_names
from coadapt.adapters.products import add_update, is_plain, read
from coadapt.planning import Plan
from coadapt.structures import Bank, Single
from tests.small import MIXED, NAMES, gradients, make_batch, make_model, randomize
from tests.tiny_language import CONFIGS


def maps(*outs, bias=True, seed=0):
    torch.manual_seed(seed)
    return [nn.Linear(5, out, bias=bias).double().requires_grad_(False) for out in outs]


def plainly(x, bases, A, B, scale):
    """What autograd makes of the formula."""
    z = x @ A.T
    return [base(x) + scale * z @ up.T for base, up in zip(bases, B, strict=True)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outs", [(4,), (4, 7, 3)])
def test_values_and_gradients_are_those_of_the_formula(outs, bias):
    bases = maps(*outs, bias=bias)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    A = torch.randn(3, 5, dtype=torch.float64)
    B = [torch.randn(out, 3, dtype=torch.float64) for out in outs]
    found = []
    for fast in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, A, *B)]
        mine, down, *ups = leaves
        if fast:
            ys, z = read(mine, bases, down)
            ys = [
                add_update(y, z, up, 1.7, into=True).view(2, 6, -1)
                for y, up in zip(ys, ups, strict=True)
            ]
        else:
            ys = plainly(mine, bases, down, ups, 1.7)
        torch.cat([(n + 1) * y.sin().flatten() for n, y in enumerate(ys)]).sum().backward()
        found.append((*ys, *(leaf.grad for leaf in leaves)))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)


def test_a_map_whose_output_nobody_uses_gets_no_gradient_and_no_product():
    bases = maps(4, 7)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    A = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ys, _ = read(x, bases, A)
    ys[1].sum().backward()
    torch.testing.assert_close(x.grad, bases[1].weight.sum(0).expand(6, -1))
    assert A.grad is None or not A.grad.any()


def test_adding_leaves_a_tensor_of_somebody_else_alone():
    y, h = torch.randn(2, 3, 4), torch.randn(2, 3, 2)
    B, before = torch.randn(4, 2), y.clone()
    torch.testing.assert_close(add_update(y, h, B, 0.5), before + 0.5 * h @ B.T)
    assert torch.equal(y, before)


def test_a_map_that_somebody_watches_or_changed_is_run_as_a_module():
    (base,), x = maps(4), torch.randn(2, 5, dtype=torch.float64)
    assert is_plain(base, x)
    assert not is_plain(base, x.float())
    assert not is_plain(copy.deepcopy(base).requires_grad_(True), x)
    handle = base.register_forward_hook(lambda *_: None)
    assert not is_plain(base, x)
    handle.remove()
    vars(base)["forward"] = lambda x: x
    assert not is_plain(base, x)

    class Other(nn.Linear):
        pass

    assert not is_plain(Other(5, 4), x.float())


def test_under_autocast_modules_choose_their_dtype():
    (base,), x = [base.float() for base in maps(4)], torch.randn(2, 5)
    assert is_plain(base, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(base, x)


EXPECTED = {
    "llama": [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")],
    "gpt_neox": [],  # one map holds all three
    "t5": [("q", "k", "v"), ("k", "v")],  # across, the queries are of another tensor
}


@pytest.mark.parametrize("name", EXPECTED)
def test_who_reads_one_tensor_is_found_by_running(name):
    config = CONFIGS[name]()
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config).train()
    found = readers_of_one_input(model, target_names(model, "all-linear"))
    ends = [tuple(n.rpartition(".")[2] for n in run) for run in found]
    assert sorted(set(ends)) == sorted(EXPECTED[name])
    assert all(len({n.rpartition(".")[0] for n in run}) == 1 for run in found)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_maps_that_are_no_linear_modules_are_left_alone():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=1, n_head=2))
    assert readers_of_one_input(model, target_names(model, "all-linear")) == []


STRUCTURES = {
    "shared": (Single(), Plan.shared(NAMES, 4)),
    "private": (Bank(), Plan.private(NAMES, 6)),
}


def grouped(tiny_bert, name, **config):
    structure, plan = STRUCTURES[name]
    return randomize(make_model(tiny_bert, structure, plan, target_modules="all-linear", **config))


def layers_of(model) -> list[PartitionedLinear]:
    return [x for x in model.attached.layers.values() if isinstance(x, PartitionedLinear)]


@pytest.mark.parametrize("name", STRUCTURES)
def test_together_and_one_by_one_are_the_same_function(tiny_bert, name):
    model, batch = grouped(tiny_bert, name).double(), make_batch(MIXED)
    layers = layers_of(model)
    assert sum(layer.together is not None for layer in layers) == 2 * 3
    together = (model(**batch)["outputs"], *gradients(model, batch).values())
    for layer in layers:
        layer.together = None
    alone = (model(**batch)["outputs"], *gradients(model, batch).values())
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_one_product_is_made_for_all_readers_and_nothing_is_kept(tiny_bert, monkeypatch):
    model = grouped(tiny_bert, "shared")
    sizes = []

    def counted(x, bases, A):
        sizes.append(len(bases))
        return read(x, bases, A)

    monkeypatch.setattr("coadapt.adapters.together.read", counted)
    with torch.no_grad():
        model(**make_batch(MIXED))
    assert sizes == [3, 3]  # a layer each
    groups = [layer.together for layer in layers_of(model) if layer.together is not None]
    assert [group._made for group in groups] == [{}] * 6


@pytest.fixture
def pair(tiny_bert):
    """Two layers that read one tensor, and a model whose rows are set."""
    model = grouped(tiny_bert, "shared")
    model.route.set(torch.zeros(2, dtype=torch.long))
    query, key = layers_of(model)[:2]
    assert query.together is key.together
    return query, key


def alone(layer, x):
    together, layer.together = layer.together, None
    try:
        return layer(x)
    finally:
        layer.together = together


@pytest.mark.parametrize("change", ["another tensor", "written to", "without gradients", "none"])
def test_a_layer_that_gets_another_tensor_makes_its_own_products(pair, change):
    query, key = pair
    x = torch.randn(2, 3, query.in_features)
    first = query(x)
    if change == "another tensor":
        x = x + 1
    elif change == "written to":
        x.add_(1)
    with torch.set_grad_enabled(change != "without gradients"):
        second = key(x)
    assert second.requires_grad == (change != "without gradients")
    torch.testing.assert_close(second, alone(key, x))
    assert first.shape == second.shape


def test_in_inference_mode_products_are_shared_too(pair):
    query, key = pair
    with torch.inference_mode():
        x = torch.randn(2, 3, query.in_features)
        assert torch.equal(query(x), alone(query, x))
        torch.testing.assert_close(key(x), alone(key, x))


def test_a_hook_on_a_base_map_still_runs(pair):
    query, key = pair
    seen = []
    key.base.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 3, query.in_features)
    for layer in pair:
        layer(x)
    assert seen == [1]


def test_a_copy_of_a_model_has_groups_of_its_own(tiny_bert):
    model = grouped(tiny_bert, "shared")
    copied = copy.deepcopy(model)
    layers = layers_of(copied)
    assert isinstance(layers[0].together, Together)
    assert layers[0].together._layers[0] is layers[0]
