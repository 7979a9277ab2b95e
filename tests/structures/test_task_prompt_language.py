"""Task prompts in language models: packed, with and without a cache, scored."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coadapt.language.scoring import score_options
from coadapt.model import MultiTaskModel
from coadapt.structures import TaskPrompt
from coadapt.tasks.language import LanguageCollator
from tests.language.toys import items_of, training_items
from tests.prompts import make_inputs, scattered
from tests.small import gradients
from tests.tiny_language import QUESTION, make_tokenizer

PART = TaskPrompt(length=3, layers=2)
STRUCTURES = {
    "paper": PART,
    "heads": replace(PART, gate="head", fast_rank=2),
    "common": replace(PART, fast_rank=0),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def gentle(name: str, structure: TaskPrompt = PART) -> MultiTaskModel:
    """A model whose rounding is not blown up by scores in the hundreds."""
    weights: Any = {} if name == "t5" else {"initializer_range": 0.1}
    return scattered(name, structure, **weights)


# Packed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=list(STRUCTURES))
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_packed_rows_are_padded_ones(name, structure, tokenizer):
    model = gentle(name, structure)
    items = training_items(model, tokenizer)
    assert {item["task_id"] for item in items} == {0, 1, 2}
    found = []
    for packed in (False, True):
        batch = LanguageCollator(0, packed=packed)(items)
        with torch.no_grad():
            kept = model(**batch)["row_losses"]
        losses = model(**batch)["row_losses"].detach()
        torch.testing.assert_close(kept, losses, rtol=0, atol=1e-5)
        found.append((losses, gradients(model, batch)))
    (padded, exact), (packed, grads) = found
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)
    assert len(exact) == len(model.attached.tensors())
    for key, gradient in exact.items():
        torch.testing.assert_close(grads[key], gradient, rtol=1e-4, atol=1e-5)


def test_packed_rows_of_one_task_are_padded_ones(tokenizer):
    model = gentle("llama")
    items = [item for item in training_items(model, tokenizer) if item["task_id"] == 1]
    with torch.no_grad():
        padded, packed = (
            model(**LanguageCollator(0, packed=packed)(items))["row_losses"]
            for packed in (False, True)
        )
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


# Written and scored ------------------------------------------------------------------------------


@torch.no_grad()
def written(model: MultiTaskModel, name: str, *, use_cache: bool) -> tuple[Tensor, Tensor]:
    """Return the tokens, and the logits they were chosen by, of rows of two tasks."""
    inputs = make_inputs(name, (6, 3, 5), left=name != "t5")
    model.route.set(torch.tensor((1, 2, 1)))
    backbone: Any = model.backbone
    found = backbone.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=12,  # beyond gemma2's window
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return found.sequences, torch.stack(found.logits)


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_what_is_written_with_a_cache_is_what_is_written_without(name):
    model = gentle(name)
    tokens, logits = written(model, name, use_cache=True)
    again, whole = written(model, name, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))
    with model.route.without_adapters():
        assert not torch.equal(written(model, name, use_cache=True)[0], tokens)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_options_score_alike_with_and_without_their_prompt_run_once(name, tokenizer):
    model = gentle(name)
    items = items_of(model, tokenizer, QUESTION)
    scores = {
        reuse: np.concatenate(score_options(model, items, QUESTION.name, reuse_prompt=reuse))
        for reuse in (True, False)
    }
    np.testing.assert_allclose(scores[True], scores[False], rtol=0, atol=2e-5)
    with model.route.without_adapters():
        bare = np.concatenate(score_options(model, items, QUESTION.name))
    assert np.abs(scores[True] - bare).max() > 0.1


def test_an_encoder_decoder_s_options_are_scored_by_its_task_s_prompts(tokenizer):
    """Against the loss of each option as an answer."""
    model = gentle("t5")
    items = items_of(model, tokenizer, QUESTION)[:2]
    scores = score_options(model, items, QUESTION.name)
    for item, found in zip(items, scores, strict=True):
        for option, score in zip(item["options"], found, strict=True):
            batch = {
                "input_ids": torch.tensor([item["prompt"]]),
                "attention_mask": torch.ones(1, len(item["prompt"]), dtype=torch.long),
                "labels": torch.tensor([option]),
                "task_ids": torch.tensor([0]),
            }
            with torch.no_grad():
                loss = float(model(**batch)["row_losses"])
            assert score == pytest.approx(-loss * len(option), rel=1e-4)
