"""PEFT's prompts in language models: options, references and answers; windows; what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BartConfig, FalconConfig, MambaConfig, MistralConfig, T5Config

from coadapt import InputError
from coadapt.adapters.cache_sizes import cache_shape, window_of
from coadapt.language.generating import generate_texts
from coadapt.language.scoring import score_options, score_references
from coadapt.tasks.language import LanguageCollator
from coadapt.tasks.prompts import Generation
from tests.language.toys import items_of, training_items
from tests.peft_prompts import (
    LENGTH,
    MULTITASK,
    PREFIX,
    PROMPT,
    STRUCTURES,
    gentle,
    labelled,
    own_module,
    scattered,
    stock,
    tuned,
    written,
)
from tests.prompts import CONFIGS, make_inputs, run, scatter
from tests.tiny_language import QUESTION, WRITTEN, make_tokenizer

LENGTHS, TASK_IDS = (6, 3, 5), (1, 0, 2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(params=STRUCTURES.values(), ids=list(STRUCTURES))
def structure(request):
    return request.param


# Scored and answered -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_options_score_alike_with_and_without_their_prompt_run_once(name, tokenizer, structure):
    model = scattered(name, structure)
    items = items_of(model, tokenizer, QUESTION)
    scores = {
        reuse: np.concatenate(score_options(model, items, QUESTION.name, reuse_prompt=reuse))
        for reuse in (True, False)
    }
    np.testing.assert_allclose(scores[True], scores[False], rtol=1e-6, atol=1e-5)
    with model.route.without_adapters():
        bare = np.concatenate(score_options(model, items, QUESTION.name))
    assert np.abs(scores[True] - bare).max() > 0.01


def test_an_encoder_decoder_s_options_are_losses_of_answers(tokenizer, structure):
    model = scattered("t5", structure)
    items = items_of(model, tokenizer, QUESTION)[:2]
    for item, found in zip(items, score_options(model, items, QUESTION.name), strict=True):
        for option, score in zip(item["options"], found, strict=True):
            batch = {
                "input_ids": torch.tensor([item["prompt"]]),
                "attention_mask": torch.ones(1, len(item["prompt"]), dtype=torch.long),
                "labels": torch.tensor([option]),
                "task_ids": torch.tensor([model.task_id(QUESTION.name)]),
            }
            with torch.no_grad():
                loss = float(model(**batch)["row_losses"])
            assert score == pytest.approx(-loss * len(option), rel=1e-4)


def test_answers_are_written_and_references_scored(tokenizer, structure):
    model = scattered("qwen2", structure)
    items = items_of(model, tokenizer, WRITTEN)
    how = Generation(max_new_tokens=4)
    together = generate_texts(model, tokenizer, items, WRITTEN.name, how)
    alone = [generate_texts(model, tokenizer, [item], WRITTEN.name, how)[0] for item in items]
    assert together == alone
    for item, (score, count) in zip(
        items, score_references(model, items, WRITTEN.name), strict=True
    ):
        (found,) = score_references(model, [item], WRITTEN.name)
        assert score == pytest.approx(found[0], abs=1e-4)
        assert count == found[1]


# Windows -----------------------------------------------------------------------------------------

WINDOW = {"sliding_window": 8}


@torch.no_grad()
@pytest.mark.parametrize("part", [PROMPT, MULTITASK], ids=["prompt", "multitask"])
def test_a_window_counts_no_padding_between_prompt_and_text(part, tokenizer):
    model = scattered("gemma2", part, **WINDOW)
    for left in (False, True):
        inputs = make_inputs("gemma2", (12, 4, 7), left=left)
        found = run(model, inputs, TASK_IDS)
        for row, task in enumerate(TASK_IDS):
            places = inputs["attention_mask"][row].bool()
            alone = {"input_ids": inputs["input_ids"][row, places][None]}
            wanted = run(model, alone, (task,))[0]
            torch.testing.assert_close(found[row, places], wanted, rtol=0, atol=1e-5)
    items = items_of(model, tokenizer, QUESTION)
    scores = [
        np.concatenate(score_options(model, items, QUESTION.name, reuse_prompt=reuse))
        for reuse in (True, False)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-6, atol=1e-5)
    model.route.set(torch.tensor(TASK_IDS))
    tokens, logits = written(model.backbone, inputs)
    again, whole = written(model.backbone, inputs, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_prefix_has_to_fit_in_the_window_with_its_text():
    model = scattered("gemma2", PREFIX, **WINDOW)
    run(model, make_inputs("gemma2", (5, 3, 2)), TASK_IDS)
    with pytest.raises(InputError, match=r"8 positions .* model.max_length to at most 5"):
        run(model, make_inputs("gemma2", LENGTHS), TASK_IDS)


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (CONFIGS["gemma2"](), 8),
        (CONFIGS["llama"](), None),
        (CONFIGS["qwen2"](), None),
        (MistralConfig(sliding_window=16), 16),
        (MistralConfig(sliding_window=None), None),
    ],
)
def test_the_window_is_read_off_the_configuration(config, window):
    assert window_of(config) == window


# Sizes and refusals ------------------------------------------------------------------------------


def test_heads_that_do_not_make_up_the_width_get_their_prefix():
    """As of flan-t5-small; stock PEFT divides the width by the heads and fails."""
    model = scattered("t5", PREFIX, d_kv=16, num_decoder_layers=3)
    assert own_module(model).get_parameter("embedding.weight").shape == (LENGTH, 2 * 3 * 4 * 16)
    inputs = labelled("t5", LENGTHS)
    prefixed = run(model, inputs, TASK_IDS)
    prefixed.square().sum().backward()
    gradient = own_module(model).get_parameter("embedding.weight").grad
    assert gradient is not None
    assert gradient.abs().sum(dim=0).gt(0).all()
    with pytest.raises(RuntimeError, match="size mismatch"):
        stock(model, gentle("t5", d_kv=16, num_decoder_layers=3))


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (CONFIGS["llama"](), (2, 2, 8)),
        (CONFIGS["gemma2"](), (2, 2, 8)),
        (CONFIGS["gpt2"](), (2, 4, 8)),
        (CONFIGS["bert"](), (2, 4, 8)),
        (T5Config(num_layers=2, num_decoder_layers=5, num_heads=3, d_kv=7), (5, 3, 7)),
        (BartConfig(decoder_layers=3, decoder_attention_heads=8, d_model=64), (3, 8, 8)),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_cache_s_shape_is_read_off_the_configuration(config, shape):
    assert cache_shape(config) == shape


@pytest.mark.parametrize("config", [MambaConfig(), FalconConfig(multi_query=True)])
def test_layers_without_keys_of_one_shape_are_refused(config):
    with pytest.raises(InputError, match="take structure 'prompt_tuning'"):
        cache_shape(config)


def test_a_model_with_a_running_state_is_refused(structure):
    with pytest.raises(InputError, match=r"takes no past_key_values|do not; take structure"):
        tuned(gentle("mamba"), structure)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_packed_rows_are_refused(name, tokenizer, structure):
    model = scatter(tuned(gentle(name), structure))
    batch = LanguageCollator(0, packed=True)(training_items(model, tokenizer))
    with pytest.raises(InputError, match="set packing to false"):
        model(**batch)


def test_tasks_prompts_are_not_mixed():
    model, inputs = scattered("llama", MULTITASK), make_inputs("llama", LENGTHS)
    with model.route.fixing(()), pytest.raises(InputError, match="no blocks that could be mixed"):
        run(model, inputs, TASK_IDS)


def test_what_is_written_counts_as_positions(structure):
    inputs = make_inputs("gpt2", LENGTHS, left=True)
    for room in (7, 6):  # of eight tokens that are written the last is not read
        model = scattered("gpt2", structure, n_positions=max(LENGTHS) + LENGTH + room)
        model.route.set(torch.tensor(TASK_IDS))
        if room == 7:
            written(model.backbone, inputs)
        else:
            with pytest.raises(InputError, match="what is written included"):
                written(model.backbone, inputs)
