"""DoRA in a model: against stock PEFT, trained, saved, counted, and what it refuses."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from coadapt._errors import InputError
from coadapt.accounting import StepCounter, model_asked
from coadapt.backbone import pool
from coadapt.groups import Uniform
from coadapt.inits import Pissa
from coadapt.model import MultiTaskModel
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.runs import load_run
from coadapt.saving import load_adapter, save_adapter
from coadapt.structures import Dora, Single
from coadapt.study.budget import Counter
from tests.small import (
    MIXED,
    NAMES,
    blocks_of,
    gradients,
    make_batch,
    make_model,
    output_hash,
    randomize,
)
from tests.toy_runs import train_toy

# PEFT asks transformers for a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ALPHA, R, DROPOUT = 12, 4, 0.3
PEFTS = {"A": "lora_A", "B": "lora_B", "weight": "lora_magnitude_vector"}


@torch.no_grad()
def dora_model(folder: Any, structure: Dora | None = None, **config: Any) -> MultiTaskModel:
    """Return a model with factors away from zero and magnitudes away from the norms."""
    model = make_model(folder, structure or Dora(scale=3.0), Plan.shared(NAMES, R), **config)
    norms = {name: p.clone() for name, p in model.attached.tensors().items() if "magn" in name}
    randomize(model, std=0.1)
    for name, p in norms.items():  # noised by what `randomize` drew
        model.attached.tensors()[name].add_(1.0).mul_(p)
    return model


def outputs(model: MultiTaskModel) -> torch.Tensor:
    batch = make_batch(MIXED)
    del batch["labels"]
    with torch.no_grad():
        return model(**batch)["outputs"]


# Against PEFT -----------------------------------------------------------------------------------


@pytest.fixture(params=["attention", "all-linear"])
def pair(request, tiny_bert):
    """A model of ours and one of PEFT's around equal backbones, with equal weights."""
    structure = Dora(scale=ALPHA / R, dropout=DROPOUT)
    ours = dora_model(tiny_bert, structure, target_modules=request.param)
    options = {"r": R, "lora_alpha": ALPHA, "lora_dropout": DROPOUT, "use_dora": True}
    attention = ours.backbone.config._attn_implementation
    base = AutoModel.from_pretrained(
        tiny_bert, add_pooling_layer=False, attn_implementation=attention, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    names = list(ours.attached.layers)
    theirs = get_peft_model(base, LoraConfig(target_modules=names, **options))
    with torch.no_grad():
        for name, factor in blocks_of(ours).items():
            peft = theirs_of(theirs, name)
            if name.startswith("magnitude/"):  # starts at the same norms, and is trained
                start = AutoModel.from_pretrained(tiny_bert).get_submodule(name.split("/")[1])
                torch.testing.assert_close(peft, start.weight.norm(dim=1))
                assert peft.requires_grad
            peft.copy_(factor.view_as(peft))
    return ours, theirs


def theirs_of(peft_model: Any, name: str) -> nn.Parameter:
    """Return PEFT's parameter for our ``block/module/A`` or ``magnitude/module/weight``."""
    _, module, factor = name.split("/")
    layer = peft_model.get_submodule(f"base_model.model.{module}")
    return getattr(layer, PEFTS[factor])["default"].weight


def losses(pair, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same loss on both, with the same masks: our heads on either pooled output."""
    ours, theirs = pair
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        mine = ours(**batch)["loss"]
        torch.manual_seed(1)
        found = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    ours.route.set(batch["task_ids"])
    scores = ours.heads(pool(found, batch["attention_mask"], "mean"), ours.route)
    rows = ours.heads.row_losses(scores, batch["labels"], batch["task_ids"])
    counts = torch.bincount(batch["task_ids"])
    return mine, (rows / (counts[batch["task_ids"]] * len(counts))).sum()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
def test_forward_and_gradients_are_pefts(pair, training):
    ours, theirs = (model.train(training) for model in pair)
    mine, exact = losses(pair, make_batch(MIXED))
    torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-6)
    mine.backward()
    exact.backward()
    for name, factor in blocks_of(ours).items():
        wanted: Any = theirs_of(theirs, name).grad
        assert wanted.abs().max() > 1e-4, name
        torch.testing.assert_close(factor.grad, wanted.view_as(factor), rtol=1e-4, atol=1e-6)


def test_ten_adamw_steps_are_pefts(pair):
    ours, theirs = (model.train() for model in pair)
    names = list(blocks_of(ours))
    factors = [list(blocks_of(ours).values()), [theirs_of(theirs, name) for name in names]]
    start = [factor.detach().clone() for factor in factors[0]]
    ours.heads.requires_grad_(False)
    optimizers = [torch.optim.AdamW(f, lr=1e-3, weight_decay=0.1, eps=1e-6) for f in factors]
    for step in range(10):
        both = losses(pair, make_batch(MIXED, seed=step))
        for loss, optimizer in zip(both, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for mine, exact in zip(*factors, strict=True):
            torch.testing.assert_close(mine, exact.view_as(mine), rtol=0, atol=1e-5)
    for before, after in zip(start, factors[0], strict=True):
        assert (after - before).abs().max() > 3e-3  # all of them were trained


# In a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_model_has_the_base_model_s_bits(tiny_bert, dtype):
    plan, heads = Plan.shared(NAMES, R), {"dtype": dtype, "target_modules": "all-linear"}
    fresh = make_model(tiny_bert, Dora(), plan, **heads).eval()
    untouched = make_model(tiny_bert, Single(), plan, **heads).eval()  # whose B is zero
    assert torch.equal(outputs(fresh), outputs(untouched))


def test_magnitudes_are_trained_saved_and_decayed(tiny_bert):
    model = dora_model(tiny_bert)
    for module, layer in model.attached.layers.items():
        m: Any = layer.m
        assert m is model.attached.tensors()[f"magnitude/{module}/weight"]
        assert (m.requires_grad, m.dtype, tuple(m.shape)) == (True, torch.float32, (32, 1))
        assert torch.equal(model.state_tensors()[f"magnitude/{module}/weight"], m.detach())
    named = [(n, p) for n, p in model.named_parameters() if not n.startswith("heads.")]
    groups = Uniform().split(named, (), learning_rate=1.0, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decays[id(layer.m)] for layer in model.attached.layers.values()} == {0.1}


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
@pytest.mark.parametrize("re_entrant", [True, False], ids=["re_entrant", "non_re_entrant"])
def test_gradients_are_the_same_with_checkpointing(tiny_bert, re_entrant, dropout):
    model = dora_model(tiny_bert, Dora(dropout=dropout, detach_norm=False)).train()
    found = []
    for kwargs in (None, {"use_reentrant": re_entrant}):
        if kwargs is not None:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append(gradients(model, make_batch(MIXED)))
    assert any(name.endswith(".m") for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-6)


def test_ranks_differ_by_module_where_the_plan_says_so(tiny_bert):
    shared, module = Plan.shared(NAMES, 3), "encoder.layer.0.attention.self.query"
    plan = Plan(blocks=shared.blocks, ranks={module: {"shared": 5}})
    layers = make_model(tiny_bert, Dora(), plan).attached.layers
    assert {name: len(layer.A[0]) for name, layer in layers.items()} == {
        name: 5 if name == module else 3 for name in layers
    }


def test_saved_and_loaded_magnitudes_have_the_same_bits(tiny_bert, tmp_path):
    model = dora_model(tiny_bert).eval()
    save_adapter(model, tmp_path / "adapter")
    other = make_model(tiny_bert, Dora(scale=3.0), Plan.shared(NAMES, R), seed=2).eval()
    assert not torch.equal(outputs(model), outputs(other))
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(outputs(model), outputs(other))


def test_a_run_is_loaded_with_its_bits(tiny_bert, toy_suite_dict, tmp_path):
    recipe = Recipe(structure=Dora(dropout=0.1), sharing="shared")
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", recipe, budget=3)
    layers: Any = run.model.attached.layers.values()
    moved = [layer.m.detach() - layer.base.weight.norm(dim=1, keepdim=True) for layer in layers]
    assert all(float(change.abs().max()) > 1e-4 for change in moved)
    assert output_hash(load_run(tmp_path / "run")) == output_hash(run)


# What is counted, and what is refused -----------------------------------------------------------


@pytest.fixture(scope="module")
def config(tiny_bert):
    return model_asked(str(tiny_bert), ["model.pooling=mean", "model.target_modules=mlp"])


def test_what_is_trained_is_the_formula(config):
    counter, recipe = Counter(config), Recipe(structure=Dora())
    spent = counter.spent(recipe, NAMES, Plan.shared(NAMES, 7))
    assert spent.trainable == 2 * (7 * 2 * (32 + 64) + 32 + 64)  # two maps in each of two layers
    assert counter.matched_rank(recipe, NAMES, 8) == 7  # 8 trains 6 % more than a LoRA of 8


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "through_norm"])
def test_flops_are_those_of_lora_and_of_the_norm(config, detach_norm):
    steps, r = StepCounter(config, 4, 16, 2), 3
    dora = steps.flops(Recipe(structure=Dora(detach_norm=detach_norm)), r)
    lora = steps.flops(Recipe(structure=Single()), r)
    norm = 0
    for i, o in ((32, 64), (64, 32)):
        forward = 2 * r * i * o + 2 * r * r * i + 2 * r * r * o  # W A', A A', B (A A')
        backward = 0 if detach_norm else 2 * r * i * o + 2 * 2 * r * r * i + 2 * 2 * r * r * o
        norm += 2 * (forward + backward)  # two layers
    assert (dora or 0) - (lora or 0) == norm


def test_what_does_not_fit_is_refused(tiny_bert):
    with pytest.raises(InputError, match=r"one block that serves every task.*two \(for 1 of 3\)"):
        make_model(tiny_bert, Dora(), Plan.private(NAMES, 6))
    with pytest.raises(InputError, match="take init 'default'"):
        make_model(tiny_bert, Dora(), Plan.shared(NAMES, 2), init=Pissa())
    with pytest.raises(InputError, match=r"scale .* must be positive"):
        Dora(scale=0.0)
    model = make_model(tiny_bert, Dora(), Plan.shared(NAMES, 2))
    with pytest.raises(InputError, match=r"no exact LoRA form .* 'dora'"):
        model.fold("two")
