"""Tokenising rows, and reading them from the cache of an earlier run.

    python benchmarks/tokenizing.py [--rounds 7]

The demo suite as it is (600 training rows a task; too small for the cache, which is made to keep
it), and 20,000 rows of 200 words of its texts, by the tokenizers of asset:minilm and asset:smollm2.
Reading has the hash of rows and tokenizer in it. Processor time of one thread.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from _harness import machine, processor_seconds, summary, threads, write

from coadapt import load_suite, token_cache
from coadapt.backbone import ModelConfig
from coadapt.loading import Loader, encode_rows
from coadapt.tasks import FileSource, Rows, Task
from coadapt.token_cache import TokenCache

TASK = Task(
    name="any", kind="classification", data=FileSource(path="never.jsonl"), labels=("a", "b")
)
WRITTEN = Task(name="any", kind="generation", data=FileSource(path="never.jsonl"), label="answer")


def sizes() -> dict[str, tuple[str, ...]]:
    """Return the texts of each size."""
    suite = load_suite("demo", overrides=["max_rows={train: 600}"])
    texts = tuple(text for name in suite.names for text in suite.rows(name, "train").texts)
    words = [word for text in texts for word in text.split()]
    drawn = np.random.default_rng(0).integers(0, len(words), (20_000, 200))
    return {"demo": texts, "20,000 rows": tuple(" ".join(words[i] for i in row) for row in drawn)}


@contextmanager
def elsewhere(folder: str) -> Iterator[None]:
    """Let the cache be another folder."""
    before = os.environ.get("COADAPT_CACHE")
    os.environ["COADAPT_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["COADAPT_CACHE"]
        else:
            os.environ["COADAPT_CACHE"] = before


def measured(name: str, texts: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Return seconds of both, and what is read."""
    encoder = name == "asset:minilm"
    config = ModelConfig(name=name, max_length=256)
    task = TASK if encoder else WRITTEN
    labels = np.zeros(len(texts), dtype=np.int64)
    if not encoder:
        labels = np.empty(len(texts), dtype=object)
        labels[:] = [("yes",)] * len(texts)
    rows = Rows(texts=texts, pairs=None, labels=labels)
    loader = Loader()
    tokenizer, kind = loader.tokenizer(config), loader.kind(config)

    def tokenize() -> list[dict[str, Any]]:
        return encode_rows(tokenizer, config, kind, task, rows)

    def read() -> list[dict[str, Any]]:
        return TokenCache().get(tokenizer, [], task, rows, tokenize)

    with tempfile.TemporaryDirectory() as folder, elsewhere(folder):
        made = read()
        assert made == read()
        seconds = processor_seconds({"tokenise": tokenize, "read": read}, rounds)
    tokens = sum(len(item["input_ids"]) for item in made)
    return {"tokens": tokens, "rows": summary(seconds, "tokenise")}


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="tokenising, and reading what was tokenised")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    threads(1)
    os.environ["RAYON_NUM_THREADS"] = "1"
    token_cache.MIN_CHARACTERS = 0
    found: dict[str, Any] = {}
    texts = sizes()
    for name in ("asset:minilm", "asset:smollm2"):
        for size, mine in texts.items():
            data = found[f"{name}, {size}"] = measured(name, mine, given.rounds)
            row = data["rows"]["read"]
            print(
                f"{name}, {size}: {data['tokens']:,} tokens in "
                f"{data['rows']['tokenise']['median_s']:.2f} s, read in {row['median_s']:.2f} s: "
                f"{row['ratio']:.2f} ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f})",
                flush=True,
            )
    path = write("tokenizing.json", {"cases": found, "machine": machine()})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
