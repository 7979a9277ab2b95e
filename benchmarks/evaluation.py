"""Evaluation in batches of like length, and in the ways of a first script.

    python benchmarks/evaluation.py [--rounds 7]

Classification: 192 test rows each of two tasks of the demo suite, by all-MiniLM-L6-v2 with one
LoRA: 64 rows of like length at a time, 64 in their order, those padded to 128 tokens, and one at a
time. Generation: 8 tokens behind each of 16 of the suite's texts of 5 to 100 words, by SmolLM2-135M
with one LoRA, greedily: 8 rows of like length at a time, 8 in their order, and one at a time. All
ways are checked to give the same. Processor time of one thread; memory is what a fresh process
needs above the loaded model.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _harness import machine, peak_mib, processor_seconds, summary, threads, write

from coadapt import load_suite
from coadapt.backbone import ModelConfig
from coadapt.evaluation import BATCH_SIZE, predict_outputs
from coadapt.language import generate_texts
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Single
from coadapt.tasks import FileSource, Rows, Task
from coadapt.tasks.prompts import Generation
from coadapt.tasks.render import Collator

LONGEST = 128
PROMPTS = 8  # at once
WRITTEN = Task(name="written", kind="generation", data=FileSource(path="never.jsonl"), label="a")
HOW = Generation(max_new_tokens=8)
Calls = dict[str, Callable[[], Any]]


@torch.no_grad()
def randomized(model: MultiTaskModel) -> MultiTaskModel:
    """Fill the factors, so that adapters do something."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.attached.tensors().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.01)
    return model.eval()


class _Padded(Collator):
    """Pads to one length, whatever the rows'."""

    def __call__(self, items: Any) -> dict[str, torch.Tensor]:
        long = {key: [0] * LONGEST for key in items[0] if key in self._padding}
        batch = super().__call__([*items, {**items[0], **long}])
        return {name: values[:-1] for name, values in batch.items()}


def classification() -> Calls:
    """Return the ways to predict test rows of the demo suite."""
    suite = load_suite("demo", only=("spam", "movie"), overrides=["max_rows={test: 192}"])
    config = ModelConfig(name="asset:minilm", dtype="float32", max_length=LONGEST)
    plan = Plan.shared(list(suite.names), 8)
    model = randomized(build_model(config, suite.tasks, Recipe(structure=Single()), plan))
    loader = Loader()
    tokenizer = loader.tokenizer(config)
    encoded = {
        name: loader.encode(config, suite.task(name), suite.rows(name, "test"))
        for name in suite.names
    }

    def predict(at_once: int | None, collate: Collator) -> np.ndarray:
        found = []
        for name, rows in encoded.items():
            # Within a lot rows are sorted, which changes nothing: a lot is one batch.
            size = at_once or len(rows)
            lots = [rows[start : start + size] for start in range(0, len(rows), size)]
            found += [predict_outputs(model, collate, lot, name).argmax(axis=1) for lot in lots]
        return np.concatenate(found)

    plain, padded = Collator(tokenizer), _Padded(tokenizer)
    return {
        f"{BATCH_SIZE} rows of like length": lambda: predict(None, plain),
        f"{BATCH_SIZE} rows in their order": lambda: predict(BATCH_SIZE, plain),
        f"{BATCH_SIZE} rows padded to {LONGEST}": lambda: predict(BATCH_SIZE, padded),
        "one row": lambda: predict(1, plain),
    }


def generation() -> Calls:
    """Return the ways to write behind texts."""
    suite = load_suite("demo")
    texts = [text for name in suite.names for text in suite.rows(name, "test").texts]
    texts = [text for text in texts if 5 <= len(text.split()) <= 100]
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:16]]
    config = ModelConfig(name="asset:smollm2", dtype="float32", max_length=512)
    plan = Plan.shared([WRITTEN.name], 8)
    model = randomized(build_model(config, [WRITTEN], Recipe(structure=Single()), plan))
    labels = np.empty(len(texts), dtype=object)
    labels[:] = [("any",)] * len(texts)
    loader = Loader()
    tokenizer = loader.tokenizer(config)
    items = loader.encode(config, WRITTEN, Rows(texts=tuple(texts), pairs=None, labels=labels))

    def written(at_once: int | None) -> list[str]:
        size = at_once or len(items)
        found = []
        for start in range(0, len(items), size):
            lot = items[start : start + size]
            found += generate_texts(model, tokenizer, lot, WRITTEN.name, HOW, batch_size=PROMPTS)
        return found

    return {
        f"{PROMPTS} rows of like length": lambda: written(None),
        f"{PROMPTS} rows in their order": lambda: written(PROMPTS),
        "one row": lambda: written(1),
    }


def one(calls: Callable[[], Calls], case: str) -> Callable[[], Any]:
    """Return one of the ways."""
    return calls()[case]


def measured(calls: Callable[[], Calls], rounds: int) -> dict[str, Any]:
    """Return every way's time, and its memory."""
    cases = calls()
    results = [case() for case in cases.values()]
    shares = [float(np.mean(np.asarray(r) == np.asarray(results[0]))) for r in results]
    assert min(shares) > 0.99, f"the ways differ: {shares}"  # rounding may turn a tie
    rows: dict[str, Any] = summary(processor_seconds(cases, rounds), next(iter(cases)))
    for case, row in rows.items():
        row["peak_mib"] = peak_mib(one, calls, case)
    return {"number": len(results[0]), "rows": rows}


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="evaluation in batches of like length, and not")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    threads(1)
    found: dict[str, Any] = {}
    for calls in (classification, generation):
        data = found[calls.__name__] = measured(calls, given.rounds)
        for case, row in data["rows"].items():
            print(
                f"{calls.__name__}, {case}: {row['median_s']:.2f} s, {row['ratio']:.2f} "
                f"({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}), {row['peak_mib']:.0f} MiB",
                flush=True,
            )
    path = write("evaluation.json", {"rounds": given.rounds, **found, "machine": machine()})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
