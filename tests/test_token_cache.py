"""Tokenised rows on disk are those that tokenising gives, and only where all of it is the same."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from coadapt import token_cache
from coadapt.backbone import ModelConfig
from coadapt.loading import Loader, encode_rows
from coadapt.tasks import FileSource, Rows, Task
from coadapt.token_cache import TokenCache
from tests.tiny_language import make_tokenizer, save_model

NOWHERE = FileSource(path="never-read.jsonl")
TOPIC = Task(name="topic", kind="classification", data=NOWHERE, labels=("a", "b"))
PICK = Task(
    name="pick",
    kind="choice",
    data=NOWHERE,
    prompt="Which? {q}\nAnswer:",
    options="options",
    label="key",
)
WRITE = Task(name="write", kind="generation", data=NOWHERE, label="answer")
TEXTS = ("good dog", "bad cat and a fish", "gr\u00fcn e\u0301 \U0001f600")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache that keeps whatever is tokenised."""
    monkeypatch.setenv("COADAPT_CACHE", str(tmp_path))
    monkeypatch.delenv("COADAPT_TOKEN_CACHE", raising=False)
    monkeypatch.setattr(token_cache, "MIN_CHARACTERS", 1)
    return tmp_path / "tokens"


def rows_of(texts=TEXTS, **given):
    labels = given.pop("labels", np.arange(len(texts)) % 2)
    return Rows(texts=tuple(texts), pairs=given.pop("pairs", None), labels=labels, **given)


def cases(tiny_bert, tmp_path):
    """Kinds of rows, each with a model that reads them."""
    decoder = save_model(tmp_path / "llama", "llama")
    encoder = ModelConfig(name=str(tiny_bert), pooling="mean", max_length=8)
    chat = ModelConfig(name=str(decoder), max_length=96, chat=True)
    options = (("dog", "cat"), ("a", "b", "c"), ("yes", "no"))
    answers = np.empty(3, dtype=object)
    answers[:] = [("one",), ("two", "2"), ("three",)]
    return {
        "one text": (encoder, TOPIC, rows_of()),
        "pairs": (encoder, TOPIC, rows_of(pairs=TEXTS[::-1])),
        "cut": (encoder, TOPIC, rows_of(["good dog bad cat " * 20] * 2)),
        "choice": (chat, PICK, rows_of(options=options, labels=np.array([0, 2, 1]))),
        "generation": (chat, WRITE, rows_of(labels=answers)),
    }


@pytest.mark.parametrize("name", ["one text", "pairs", "cut", "choice", "generation"])
def test_what_is_read_is_what_tokenising_gives(name, tiny_bert, tmp_path, folder, monkeypatch):
    config, task, rows = cases(tiny_bert, tmp_path)[name]
    loader = Loader()
    expected = encode_rows(loader.tokenizer(config), config, loader.kind(config), task, rows)
    first = Loader().encode(config, task, rows)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr("coadapt.loading.encode_rows", None)  # from here on it is only read
    assert first == Loader().encode(config, task, rows) == expected


@settings(max_examples=20)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_any_text_comes_back(tiny_bert, texts):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    made = [{"input_ids": tokenizer(t)["input_ids"]} for t in texts]
    cache, rows = TokenCache(), rows_of(texts)
    assert cache.get(tokenizer, [], TOPIC, rows, lambda: made) == made
    assert cache.get(tokenizer, [], TOPIC, rows, list) == made


def other_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["barks"])
    return tokenizer


def other_template():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


OTHERS = {
    "text": {"rows": rows_of(("good dog", "bad cat", "x"))},
    "labels": {"rows": rows_of(labels=np.array([1, 0, 1]))},
    "pairs": {"rows": rows_of(pairs=TEXTS)},
    "length": {"how": ["encoder", 9]},
    "task": {"task": replace(TOPIC, prompt="Is it {text}?", text=None)},
    "tokenizer": {"tokenizer": other_tokenizer()},
    "template": {"tokenizer": other_template()},
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_decides_the_tokens_is_in_the_key(name):
    same = {"tokenizer": make_tokenizer(), "how": ["encoder", 8], "task": TOPIC, "rows": rows_of()}
    first = [{"input_ids": [1]}] * 3
    second = [{"input_ids": [2]}] * 3
    assert TokenCache().get(**same, make=lambda: first) == first
    assert TokenCache().get(**{**same, **OTHERS[name]}, make=lambda: second) == second
    assert TokenCache().get(**same, make=list) == first


def test_a_call_that_cuts_leaves_the_key_alone():
    tokenizer, items = make_tokenizer(), [{"input_ids": [1]}] * 3
    TokenCache().get(tokenizer, [], TOPIC, rows_of(), lambda: items)
    tokenizer(["good dog"], truncation=True, max_length=1, padding=True)
    assert TokenCache().get(tokenizer, [], TOPIC, rows_of(), list) == items


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "binary"])
def test_a_damaged_file_is_made_anew(damage, folder, caplog):
    tokenizer, items = make_tokenizer(), [{"input_ids": [1, 2, 3]}] * 3
    TokenCache().get(tokenizer, [], TOPIC, rows_of(), lambda: items)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    changed = {"cut": whole[:-5], "changed": whole.replace(b"2", b"7"), "emptied": b""}
    file.write_bytes(changed.get(damage, b"\xff\xfe"))
    assert TokenCache().get(tokenizer, [], TOPIC, rows_of(), lambda: items) == items
    assert file.read_bytes() == whole


def test_what_is_not_to_be_kept_is_not(folder, monkeypatch):
    tokenizer, items = make_tokenizer(), [{"input_ids": [1]}] * 3

    def get():
        return TokenCache().get(tokenizer, [], TOPIC, rows_of(), lambda: items)

    monkeypatch.setenv("COADAPT_TOKEN_CACHE", "0")
    assert get() == items
    monkeypatch.delenv("COADAPT_TOKEN_CACHE")
    monkeypatch.setattr(token_cache, "MIN_CHARACTERS", 10**6)
    assert get() == items
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_nothing(folder):
    folder.write_text("a file, where the folder should be")
    items = [{"input_ids": [1]}] * 3
    assert TokenCache().get(make_tokenizer(), [], TOPIC, rows_of(), lambda: items) == items


def test_the_files_read_longest_ago_go_first(folder, monkeypatch):
    tokenizer, items = make_tokenizer(), [{"input_ids": [1] * 100}] * 3
    for n in range(3):
        TokenCache().get(tokenizer, [n], TOPIC, rows_of(), lambda: items)
    size = max(file.stat().st_size for file in folder.iterdir())
    oldest, *_ = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    TokenCache().get(tokenizer, [0], TOPIC, rows_of(), list)  # read again
    monkeypatch.setattr(token_cache, "MAX_BYTES", 2 * size)
    TokenCache().get(tokenizer, [3], TOPIC, rows_of(), lambda: items)
    assert len(list(folder.iterdir())) == 2
    assert oldest.exists()
