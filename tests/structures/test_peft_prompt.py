"""PEFT's prompts in encoders: against stock PEFT, padding, positions, starts, saved and resumed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from coadapt import InputError
from coadapt.structures import MultitaskPromptTuning, PrefixTuning, PromptTuning
from tests.peft_prompts import (
    LENGTH,
    MULTITASK,
    PREFIX,
    PROJECTED,
    PROMPT,
    STRUCTURES,
    assert_same,
    gentle,
    own_module,
    scattered,
    stock,
    tuned,
)
from tests.prompts import make_backbone, make_inputs, read, run
from tests.small import TASKS, make_model

LENGTHS, TASK_IDS = (6, 3, 5, 1), (1, 0, 2, 1)
ENCODERS = ("bert", "roberta")


@pytest.fixture(params=STRUCTURES.values(), ids=list(STRUCTURES))
def structure(request):
    return request.param


# Against stock PEFT and a slow loop --------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("part", [PROMPT, PREFIX, PROJECTED], ids=["prompt", "prefix", "projected"])
def test_hidden_states_and_gradients_are_stock_peft_s(name, part):
    """But for multitask prompts, which stock PEFT does not pass the tasks to here: next test."""
    model, inputs = scattered(name, part), make_inputs(name, LENGTHS)
    theirs = stock(model, gentle(name))
    wanted = theirs(**inputs).last_hidden_state[:, -max(LENGTHS) :]
    assert_same(model, run(model, inputs, TASK_IDS), theirs, wanted)


@pytest.mark.parametrize("name", ENCODERS)
def test_multitask_rows_have_their_own_tasks_prompts_before_them(name):
    """Against a loop over rows without padding; stock PEFT fails on an encoder."""
    model, inputs = scattered(name, MULTITASK), make_inputs(name, LENGTHS)
    with pytest.raises(ValueError, match="task_ids cannot be None"):
        stock(model, gentle(name))(**inputs, task_ids=torch.tensor(TASK_IDS))
    plain, module = gentle(name), own_module(model)
    P, u, v = (module.get_parameter(n) for n in ("embedding.weight", "prefix_task_cols",
                                                 "prefix_task_rows"))  # fmt: skip
    found, rows = run(model, inputs, TASK_IDS), []
    for row, task in enumerate(TASK_IDS):
        low = sum(torch.outer(u[task, :, r], v[task, r]) for r in range(2))
        text = plain.embeddings.word_embeddings(inputs["input_ids"][row, : LENGTHS[row]])
        states = plain(inputs_embeds=torch.cat([P * low, text])[None]).last_hidden_state[0]
        rows.append(states[LENGTH:])
    ours = torch.cat([found[row, :length] for row, length in enumerate(LENGTHS)])
    wanted = torch.cat(rows)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    grads = [torch.autograd.grad((x * x).sum(), (P, u, v), retain_graph=True)
             for x in (ours, wanted)]  # fmt: skip
    for mine, slow in zip(*grads, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-4, atol=1e-4)


def test_segments_are_kept_where_stock_peft_drops_them():
    model, inputs = scattered("bert", PROMPT), make_inputs("bert", LENGTHS)
    types = torch.arange(max(LENGTHS)).ge(2).long().expand(len(LENGTHS), -1)
    plain, P = gentle("bert"), own_module(model).get_parameter("embedding.weight")
    text = plain.embeddings.word_embeddings(inputs["input_ids"])
    wanted = plain(
        inputs_embeds=torch.cat([P.expand(len(text), -1, -1), text], dim=1),
        attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (LENGTH, 0), value=1),
        token_type_ids=torch.nn.functional.pad(types, (LENGTH, 0)),
    ).last_hidden_state[:, LENGTH:]
    found = run(model, {**inputs, "token_type_ids": types}, TASK_IDS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="Token type ids are not supported"):
        dropped = stock(model, gentle("bert"))(**inputs, token_type_ids=types)
    without = run(model, inputs, TASK_IDS)
    dropped = dropped.last_hidden_state[:, LENGTH:]
    torch.testing.assert_close(dropped, without, rtol=0, atol=1e-6)
    assert not torch.allclose(found, without, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_padding_and_other_rows_change_nothing(name, structure):
    model, inputs = scattered(name, structure), make_inputs(name, LENGTHS)
    found = run(model, inputs, TASK_IDS)
    for row, length in enumerate(LENGTHS):
        alone = {key: value[row : row + 1, :length] for key, value in inputs.items()}
        states = run(model, alone, TASK_IDS[row : row + 1])
        torch.testing.assert_close(found[row, :length], states[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_pooler_sees_the_text_alone(structure):
    model, inputs = scattered("bert", structure), make_inputs("bert", LENGTHS)
    model.route.set(torch.tensor(TASK_IDS))
    backbone: Any = model.backbone
    output = backbone(**inputs)
    assert output.last_hidden_state.shape[1] == max(LENGTHS)
    assert torch.equal(output.pooler_output, backbone.pooler(output.last_hidden_state))


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_without_adapters_it_is_the_frozen_model(name, structure):
    model, inputs = scattered(name, structure), make_inputs(name, LENGTHS)
    wanted = read(gentle(name), inputs)
    before = run(model, inputs, TASK_IDS)
    with model.route.without_adapters():
        assert torch.equal(run(model, inputs, TASK_IDS), wanted)
        assert torch.equal(
            model.backbone(**inputs).pooler_output, gentle(name)(**inputs).pooler_output
        )
    assert torch.equal(run(model, inputs, TASK_IDS), before)
    assert not torch.allclose(before, wanted, atol=1e-2)


# Parameters --------------------------------------------------------------------------------------

COUNTS = {  # of 32 dimensions, 2 layers and 3 tasks
    "prompt": LENGTH * 32,
    "prefix": LENGTH * 2 * 2 * 32,
    "projected": LENGTH * 32 + (32 * 5 + 5) + (5 * 128 + 128),
    "multitask": LENGTH * 32 + 3 * 2 * (LENGTH + 32),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_trains_is_named_counted_and_float32(name):
    model = tuned(make_backbone("bert", dtype=torch.bfloat16).bfloat16(), STRUCTURES[name])
    trained = {n: p for n, p in model.backbone.named_parameters() if p.requires_grad}
    tensors = model.attached.tensors()
    assert {n.replace("prompt_encoder.", "shared/prompt_encoder/") for n in trained} == set(tensors)
    assert {id(p) for p in trained.values()} == {id(p) for p in tensors.values()}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert model.num_trainable["adapters"] == COUNTS[name]
    assert model.attached.blocks == ()
    lazy = [id(p) for _, group in model.lazy_parameters() for p in group]
    assert not set(lazy) & {id(p) for p in tensors.values()}
    inputs = make_inputs("bert", LENGTHS)
    assert run(model, inputs, TASK_IDS).dtype == torch.bfloat16


def test_the_same_seed_starts_the_same_and_leaves_the_global_state(structure):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (tuned(gentle("bert"), structure, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    later = tuned(gentle("bert"), structure, seed=0)
    for key, tensor in first.state_tensors().items():
        if not key.startswith("heads/"):
            assert torch.equal(tensor, again.state_tensors()[key])
            assert torch.equal(tensor, later.state_tensors()[key])
            assert not torch.equal(tensor, other.state_tensors()[key])


def test_a_prompt_may_start_as_tokens():
    model = tuned(gentle("bert"), PromptTuning(length=8, start="tokens"))
    P = own_module(model).get_parameter("embedding.weight")
    words = gentle("bert").embeddings.word_embeddings.weight
    owners = (P[:, None] == words).all(dim=2).nonzero()
    assert owners[:, 0].tolist() == list(range(8))
    assert len(set(owners[:, 1].tolist())) > 4


def test_a_multitask_start_is_peft_s():
    tensors = tuned(gentle("bert"), MultitaskPromptTuning(length=20, num_ranks=4)).state_tensors()
    P, u, v = (tensors[f"shared/prompt_encoder/{n}"] for n in ("embedding.weight",
               "prefix_task_cols", "prefix_task_rows"))  # fmt: skip
    assert [x.shape for x in (P, u, v)] == [(20, 32), (3, 20, 4), (3, 4, 32)]
    assert float(P.std()) == pytest.approx(1, rel=0.1)
    assert float(u.std()) == pytest.approx(0.02, rel=0.2)
    assert float(v.std()) == pytest.approx(0.02, rel=0.2)


# Refused -----------------------------------------------------------------------------------------


def one_row(length: int) -> dict[str, Tensor]:
    return {key: torch.ones(1, length, dtype=torch.long) for key in ("input_ids", "attention_mask")}


@torch.no_grad()
@pytest.mark.parametrize(("name", "room"), [("bert", 80), ("roberta", 79)])
def test_more_positions_than_the_model_has_are_refused(name, room, structure):
    """RoBERTa's first row of 80 is of padding."""
    model = scattered(name, structure)
    run(model, one_row(room - LENGTH), (0,))
    told = rf"more than the {room} positions .* set model.max_length to at most {room - LENGTH}"
    with pytest.raises(InputError, match=told):
        run(model, one_row(room - LENGTH + 1), (0,))
    with model.route.without_adapters():
        run(model, one_row(room), (0,))


@pytest.mark.parametrize("name", ["modernbert", "mpnet"])
def test_an_encoder_without_a_cache_takes_prompts_and_no_prefix(name):
    with pytest.raises(InputError, match=r"a \w+ takes no past_key_values"):
        tuned(gentle(name), PREFIX)
    model, inputs = scattered(name, PROMPT), make_inputs(name, LENGTHS)
    plain, P = gentle(name), own_module(model).get_parameter("embedding.weight")
    text = plain.get_input_embeddings()(inputs["input_ids"])
    wanted = plain(
        inputs_embeds=torch.cat([P.expand(len(text), -1, -1), text], dim=1),
        attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (LENGTH, 0), value=1),
    ).last_hidden_state[:, LENGTH:]
    found = run(model, inputs, TASK_IDS)
    places = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[places], wanted[places], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (PromptTuning, {"length": 0}, "length must be at least 1, not 0"),
        (PrefixTuning, {"length": 0}, "length must be at least 1, not 0"),
        (MultitaskPromptTuning, {"length": -1}, "length must be at least 1, not -1"),
        (MultitaskPromptTuning, {"num_ranks": 0}, "num_ranks must be at least 1, not 0"),
        (
            PrefixTuning,
            {"prefix_projection": True, "encoder_hidden_size": 0},
            "encoder_hidden_size must be at least 1, not 0",
        ),
        (PrefixTuning, {"encoder_hidden_size": 8}, "set prefix_projection too"),
    ],
)
def test_numbers_out_of_range_are_refused(part, fields, message):
    with pytest.raises(InputError, match=message):
        part(**fields)


def test_a_run_has_no_lora_form(tiny_bert):
    model = make_model(tiny_bert, PROMPT, None)
    with pytest.raises(InputError, match="'prompt_tuning' has no exact LoRA form"):
        model.fold(TASKS[0].name)
