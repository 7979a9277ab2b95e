"""A mixture of feed-forwards in training: what is kept, noted, saved and refused."""

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
)

from coadapt import InputError
from coadapt.adapters import eject
from coadapt.fitting import train
from coadapt.inits import RLora
from coadapt.planning import Block, Plan
from coadapt.processors import load_tokenizer
from coadapt.recipe import Recipe
from coadapt.regularizers import AlignKL, LoadBalance
from coadapt.runs import load_run
from coadapt.saving import load_adapter, save_adapter
from coadapt.structures import Mixture
from coadapt.tasks.language import LanguageCollator
from tests import tiny_language
from tests.language.toys import training_items
from tests.mixtures import MIXTURE, attach
from tests.small import (
    MIXED,
    NAMES,
    blocks_of,
    gradients,
    make_batch,
    make_model,
    output_hash,
    randomize,
    take,
)

PLAN = Plan.shared(NAMES, 2)

# Our models --------------------------------------------------------------------------------------


def model_of(folder: Any, structure: Mixture = MIXTURE, **options: Any) -> Any:
    options = {"target_modules": "all-linear", "attn_implementation": "eager", **options}
    return make_model(folder, structure, PLAN, **options)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("re_entrant", [True, False], ids=["re_entrant", "non_re_entrant"])
def test_gradients_are_the_same_with_checkpointing(tiny_bert, re_entrant, dropout):
    structure = Mixture(num_experts=3, dropout=dropout)
    model = randomize(model_of(tiny_bert, structure)).train()
    batch, found = make_batch(MIXED), []
    calls = []
    first = model.attached.layers["encoder.layer.0.intermediate.dense"]
    first.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": re_entrant}
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append(gradients(model, batch))
    assert len(calls) == 3  # once, then in the forward and again in the backward
    exact, again = found
    assert exact.keys() == again.keys()
    for name in exact:
        torch.testing.assert_close(again[name], exact[name], rtol=0, atol=1e-6)
    assert any(n.endswith("gate.weight") and bool(g.any()) for n, g in exact.items())


@torch.no_grad()
def test_a_mixed_batch_equals_its_rows_one_by_one(tiny_bert):
    model = randomize(model_of(tiny_bert, dtype="float64")).eval()
    batch = make_batch(MIXED)
    together = model(**batch)["row_losses"]
    alone = [model(**take(batch, slice(i, i + 1)))["row_losses"] for i in range(len(MIXED))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_packed_rows_are_padded_ones(tmp_path):
    folder = tiny_language.save_model(tmp_path, "llama")
    tasks = tiny_language.TASKS
    options = {"tasks": tasks, "target_modules": "mlp", "max_length": 96, "pooling": "auto"}
    plan = Plan.shared([task.name for task in tasks], 2)
    model = randomize(make_model(folder, MIXTURE, plan, **options)).eval()
    items = training_items(model, load_tokenizer(model.model_config))
    found = []
    for packed in (False, True):
        out = model(**LanguageCollator(0, packed=packed)(items))
        model.zero_grad(set_to_none=True)
        out["loss"].backward()
        grads = [p.grad for p in blocks_of(model).values()]
        found.append((out["row_losses"], grads))
    (padded, padded_grads), (packed, packed_grads) = found
    torch.testing.assert_close(padded, packed, rtol=0, atol=1e-5)
    for one, other in zip(padded_grads, packed_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_names_and_number_of_what_is_trained(tiny_bert):
    model = model_of(tiny_bert)
    attached = model.attached
    assert attached.blocks == ("expert0", "expert1", "expert2", "unrouted")
    assert attached.owners == ((0, 1, 2),) * 4
    first, last = "encoder.layer.1.intermediate.dense", "encoder.layer.1.output.dense"
    named = {n for n in attached.tensors() if f"/{first}/" in n}
    experts = {f"expert{e}/{first}/{f}" for e in range(3) for f in "AB"}
    assert named == {*experts, f"router/{first}/weight"}
    assert not any(n.startswith("router/") and last in n for n in attached.tensors())
    query = "encoder.layer.1.attention.self.query"
    assert {n for n in attached.tensors() if query in n} == {
        f"unrouted/{query}/A",
        f"unrouted/{query}/B",
    }
    r, d, wide = 2, 32, 64
    layer = 3 * r * 2 * (d + wide) + 3 * d + 4 * r * (d + d)
    assert model.num_trainable["adapters"] == 2 * layer
    alone = model_of(tiny_bert, target_modules="mlp")
    assert alone.attached.blocks == ("expert0", "expert1", "expert2")
    trained = {id(p) for p in attached.tensors().values()} | {
        id(p) for p in model.heads.parameters()
    }
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained


def test_routers_and_experts_start_from_streams_of_their_names(tiny_bert):
    few, many = (
        model_of(tiny_bert, target_modules=t).attached.tensors() for t in ("mlp", "all-linear")
    )
    assert all(torch.equal(few[name], many[name]) for name in few)
    routers = torch.cat([t.flatten() for n, t in few.items() if n.startswith("router/")])
    assert float(routers.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert not torch.equal(*(t for n, t in few.items() if n.startswith("router/")))
    assert all(bool(t.any()) == n.endswith(("/A", "/weight")) for n, t in few.items())


def test_saved_and_loaded_factors_have_the_same_bits(tiny_bert, tmp_path):
    model = randomize(model_of(tiny_bert, seed=1)).eval()
    save_adapter(model, tmp_path / "adapter")
    other = model_of(tiny_bert, seed=2).eval()
    batch = make_batch(MIXED)
    with torch.no_grad():
        assert not torch.equal(model(**batch)["outputs"], other(**batch)["outputs"])
        load_adapter(other, tmp_path / "adapter")
        assert torch.equal(model(**batch)["outputs"], other(**batch)["outputs"])


def test_eject_restores_the_base_modules(tiny_bert):
    backbone = AutoModel.from_pretrained(tiny_bert)
    before, weights = dict(backbone.named_modules()), copy.deepcopy(backbone.state_dict())
    attached = attach(backbone, MIXTURE, "all-linear")
    assert len(attached.layers) == 12
    for name, layer in attached.layers.items():
        assert backbone.get_submodule(name) is layer
        assert layer.base is before[name]
    eject(backbone, attached.layers)
    assert dict(backbone.named_modules()) == before
    assert all(torch.equal(weights[n], w) for n, w in backbone.state_dict().items())


def test_each_router_and_every_map_is_noted_once(tiny_bert):
    model = randomize(model_of(tiny_bert)).train()
    names, batch = list(model.attached.layers), make_batch(MIXED)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    model.route.set(batch["task_ids"])
    with model.route.noting({"routing": names, "representation": names}) as noted:
        model.backbone(**inputs)
    shape = batch["input_ids"].shape
    assert list(noted["routing"]) == [f"encoder.layer.{n}.intermediate.dense" for n in range(2)]
    for probabilities in noted["routing"].values():
        assert (probabilities.shape, probabilities.dtype) == ((*shape, 3), torch.float32)
        torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(shape))
        assert probabilities.requires_grad
    assert set(noted["representation"]) == set(names)
    for name, z in noted["representation"].items():
        assert z.shape == (*shape, 2 if "attention" in name else 6)


def test_regularizers_reach_the_router_and_the_factors(tiny_bert):
    model = model_of(tiny_bert).train()
    recipe = Recipe(structure=MIXTURE, regularizers=(LoadBalance(), AlignKL(min_count=1)))
    penalties = model._regularized(recipe)
    model.penalties = penalties
    batch = make_batch(MIXED)
    found = model(**batch)
    assert found["penalties"]["load_balance"].item() == pytest.approx(2.0, abs=0.1)  # k, if uniform
    whole = gradients(model, batch)
    model.penalties = None
    plain = gradients(model, batch)
    routers = [n for n in whole if n.endswith("gate.weight")]
    assert len(routers) == 2
    assert all(float((whole[n] - plain[n]).abs().max()) > 1e-7 for n in routers)
    downs = [n for n in whole if ".A." in n]
    assert all(bool(whole[n].any()) and not bool(plain[n].any()) for n in downs)


def test_a_run_trains_all_of_it_and_is_opened_with_the_same_bits(
    tiny_bert, toy_suite_dict, tmp_path
):
    run = train(
        {
            "name": str(tiny_bert),
            "dtype": "float32",
            "max_length": 32,
            "backbone_dropout": False,
            "target_modules": "all-linear",
        },
        toy_suite_dict,
        "mix_lora",
        budget=2,
        output=tmp_path / "run",
        training={
            "max_steps": 2,
            "per_device_train_batch_size": 256,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    )
    updates = run.result["train"]["updates"]
    assert updates == dict.fromkeys(
        [
            *(f"expert{e}" for e in range(8)),
            "unrouted",
            *(f"heads/{task}" for task in toy_suite_dict["tasks"]),
        ],
        2,
    )
    options = {"tasks": run.suite.tasks, "seed": run.config.seed, "target_modules": "all-linear"}
    recipe = run.config.recipe
    fresh = make_model(tiny_bert, recipe.structure, run.config.plan, **options).state_tensors()
    after = run.model.state_tensors()
    moved = {name: not torch.equal(after[name], fresh[name]) for name in after}
    for name in moved:  # but for an expert of a layer that no token chose
        block, module, *_ = name.split("/")
        part = "intermediate" if "output" in module else "output"
        other = name.replace("intermediate", part).replace("output", part)
        assert moved[name] or (block.startswith("expert") and not moved[other]), name
    assert sum(moved.values()) > 0.8 * len(moved)
    assert output_hash(load_run(run.path)) == output_hash(run)
    with pytest.raises(InputError, match="structure 'mixture'"):
        run.export(tmp_path / "out")


# Refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("attention", "takes in none; set it to 'mlp' or 'all-linear'"),
        (("query", "intermediate.dense"), r"leaves out encoder\.layer\.0\.output\.dense of the"),
        (("layer.0.output.dense",), r"leaves out encoder\.layer\.0\.intermediate\.dense of the"),
    ],
    ids=["attention", "first_only", "last_only"],
)
def test_it_takes_whole_feed_forwards(tiny_bert, targets, told):
    with pytest.raises(InputError, match=told):
        model_of(tiny_bert, target_modules=targets)


def test_a_plan_of_several_blocks_and_a_start_away_from_zero_are_refused(tiny_bert):
    two = Plan(blocks={name: Block(rank=1, tasks=NAMES) for name in "ab"})
    with pytest.raises(InputError, match="one block for all tasks, not 2"):
        make_model(tiny_bert, MIXTURE, two, target_modules="mlp")
    with pytest.raises(InputError, match="which experts a token starts with is not known"):
        make_model(tiny_bert, MIXTURE, PLAN, target_modules="mlp", init=RLora())


def test_layers_have_no_lora_form(tiny_bert):
    model = model_of(tiny_bert)
    with pytest.raises(InputError, match="no exact LoRA form"):
        model.fold(NAMES[0])
    layer = model.attached.layers["encoder.layer.0.output.dense"]
    with pytest.raises(ValueError, match="no exact LoRA form"):
        layer.fold(0)
    with pytest.raises(ValueError, match="cannot start away from zero"):
        layer.freeze_offset()
