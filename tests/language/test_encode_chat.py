"""Prompts by a chat template, encoder-decoders, and what a model's configuration decides."""

import logging
from dataclasses import replace

import pytest

from coadapt._errors import InputError
from coadapt.backbone import ModelConfig
from coadapt.loading import encode_rows
from coadapt.processors import load_tokenizer
from coadapt.tasks import Rows, Task
from coadapt.tasks.language import IGNORED, PromptStyle, encode_language
from coadapt.tasks.prompts import Generation
from coadapt.tasks.rows import object_array
from tests.language.toys import END, STYLE, one, question_rows, written, written_rows
from tests.tiny_language import NOWHERE, QUESTION, WRITTEN, make_tokenizer

CHAT = PromptStyle(max_length=96, chat=True)
APART = PromptStyle(max_length=96, apart=True)
SYSTEM = Task(name="told", kind="generation", data=NOWHERE, system="Be short.")
TALK = Task(name="talk", kind="generation", data=NOWHERE, messages="messages")


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def talk_rows(*conversations, answers=()):
    """Return rows of conversations, each a list of (role, content)."""
    labels = object_array([(a,) if a else () for a in answers or ["yes"] * len(conversations)])
    texts = tuple(turns[-1][1] for turns in conversations)
    return Rows(texts=texts, pairs=None, labels=labels, conversations=tuple(conversations))


# Chat ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer", "ending"])
def test_the_chat_template_makes_the_prompt_and_nothing_is_added(name, request):
    found = written(request.getfixturevalue(name), "Which?", "dog", style=CHAT)
    bare = make_tokenizer()
    wanted = plain(bare, "<|user|>Which?</s><|assistant|>")
    assert found["prompt"] == wanted
    assert found["labels"] == [IGNORED] * (len(wanted) - 1) + [*plain(bare, "dog"), END]


def test_an_end_that_the_template_writes_stays():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    found = written(tokenizer, "Which?", "dog", style=CHAT)
    assert found["prompt"] == plain(tokenizer, "Which?</s>")
    assert found["labels"][-found["num_answer"] :] == [*plain(tokenizer, "dog"), END]


def test_a_chat_with_system_and_several_turns(tokenizer):
    turns = (("system", "Be short."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Which?"))
    found = one(tokenizer, TALK, talk_rows(turns), CHAT)
    said = "<|system|>Be short.</s><|user|>Hi</s><|assistant|>Ho</s><|user|>Which?</s><|assistant|>"
    assert found["prompt"] == plain(tokenizer, said)
    assert tokenizer.decode(found["labels"][-2:]) == "yes</s>"


def test_options_in_a_chat_follow_without_a_delimiter(tokenizer):
    found = one(tokenizer, QUESTION, question_rows(["Which?"], [["dog", "cat"]]), CHAT)
    assert [tokenizer.decode(option) for option in found["options"]] == ["dog", "cat"]


def test_a_system_text_stands_before_a_plain_prompt(tokenizer):
    rows = talk_rows((("system", "Be short."), ("user", "Which?")))
    found = one(tokenizer, SYSTEM, rows)
    assert tokenizer.decode(found["prompt"]) == "Be short.\n\nWhich?"


def test_turns_need_a_chat_template(tokenizer):
    turns = (("user", "Hi"), ("assistant", "Ho"), ("user", "Which?"))
    rows = talk_rows((("user", "Which?"),), turns)
    message = r"task 'talk', row 2: a conversation of 3 messages \(user, assistant, user\) needs .*"
    with pytest.raises(InputError, match=message + "set model.chat to true"):
        encode_language(tokenizer, TALK, rows, STYLE)
    dumb = make_tokenizer(chat=False)
    with pytest.raises(InputError, match=r"task 'talk', row 1: .* the tokenizer has no chat temp"):
        encode_language(dumb, TALK, rows, CHAT)


def test_what_a_template_refuses_is_told_with_its_row():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    rows = talk_rows((("user", "Hi"),), (("system", "Be."), ("user", "Hi")))
    message = r"task 'talk', row 2: .* refuses messages of system, user: No system here"
    with pytest.raises(InputError, match=message):
        encode_language(tokenizer, TALK, rows, CHAT)


# Encoder-decoders ----------------------------------------------------------------------------


def test_an_encoder_decoder_reads_prompt_and_answer_apart(ending):
    rows = question_rows(["Which animal?"], [["dog", "The cat"]])
    found = one(ending, QUESTION, rows, APART)
    # The end token of the prompt stays, as T5 expects; the answer has one end.
    assert found["prompt"] == found["input_ids"] == ending("Which animal?")["input_ids"]
    assert found["options"] == [[1, *plain(ending, "dog")], [1, *plain(ending, "The cat")]]
    assert found["labels"] == ending("dog")["input_ids"]
    assert found["num_answer"] == len(found["labels"])


def test_an_encoder_decoder_has_room_for_each(tokenizer):
    text = "Which animal barks at the bird? " * 5
    style = replace(APART, max_length=14)
    task = replace(WRITTEN, generation=Generation(max_new_tokens=50))
    found = written(tokenizer, text, "The dog barks", task, style)
    whole = tokenizer(text)["input_ids"]
    assert found["input_ids"] == found["prompt"] == [*whole[:7], *whole[-7:]]
    assert found["cut"] == len(whole) - 14
    assert found["labels"] == [*tokenizer("The dog barks")["input_ids"], END]


# Models and their tokenizers -----------------------------------------------------------------


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path, caplog):
    make_tokenizer(pad=False).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "coadapt"):
        found = load_tokenizer(ModelConfig(name=str(tmp_path)))
    assert found.pad_token_id == END
    assert "no padding token; '</s>', its end token, pads" in caplog.text


@pytest.mark.parametrize("task", [QUESTION, WRITTEN], ids=["choice", "generation"])
def test_an_encoder_refuses_what_takes_a_language_model(task, tokenizer):
    config = ModelConfig(name="asset:minilm")
    message = f"task '{task.name}': a {task.kind} needs a language model, but 'asset:minilm' is"
    with pytest.raises(InputError, match=message):
        encode_rows(tokenizer, config, "encoder", task, question_rows([], []))


def test_the_models_configuration_decides_how_rows_are_read(tokenizer):
    rows = written_rows(["Which?"], ["dog"])
    config = ModelConfig(name="any", max_length=80, chat=True, prompt_loss=True)
    decoder = encode_rows(tokenizer, config, "decoder", WRITTEN, rows)
    assert decoder[0]["labels"][0] != IGNORED
    assert tokenizer.decode(decoder[0]["prompt"]) == "<|user|>Which?</s><|assistant|>"
    apart = encode_rows(
        tokenizer, replace(config, prompt_loss=False), "encoder-decoder", WRITTEN, rows
    )
    assert apart[0]["labels"] == [*tokenizer("dog")["input_ids"], END]
