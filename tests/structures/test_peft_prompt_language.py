"""PEFT's prompts in language models: against stock PEFT, written, padded."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from coadapt.model import MultiTaskModel
from coadapt.readouts import shifted_right
from coadapt.tasks.language import IGNORED, LanguageCollator
from tests.language.toys import training_items
from tests.peft_prompts import (
    LENGTH,
    MULTITASK,
    PREFIX,
    PROMPT,
    STRUCTURES,
    assert_same,
    gentle,
    labelled,
    own_module,
    scattered,
    stock,
    stock_module,
    told,
    written,
)
from tests.prompts import make_inputs, read, run
from tests.small import take
from tests.tiny_language import make_tokenizer

DECODERS = ("llama", "qwen2", "gemma2", "gpt_neox", "gpt2")
APART = ("t5", "bart")
LENGTHS, TASK_IDS = (6, 3, 5), (1, 0, 2)


@pytest.fixture(params=STRUCTURES.values(), ids=list(STRUCTURES))
def structure(request):
    return request.param


def ours(model: MultiTaskModel, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Return what our model writes for rows of several tasks."""
    model.route.set(torch.tensor(TASK_IDS))
    return written(model.backbone, inputs, **options)


def prompts(name: str, lengths: Any = LENGTHS) -> dict[str, Tensor]:
    """Return texts to go on from, padded on the left for a decoder."""
    return make_inputs(name, lengths, left=name not in APART)


# Against stock PEFT ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_s_logits_and_gradients_are_stock_peft_s(name, structure):
    model, inputs = scattered(name, structure), make_inputs(name, LENGTHS)
    theirs = stock(model, gentle(name))
    wanted = theirs(**inputs, **told(model, TASK_IDS)).logits[:, -max(LENGTHS) :]
    assert_same(model, run(model, inputs, TASK_IDS), theirs, wanted)


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("part", [PROMPT, MULTITASK], ids=["prompt", "multitask"])
def test_an_encoder_decoder_s_logits_and_gradients_are_stock_peft_s(name, part):
    model, inputs = scattered(name, part), labelled(name, LENGTHS)
    theirs = stock(model, gentle(name))
    wanted = theirs(**inputs, **told(model, TASK_IDS)).logits
    assert_same(model, run(model, inputs, TASK_IDS), theirs, wanted)


def test_each_layer_of_t5_s_decoder_has_a_prefix_of_its_own():
    """Stock PEFT gives layer i what is layer 2 i mod L's, and the rest to nobody.

    It lays keys and values for self-attention and for cross-attention one after the other, where
    the cache reads them layer by layer, and then throws those for cross-attention away.
    """
    model, inputs = scattered("t5", PREFIX), labelled("t5", LENGTHS)
    weight = own_module(model).get_parameter("embedding.weight")
    theirs = stock(model, gentle("t5"))
    with torch.no_grad():
        assert not torch.allclose(run(model, inputs, TASK_IDS), theirs(**inputs).logits, atol=0.1)
        layers = weight.view(LENGTH, 2, 2 * 32)  # keys and values of two layers
        layers[:, 1] = layers[:, 0]
        stock_module(theirs).load_state_dict({"embedding.weight": weight})
    ours, wanted = run(model, inputs, TASK_IDS), theirs(**inputs).logits
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    (mine,) = torch.autograd.grad(ours.square().sum(), weight)
    parameter = stock_module(theirs).get_parameter("embedding.weight")
    (stocks,) = torch.autograd.grad(wanted.square().sum(), parameter)
    mine, stocks = (gradient.view(LENGTH, 2, -1) for gradient in (mine, stocks))
    assert not stocks[:, 1].any()
    torch.testing.assert_close(mine.sum(dim=1), stocks[:, 0], rtol=1e-4, atol=1e-3)


def test_the_loss_of_a_row_is_that_of_stock_peft_s_logits(structure):
    """Through the hook that lets the vocabulary's head see the labelled positions alone."""
    model = scattered("llama", structure)
    items = training_items(model, make_tokenizer())
    batch = LanguageCollator(0)(items)
    tasks = told(model, batch["task_ids"].tolist())
    with torch.no_grad():
        losses = model(**batch)["row_losses"]
        logits = stock(model, gentle("llama"))(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **tasks
        ).logits[:, -batch["labels"].shape[1] :]
    for loss, row, labels in zip(losses, logits, batch["labels"], strict=True):
        wanted = F.cross_entropy(row, labels, ignore_index=IGNORED)
        torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, part) for name in ("llama", "gemma2", "gpt2") for part in STRUCTURES),
        *(("t5", part) for part in ("prompt", "multitask")),  # its prefix: see above
    ],
)
def test_what_is_written_is_what_stock_peft_writes(name, part):
    """From texts of different lengths where stock PEFT's positions are right, see below."""
    model = scattered(name, STRUCTURES[part])
    right = part in ("prefix", "projected") or name == "t5"
    inputs = prompts(name, LENGTHS if right else (5, 5, 5))
    tokens, logits = ours(model, inputs)
    wanted, scores = written(stock(model, gentle(name)), inputs, **told(model, TASK_IDS))
    assert torch.equal(tokens, wanted)
    torch.testing.assert_close(logits, scores, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("part", [PROMPT, MULTITASK], ids=["prompt", "multitask"])
def test_padding_on_the_left_moves_no_position(name, part):
    """Stock PEFT drops the positions of prompts' texts and counts the padding between as text."""
    model, inputs = scattered(name, part), prompts(name)
    tokens, logits = ours(model, inputs)
    theirs = stock(model, gentle(name))
    _, shifted = written(theirs, inputs, **told(model, TASK_IDS))
    for row, length in enumerate(LENGTHS):
        alone = {key: value[row : row + 1, -length:] for key, value in inputs.items()}
        wanted, scores = written(theirs, alone, **told(model, TASK_IDS[row : row + 1]))
        assert torch.equal(tokens[row], wanted[0])
        torch.testing.assert_close(logits[row], scores[0], rtol=0, atol=1e-5)
        # The longest row has no padding, and is right.
        right = torch.allclose(shifted[row, 0], scores[0, 0], atol=1e-5)
        assert right == (length == max(LENGTHS))


# Caches, padding and tasks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "t5", "bart"])
def test_what_is_written_with_a_cache_is_what_is_written_without(name, structure):
    model, inputs = scattered(name, structure), prompts(name)
    tokens, logits = ours(model, inputs, use_cache=True)
    again, whole = ours(model, inputs, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-5)
    with model.route.without_adapters():
        bare, scores = ours(model, inputs)
    plain, wanted = written(gentle(name), inputs)
    assert torch.equal(bare, plain)
    assert torch.equal(scores, wanted)
    assert not torch.allclose(scores[:, 0], logits[:, 0], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_a_row_s_logits_depend_on_neither_padding_nor_other_rows(name, structure):
    model = scattered(name, structure)
    for left in (False, True):
        inputs = make_inputs(name, LENGTHS, left=left)
        found = run(model, inputs, TASK_IDS)
        for row, task in enumerate(TASK_IDS):
            places = inputs["attention_mask"][row].bool()
            alone = {"input_ids": inputs["input_ids"][row, places][None]}
            wanted = run(model, alone, (task,))[0]
            torch.testing.assert_close(found[row, places], wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", APART)
def test_an_encoder_decoder_s_rows_are_those_alone(name, structure):
    model, inputs = scattered(name, structure), labelled(name, LENGTHS)
    found = run(model, inputs, TASK_IDS)
    assert not torch.allclose(found, read(gentle(name), inputs), atol=1e-2)
    for row, (length, task) in enumerate(zip(LENGTHS, TASK_IDS, strict=True)):
        alone = take(inputs, slice(row, row + 1))
        alone = {k: v if k == "labels" else v[:, :length] for k, v in alone.items()}
        torch.testing.assert_close(found[row], run(model, alone, (task,))[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("part", [PROMPT, MULTITASK], ids=["prompt", "multitask"])
def test_t5_s_texts_may_be_padded_on_the_left(part):
    """Its positions are distances, so padding between prompt and text would count."""
    model, right = scattered("t5", part), labelled("t5", LENGTHS)
    wanted, left = run(model, right, TASK_IDS), dict(right)
    for key in ("input_ids", "attention_mask"):
        pairs = zip(right[key], LENGTHS, strict=True)
        left[key] = torch.stack([row.roll(max(LENGTHS) - length) for row, length in pairs])
    torch.testing.assert_close(run(model, left, TASK_IDS), wanted, rtol=0, atol=1e-5)


def test_a_decoder_reads_what_it_is_shifted():
    """The labels of these tests go in as the readout gives them."""
    model, inputs = scattered("t5", PROMPT), labelled("t5", LENGTHS)
    labels = inputs.pop("labels")
    given = {**inputs, "decoder_input_ids": shifted_right(model.backbone, labels)}
    wanted = run(model, {**inputs, "labels": labels}, TASK_IDS)
    assert torch.equal(run(model, given, TASK_IDS), wanted)
