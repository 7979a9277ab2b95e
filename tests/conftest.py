"""What every test may use: a tiny model and a toy suite, made here; nothing is downloaded."""

import copy
import json
import os
import random
import string
import tempfile

import pytest

# Before anything imports a Hugging Face library, which reads these once.
_HOME = tempfile.TemporaryDirectory(prefix="coadapt-tests-", ignore_cleanup_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = f"{_HOME.name}/huggingface"
os.environ["COADAPT_CACHE"] = f"{_HOME.name}/coadapt"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns when a process that used it forks
if "PYTEST_XDIST_WORKER" in os.environ:  # a core a worker, also for the processes that tests start
    os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hypothesis import settings
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

torch.set_num_threads(1)  # two workers with two threads each are ten times slower than with one

settings.register_profile("coadapt", deadline=None)  # a busy machine is no failure
settings.load_profile("coadapt")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD = ("good", "great", "lovely", "fine", "superb", "bright")
BAD = ("bad", "awful", "ugly", "poor", "dreadful", "dull")
TOPICS = {
    "animal": ("dog", "cat", "horse", "bird", "fish", "sheep"),
    "food": ("bread", "cheese", "apple", "soup", "rice", "honey"),
    "tool": ("hammer", "saw", "drill", "wrench", "ladder", "rope"),
}
FILLERS = (
    "the", "a", "this", "that", "is", "was", "with", "and", "near", "old", "new", "here", "there",
    "today", "we", "met", "had", "one", "two", "very", "house", "garden", "street", "morning",
)  # fmt: skip
NUM_ROWS = 40


def pytest_addoption(parser):
    """Add the one option of ours."""
    parser.addoption("--regen", action="store_true", help="write golden files anew")


def pytest_unconfigure():
    """Remove what the tests cached."""
    _HOME.cleanup()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder with a random BERT of 2 layers and 32 dimensions, and its tokenizer.

    It has a pooler, takes 64 tokens and knows the words of the toy suite; others are spelled.
    """
    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,  # BERT's 0.02 leaves so small a model nearly blind to its input
        pad_token_id=SPECIAL.index("[PAD]"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a lower-casing word-piece tokenizer with padding and type ids."""
    words = [*GOOD, *BAD, *(word for topic in TOPICS.values() for word in topic), *FILLERS]
    letters = [*string.ascii_lowercase, *string.digits, *",.!?'-"]
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def toy_suite_files(tmp_path_factory):
    """The toy suite's fields, and its files of 40 rows each."""
    folder = tmp_path_factory.mktemp("toy_suite")
    rng = random.Random(0)
    rows = {
        "sentiment": [sentiment_row(rng, index) for index in range(NUM_ROWS)],
        "topic": [topic_row(rng, index) for index in range(NUM_ROWS)],
        "same": [same_row(rng, index) for index in range(NUM_ROWS)],
        "degree": [degree_row(rng, index) for index in range(NUM_ROWS)],
    }
    paths = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
    fields = {
        "sentiment": {"kind": "classification", "labels": ["bad", "good"]},
        "topic": {"kind": "classification", "labels": list(TOPICS)},
        "same": {
            "kind": "classification",
            "text": ["first", "second"],
            "labels": ["other", "same"],
        },
        "degree": {"kind": "regression"},
    }
    tasks = {name: {**fields[name], "data": str(path)} for name, path in paths.items()}
    return {"name": "toy", "tasks": tasks}


@pytest.fixture
def toy_suite_dict(toy_suite_files):
    """Plain data for `load_suite`, the test's own copy: four tasks of one, two and three outputs.

    ``sentiment`` and ``topic`` are told by single words, ``same`` by a pair of texts, ``degree`` is
    the number of good words less that of bad ones.
    """
    return copy.deepcopy(toy_suite_files)


def sentence(rng: random.Random, *words: str) -> str:
    """Return a text of the words among four to nine fillers, so that lengths differ."""
    text = [*words, *rng.choices(FILLERS, k=rng.randint(4, 9))]
    rng.shuffle(text)
    return " ".join(text)


def sentiment_row(rng: random.Random, index: int) -> dict:
    label = ("bad", "good")[index % 2]
    return {"text": sentence(rng, *rng.sample((BAD, GOOD)[index % 2], 2)), "label": label}


def topic_row(rng: random.Random, index: int) -> dict:
    label = list(TOPICS)[index % 3]
    return {"text": sentence(rng, *rng.sample(TOPICS[label], 2)), "label": label}


def same_row(rng: random.Random, index: int) -> dict:
    first, other = rng.sample(list(TOPICS), 2)
    second = first if index % 2 else other
    return {
        "first": sentence(rng, rng.choice(TOPICS[first])),
        "second": sentence(rng, rng.choice(TOPICS[second])),
        "label": ("other", "same")[index % 2],
    }


def degree_row(rng: random.Random, index: int) -> dict:
    num_good, num_bad = divmod(index % 9, 3)
    words = [*rng.sample(GOOD, num_good), *rng.sample(BAD, num_bad)]
    return {"text": sentence(rng, *words), "label": float(num_good - num_bad)}
