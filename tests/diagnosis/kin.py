"""Toy tasks of which it is known how alike they are."""

import random
from pathlib import Path
from typing import Any

from coadapt.diagnosis import Diagnosis
from coadapt.tasks import TaskSuite, load_suite
from tests.conftest import BAD, FILLERS, GOOD, TOPICS
from tests.tasks.toy_rows import write_jsonl

FAST: dict[str, Any] = {"num_bootstrap": 40, "num_permutations": 19, "num_probes": 2}
NUM_ROWS, NUM_WORDS = 192, 6  # so many words that the random model's gradients are no mere noise


def texts_of(seed, words_of):
    """Rows of six words that tell the label among two to four that do not."""
    rng = random.Random(seed)
    rows = []
    for index in range(NUM_ROWS + 16):
        words, label = words_of(rng, index)
        text = [*words, *rng.choices(FILLERS, k=rng.randint(2, 4))]
        rng.shuffle(text)
        rows.append({"text": " ".join(text), "label": label})
    return rows


def mood(rng, index):
    return rng.choices((BAD, GOOD)[index % 2], k=NUM_WORDS), ("bad", "good")[index % 2]


def topic(rng, index):
    label = list(TOPICS)[index % 3]
    return rng.choices(TOPICS[label], k=NUM_WORDS), label


def degree(rng, index):
    num = rng.randint(0, NUM_WORDS)
    words = rng.choices(GOOD, k=num) + rng.choices(BAD, k=NUM_WORDS - num)
    return words, float(2 * num - NUM_WORDS)


KIN = {
    "mood": (mood, 1, {"labels": ["bad", "good"]}),
    "copy": (mood, 1, {"labels": ["bad", "good"]}),
    "recoded": (mood, 1, {"labels": ["good", "bad"]}),
    "other_mood": (mood, 2, {"labels": ["bad", "good"]}),
    "topic": (topic, 3, {"labels": list(TOPICS)}),
    "degree": (degree, 4, {"kind": "regression"}),
}


def write_kin(folder: Path) -> dict[str, Any]:
    """Write files of 192, 8 and 8 rows a task, and return the tasks' fields by name.

    ``mood``, ``copy`` and ``recoded`` have the same rows, ``recoded`` its labels' ids swapped;
    ``other_mood`` asks the same of other texts, ``degree`` for a value of the same words; ``topic``
    has to do with none of them.
    """
    fields = {}
    for name, (words_of, seed, own) in KIN.items():
        rows = texts_of(seed, words_of)
        splits = {"train": rows[:NUM_ROWS], "validation": rows[-16:-8], "test": rows[-8:]}
        paths = {key: write_jsonl(folder / name / f"{key}.jsonl", splits[key]) for key in splits}
        data = {"kind": "file", "path": paths}
        fields[name] = {"kind": "classification", **own, "data": data}
    return fields


def suite_of(kin_tasks: dict[str, Any], *names: str) -> TaskSuite:
    return load_suite({"name": "toys", "tasks": {name: kin_tasks[name] for name in names}})


def between(found: Diagnosis, measure: str, first: str, second: str) -> float:
    values = found.pair(measure).values
    return float(values[found.tasks.index(first), found.tasks.index(second)])
