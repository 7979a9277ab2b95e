"""Forty rows, and suites of one task over them."""

import json

from coadapt.tasks import SPLITS, load_suite

WORDS = [f"text number {i}" for i in range(40)]
ROWS = [{"text": text, "label": "yes" if i % 3 else "no"} for i, text in enumerate(WORDS)]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def suite_of(data, *, suite=None, **fields):
    return load_suite(
        {"tasks": {"a": {"kind": "classification", "data": data} | fields}} | (suite or {})
    )


def splits_of(suite, task="a"):
    return {split: list(suite.rows(task, split).texts) for split in SPLITS}
