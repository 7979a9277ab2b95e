"""Terms on factors in a model and in training: what they see, and what they add to a step."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from coadapt import InputError, train
from coadapt.backbone import ModelConfig
from coadapt.inits import RLora
from coadapt.model import build_model
from coadapt.penalties import Penalties
from coadapt.planning import Block, Plan
from coadapt.recipe import Recipe
from coadapt.regularizers import Captured, LayerFactors, OLora, Pego, Spr
from coadapt.structures import Bank, Experts, Heads, Mixture, RoutedHeads, Single
from tests.reference import slow_orthogonality as slow
from tests.small import MIXED, NAMES, TASKS, make_batch, randomize, take

EVERYONE = {
    name: Block(rank=rank, tasks=NAMES) for name, rank in zip(NAMES, (3, 1, 2), strict=True)
}
COOPERATIVE = Plan(blocks={**EVERYONE, "cooperative": Block(rank=2, tasks=NAMES)})
SHARED = Plan.shared(NAMES, 2)
# Structure, plan, init, and the blocks of a module that are compared.
MODELS: dict[str, tuple[Any, Plan, Any, tuple[str, ...]]] = {
    "single": (Single(), COOPERATIVE, None, NAMES),
    "private": (Bank(), Plan.private(NAMES, 7), None, NAMES),
    "shared_private": (Bank(), Plan.shared_private(NAMES, 7), None, NAMES),
    "heads": (Heads(num_heads=3), SHARED, None, ("head0", "head1", "head2")),
    "offset": (RoutedHeads(num_heads=2), SHARED, RLora(), ("head0", "head1")),
    "experts": (Experts(num_experts=3), SHARED, None, ("expert0", "expert1", "expert2")),
    "mixture": (Mixture(num_experts=2), SHARED, None, ("expert0", "expert1")),
}
TERMS = {"spr": (Spr(), slow.spr), "pego": (Pego(), slow.pego), "o_lora": (OLora(), slow.o_lora)}


def regular(folder, *regularizers, name="single", **config):
    """A model of random factors, in training mode."""
    structure, plan, init, _ = MODELS[name]
    options = {"dtype": "float32", "backbone_dropout": False, "target_modules": "all-linear"}
    recipe = Recipe(structure=structure, regularizers=regularizers)
    model = build_model(
        ModelConfig(name=str(folder), **{**options, **config}),
        TASKS,
        recipe if init is None else replace(recipe, init=init),
        plan,
    )
    return randomize(model).train()


def seen_by_the_oracle(model, own):
    """The blocks that are compared in every module, taken from the tensors by their names."""
    tensors, factors = model.attached.tensors(), {}
    for module, layer in model.attached.layers.items():
        names = [name for name in model.attached.blocks_in(module) if name in own]
        factors[module] = LayerFactors(
            A={n: tensors[f"{'shared' if layer.shared_A else n}/{module}/A"] for n in names},
            B={n: tensors[f"{n}/{module}/B"] for n in names},
            base=layer.base,
            shared_A=layer.shared_A,
        )
    empty = torch.zeros(0, dtype=torch.long)
    return Captured(task_ids=empty, valid=empty[:, None].bool(), factors=factors)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("name", MODELS)
def test_the_blocks_of_a_structure_against_the_oracle(tiny_bert, name, kind):
    part, oracle = TERMS[kind]
    if kind == "o_lora" and isinstance(MODELS[name][0], Heads | RoutedHeads):
        with pytest.raises(InputError, match="heads have one A together"):
            regular(tiny_bert, part, name=name)
        return
    model = regular(tiny_bert, part, name=name)
    expected = oracle(seen_by_the_oracle(model, MODELS[name][3]))
    found = model(**make_batch(MIXED))["penalties"]
    assert list(found) == [kind]
    assert expected > 0
    torch.testing.assert_close(found[kind].double(), expected.double(), rtol=1e-4, atol=0)


def penalty_gradients(model, batch):
    """Gradients of what the share adds to the loss, by parameter."""
    model.zero_grad(set_to_none=True)
    (
        model(**batch, penalty_share=1.0)["loss"] - model(**batch, penalty_share=0.0)["loss"]
    ).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_weight_and_share_reach_the_loss_and_the_gradients(tiny_bert):
    part = Spr(weight=0.3)
    model, batch = regular(tiny_bert, part), make_batch(MIXED)
    term = model(**batch)["penalties"]["spr"]
    for share in (1.0, 0.25):
        with_it, without = (
            model(**batch, penalty_share=value)["loss"].detach() for value in (share, 0.0)
        )
        torch.testing.assert_close(with_it - without, share * 0.3 * term, rtol=1e-4, atol=1e-4)
    blocks = {n: p for n, p in model.named_parameters() if ".A." in n or ".B." in n}
    loss = 0.3 * slow.spr(seen_by_the_oracle(model, NAMES))
    expected = torch.autograd.grad(loss, list(blocks.values()), allow_unused=True)
    found = penalty_gradients(model, batch)
    moved = 0
    for name, gradient in zip(blocks, expected, strict=True):
        wanted = torch.zeros_like(blocks[name]) if gradient is None else gradient
        torch.testing.assert_close(found[name], wanted.float(), rtol=1e-3, atol=1e-3)
        moved += bool(wanted.abs().max() > 0.1)
    assert moved == 2 * len(NAMES) * len(model.attached.layers)  # all but the cooperative ones


def test_accumulated_micro_batches_are_one_step(tiny_bert):
    """The whole batch against three parts of unequal size, one of a single task."""
    model, batch = regular(tiny_bert, Spr(weight=0.1), Pego()), make_batch(MIXED)
    counts = torch.bincount(batch["task_ids"], minlength=len(TASKS))
    model.zero_grad(set_to_none=True)
    model(**batch, task_counts=counts)["loss"].backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 7)):
        part = take(batch, rows)
        model(**part, task_counts=counts, penalty_share=1 / 3)["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-5)


def test_the_batch_does_not_matter_and_neither_does_a_rank_without_rows(tiny_bert):
    model = regular(tiny_bert, Spr(), Pego())
    terms = [model(**make_batch(tasks))["penalties"] for tasks in (MIXED, (1, 1), (0,))]
    assert terms[0] == terms[1] == terms[2]
    assert model.penalties is not None
    total, found = model.penalties.of_weights(torch.zeros(0, dtype=torch.long))
    assert found == terms[0]
    torch.testing.assert_close(
        total.detach(), 1e-4 * found["spr"] + 1e-3 * found["pego"], rtol=1e-6, atol=0
    )
    total.backward()
    assert all(layer.A[0].grad is not None for layer in model.attached.layers.values())


def test_nothing_is_added_without_gradients_or_labels(tiny_bert):
    model, batch = regular(tiny_bert, Spr(weight=10.0)), make_batch(MIXED)
    model.eval()
    with torch.no_grad():
        found = model(**batch)
        plain = regular(tiny_bert).eval()(**batch)
    assert found["penalties"] == {}
    torch.testing.assert_close(found["loss"], plain["loss"])
    del batch["labels"]
    assert set(model(**batch)) == {"outputs"}


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not_reentrant", "reentrant"])
def test_gradients_with_activation_checkpointing_of_either_kind(tiny_bert, use_reentrant):
    model, batch = regular(tiny_bert, Spr(weight=0.1)), make_batch(MIXED)
    model(**batch)["loss"].backward()
    exact = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    model(**batch)["loss"].backward()
    for name, gradient in exact.items():
        found = model.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)


def test_no_layer_is_listened_to(tiny_bert):
    model = regular(tiny_bert, Spr(), Pego())
    assert model.penalties is not None
    assert model.penalties.watched == {}


def test_an_encoder_decoder_s_decoder_is_looked_at_too(tiny_bert):
    model = regular(tiny_bert, Spr())
    renamed = {f"decoder.{n}": layer for n, layer in model.attached.layers.items()}
    apart = Penalties(
        (Spr(),),
        replace(model.attached, layers=renamed),
        num_tasks=len(TASKS),
        answers_known=False,
        apart=True,
    )
    _, found = apart.of_weights(torch.zeros(0, dtype=torch.long))
    assert found == model(**make_batch(MIXED))["penalties"]


@pytest.mark.parametrize("part", [Spr(), Pego(), OLora()], ids=lambda part: part.kind)
def test_a_model_of_one_block_is_refused_when_it_is_built(tiny_bert, part):
    for blocks in ({"shared": 4}, {"two": 4, "cooperative": 2}):
        plan = Plan(blocks={n: Block(rank=r, tasks=NAMES) for n, r in blocks.items()})
        with pytest.raises(InputError, match=f"'{part.kind}' keeps the tasks' blocks apart"):
            build_model(
                ModelConfig(name=str(tiny_bert), dtype="float32"),
                TASKS,
                Recipe(structure=Single(), regularizers=(part,)),
                plan,
            )


# Training ----------------------------------------------------------------------------------------


def fit(tiny_bert, suite, output, part, *, size=16, accumulated=1, steps=2, rate=5e-5, seed=0):
    tasks = list(suite["tasks"])
    blocks = {name: {"rank": 2, "tasks": tasks} for name in (*tasks, "cooperative")}
    return train(
        {
            "name": str(tiny_bert),
            "dtype": "float32",
            "max_length": 32,
            "backbone_dropout": False,
        },
        copy.deepcopy(suite),
        Recipe(structure=Single(), regularizers=() if part is None else (part,)),
        plan={"blocks": blocks},
        output=output,
        seed=seed,
        training={
            "max_steps": steps,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulated,
            "lr_scheduler_type": "constant",
            "learning_rate": rate,
        },
    )


def log_of(run):
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def test_a_step_s_log_and_batches(tiny_bert, toy_suite_dict, tmp_path):
    """As they come, not balanced; the same step however it is accumulated; the loss holds it."""
    part = Spr(weight=0.5)
    runs = [
        fit(
            tiny_bert, toy_suite_dict, tmp_path / str(size), part, size=size, accumulated=16 // size
        )
        for size in (16, 4)
    ]
    assert {run.config.batches for run in runs} == {"mixed"}
    logs = [log_of(run) for run in runs]
    for line, other in zip(*logs, strict=True):
        assert line["penalty_spr"] > 0
        assert line["penalty_spr"] == pytest.approx(other["penalty_spr"], rel=1e-4)
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
    plain = log_of(fit(tiny_bert, toy_suite_dict, tmp_path / "plain", None))
    added = logs[0][0]["loss"] - plain[0]["loss"]
    assert added == pytest.approx(0.5 * logs[0][0]["penalty_spr"], rel=1e-3)


def test_the_cosine_between_blocks_falls(tiny_bert, toy_suite_dict, tmp_path):
    ends = []
    for weight in (0.0, 0.05):
        part = Spr(weight=weight, normalized=True)
        run = fit(tiny_bert, toy_suite_dict, tmp_path / str(weight), part, steps=15, rate=1e-2)
        ends.append(log_of(run)[-1]["penalty_spr"])
    assert ends[1] < 0.5 * ends[0]
