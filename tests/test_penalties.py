"""Regularizers in a model and in training: what they see, where gradients go, what is added."""

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from coadapt import InputError, train
from coadapt.backbone import ModelConfig
from coadapt.model import build_model
from coadapt.planning import Plan
from coadapt.processors import load_tokenizer
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES
from coadapt.regularizers import AlignKL, AlignMMD, LoadBalance, LocalizedBalance
from coadapt.structures import Experts, Frozen, Heads, RoutedHeads, Single
from coadapt.tasks.language import IGNORED, LanguageCollator
from coadapt.tasks.render import answer_tokens
from tests.language.toys import training_items
from tests.small import MIXED, TASKS, make_batch, randomize
from tests.tiny_language import TASKS as LANGUAGE_TASKS
from tests.tiny_language import save_model

LOCAL = LocalizedBalance(task_types=(0, 1, 0), expert_types=(0, 0, 1, 1))
PARTS: dict[str, tuple[Any, Any]] = {
    "align_kl": (Single(), AlignKL(min_count=1)),
    "align_mmd": (Single(), AlignMMD(min_count=1)),
    "align_kl_heads": (Heads(), AlignKL()),
    "align_kl_routed": (RoutedHeads(), AlignKL()),
    "align_kl_sequence": (Single(), AlignKL(pool="sequence")),
    "load_balance": (Experts(top_k=2), LoadBalance()),
    "localized_balance": (Experts(num_experts=4), LOCAL),
}


@pytest.fixture(params=PARTS.values(), ids=list(PARTS))
def regularized(request, tiny_bert):
    structure, regularizer = request.param
    return regular(tiny_bert, structure, regularizer)


def regular(folder, structure, *regularizers, tasks=TASKS, **config):
    """A model of random factors, in training mode."""
    names = [task.name for task in tasks]
    options = {"dtype": "float32", "backbone_dropout": False, **config}
    model = build_model(
        ModelConfig(name=str(folder), **options),
        tasks,
        Recipe(structure=structure, regularizers=regularizers),
        Plan.shared(names, 3),
    )
    return randomize(model).train()


def penalty_of(model, batch):
    """The weighted terms alone: what the share adds."""
    return model(**batch, penalty_share=1.0)["loss"] - model(**batch, penalty_share=0.0)["loss"]


def test_a_term_is_added_with_its_weight_and_share(regularized):
    batch = make_batch(MIXED)
    (regularizer,) = regularized.recipe.regularizers
    found = regularized(**batch, penalty_share=0.25)
    without = regularized(**batch, penalty_share=0.0)
    (term,) = found["penalties"].values()
    assert term.item() > 0
    assert list(found["penalties"]) == [regularizer.kind]
    added = (found["loss"] - without["loss"]).detach()
    torch.testing.assert_close(added, 0.25 * regularizer.weight * term, rtol=1e-3, atol=1e-6)


def test_nothing_is_added_without_gradients_or_labels(regularized):
    batch = make_batch(MIXED)
    with torch.no_grad():
        found = regularized(**batch)
        plain = regularized(**batch, penalty_share=0.0)
    assert found["penalties"] == {}
    assert torch.equal(found["loss"], plain["loss"])
    del batch["labels"]
    assert set(regularized(**batch)) == {"outputs"}


def gradients(model, batch):
    model.zero_grad(set_to_none=True)
    penalty_of(model, batch).backward()
    named = model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None and "heads" not in n}


def test_gradients_reach_what_is_looked_at_with_and_without_checkpointing(regularized):
    batch = make_batch(MIXED)
    exact = gradients(regularized, batch)
    (regularizer,) = regularized.recipe.regularizers
    ending = ".A.0" if regularizer.several_tasks else ".gate.weight"
    reached = [name for name, gradient in exact.items() if name.endswith(ending)]
    assert reached
    assert all(exact[name].abs().max() > 1e-8 for name in reached)
    regularized.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}
    )
    found = gradients(regularized, batch)
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-4, atol=1e-6)


def test_re_entrant_checkpointing_is_refused(regularized):
    regularized.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": True}
    )
    with pytest.raises(InputError, match="use_reentrant: false"):
        regularized(**make_batch(MIXED))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: no input asks for gradients
        regularized(**make_batch(MIXED))


@pytest.mark.parametrize("part", [AlignKL(), AlignMMD()], ids=lambda p: p.kind)
def test_one_task_in_a_batch_gives_an_exact_zero_that_is_attached(tiny_bert, part):
    model = regular(tiny_bert, Single(), part)
    found = model(**make_batch((1, 1, 1)), penalty_share=1.0)
    assert found["penalties"][part.kind].item() == 0.0
    found["loss"].backward()
    assert all(p.grad is not None for layer in model.attached.layers.values() for p in layer.A)


def test_an_empty_batch_of_a_rank_adds_nothing(regularized):
    found = regularized(**make_batch(()))
    assert found["penalties"] == {}
    assert found["loss"].item() == 0.0
    found["loss"].backward()


def test_padding_is_not_looked_at(regularized):
    batch = make_batch(MIXED)
    longer = {
        name: torch.nn.functional.pad(value, (0, 4)) if value.dim() > 1 else value
        for name, value in batch.items()
    }
    first, second = (regularized(**b)["penalties"] for b in (batch, longer))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


# Language models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory):
    return lambda name: save_model(tmp_path_factory.mktemp(name), name)


def items_of(model, count=6):
    items = training_items(model, load_tokenizer(model.model_config))
    return [items[i % len(items)] for i in range(count)]


def test_packed_rows_give_the_penalty_of_padded_ones(language_folder):
    folder = language_folder("llama")
    options = {"max_length": 96, "tasks": LANGUAGE_TASKS}
    model = regular(folder, Single(), AlignKL(max_tokens=None), **options)
    items = items_of(model)
    padded, packed = (
        model(**LanguageCollator(0, packed=p)(items))["penalties"]["align_kl"]
        for p in (False, True)
    )
    assert padded.item() > 0
    torch.testing.assert_close(padded, packed, rtol=1e-4, atol=1e-6)
    apart = regular(folder, Single(), AlignKL(pool="last"), **options)
    with pytest.raises(InputError, match="pool: token"):
        apart(**LanguageCollator(0, packed=True)(items))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_answers_are_the_tokens_that_were_to_be_predicted(language_folder, packed):
    """The representation at a token is an answer's if the token is, not if the next one is."""
    folder = language_folder("llama")
    model = regular(folder, Single(), AlignKL(tokens="answer"), tasks=LANGUAGE_TASKS)
    items = items_of(model, 3)
    batch = LanguageCollator(0, packed=packed)(items)
    learned = answer_tokens(batch["labels"], batch.get("position_ids"))
    start = 0
    for row, item in enumerate(items):
        labels = item["labels"]
        wanted = [False] + [label != IGNORED for label in labels[:-1]]
        mine = learned[0, start : start + len(labels)] if packed else learned[row, : len(labels)]
        assert mine.tolist() == wanted
        start += len(labels)


def test_an_encoder_decoder_is_looked_at_in_its_encoder(language_folder):
    folder = language_folder("t5")
    model = regular(folder, Single(), AlignKL(), tasks=LANGUAGE_TASKS)
    assert model.penalties is not None
    watched = model.penalties.watched["representation"]
    assert watched
    assert all(name.startswith("encoder.") for name in watched)
    assert len(watched) < len(model.attached.layers)
    items = items_of(model)
    found = model(**LanguageCollator(0, apart=True)(items))
    assert found["penalties"]["align_kl"].item() > 0
    with pytest.raises(InputError, match="no adapted module of the encoder"):
        regular(
            folder,
            Single(),
            AlignKL(),
            tasks=LANGUAGE_TASKS,
            target_modules=r"decoder\..*SelfAttention\.q",
        )


# Training ----------------------------------------------------------------------------------------

TRAINING = {
    "max_steps": 2,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "constant",
}


def fit(tiny_bert, suite, output, recipe, training=None, **options):
    model = {"name": str(tiny_bert), "dtype": "float32", "max_length": 32}
    return train(
        model, suite, recipe, output=output, training={**TRAINING, **(training or {})}, **options
    )


def log_of(run):
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def test_a_regularizer_that_compares_tasks_gets_balanced_batches(
    tiny_bert, toy_suite_dict, tmp_path
):
    run = fit(tiny_bert, toy_suite_dict, tmp_path / "run", "align_kl")
    assert run.config.batches == "balanced"
    assert all(line["penalty_align_kl"] > 0 for line in log_of(run))
    mixed = fit(tiny_bert, toy_suite_dict, tmp_path / "mixed", "align_kl", batches="mixed")
    assert mixed.config.batches == "mixed"
    assert fit(tiny_bert, toy_suite_dict, tmp_path / "lora", "lora").config.batches == "mixed"
    with pytest.raises(InputError, match=r"batch of one task.*take 'balanced'"):
        fit(tiny_bert, toy_suite_dict, tmp_path / "no", "align_kl", batches="single_task")


def test_the_loss_of_a_step_holds_the_mean_of_its_micro_batches_terms(
    tiny_bert, toy_suite_dict, tmp_path
):
    """The same rows four times as one micro-batch or as two: half the rows' terms, averaged."""
    strong = replace(
        RECIPES["align_kl"].recipe,
        structure=Single(),
        regularizers=(AlignKL(weight=100.0),),
    )
    split = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    for name, training in (("whole", {}), ("split", split)):
        run = fit(tiny_bert, toy_suite_dict, tmp_path / name, strong, training)
        for line in log_of(run):
            tasks = [line[f"loss_{task}"] for task in run.suite.names]
            plain = sum(tasks) / len(tasks)
            expected = plain + 100.0 * line["penalty_align_kl"]
            assert line["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_strong_term_draws_the_tasks_together(tiny_bert, toy_suite_dict, tmp_path):
    """Not only its value falls while training: it ends below that of training without it."""
    ends = []
    for weight in (0.0, 10.0):
        recipe = Recipe(
            structure=Single(), regularizers=(AlignKL(weight=weight),), sharing="shared"
        )
        run = fit(
            tiny_bert,
            toy_suite_dict,
            tmp_path / str(weight),
            recipe,
            {"max_steps": 20, "learning_rate": 1e-2},
        )
        ends.append(sum(line["penalty_align_kl"] for line in log_of(run)[-5:]))
    assert ends[1] < 0.5 * ends[0]


# Bad input ---------------------------------------------------------------------------------------


def test_one_task_is_warned_of(tiny_bert):
    with pytest.warns(UserWarning, match="an alignment compares tasks, and there is one"):
        regular(tiny_bert, Single(), AlignKL(), tasks=TASKS[:1])


def test_rows_one_by_one_are_warned_of(tiny_bert, toy_suite_dict, tmp_path):
    with pytest.warns(UserWarning, match="per_device_train_batch_size is 1"):
        fit(
            tiny_bert,
            toy_suite_dict,
            tmp_path / "run",
            "align_kl",
            {"per_device_train_batch_size": 1},
        )


def test_a_mixing_that_balanced_batches_would_ignore_is_refused(
    tiny_bert, toy_suite_dict, tmp_path
):
    with pytest.raises(InputError, match="balanced batches draw every task alike"):
        fit(
            tiny_bert,
            toy_suite_dict,
            tmp_path / "run",
            "align_kl",
            mixing={"kind": "temperature", "temperature": 2.0},
        )


REFUSED = {
    "router": (Single(), (LoadBalance(),), "balances a router, and structure 'single' has none"),
    "no_adapter": (Frozen(), (AlignKL(),), "structure 'frozen' has none"),
    "twice": (Single(), (AlignKL(), AlignKL(weight=0.2)), "'align_kl' is given twice"),
}


@pytest.mark.parametrize(("structure", "parts", "told"), REFUSED.values(), ids=list(REFUSED))
def test_parts_that_do_not_fit_are_refused(structure, parts, told):
    with pytest.raises(InputError, match=told):
        Recipe(structure=structure, regularizers=parts)


def test_prompts_and_answers_of_an_encoder_are_refused(tiny_bert):
    with pytest.raises(InputError, match=r"an encoder, or a model .* does not; take 'all'"):
        regular(tiny_bert, Single(), AlignKL(tokens="answer"))(**make_batch(MIXED))


@pytest.mark.parametrize(
    ("types", "told"),
    [
        ({"task_types": (0, 1)}, "task_types has 2 numbers, and there are 3 tasks"),
        ({"expert_types": (0, 1)}, "expert_types has 2 numbers, and there are 4 experts"),
    ],
    ids=["tasks", "experts"],
)
def test_types_that_do_not_fit_the_model_are_refused_before_a_batch(tiny_bert, types, told):
    with pytest.raises(InputError, match=told):
        regular(tiny_bert, Experts(num_experts=4), replace(LOCAL, **types))
