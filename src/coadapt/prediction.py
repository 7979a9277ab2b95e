"""Predictions for new texts."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from coadapt._errors import InputError
from coadapt._files import write_text
from coadapt.config import decode_utf8
from coadapt.evaluation import decide, predict_outputs
from coadapt.model import MultiTaskModel
from coadapt.tasks import Rows, Task
from coadapt.tasks.render import Collator, encode

Text = str | Sequence[str]


def predict_texts(
    model: MultiTaskModel, tokenizer: Any, texts: Sequence[Text], task: str
) -> list[dict[str, Any]]:
    """Return a prediction a text, in order.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        texts: strings, or pairs of strings for a task on pairs.
        task: the task's name.

    Returns:
        For a classification ``{"label": ..., "probabilities": {label: p}}``; for a regression
        ``{"value": ...}``.

    Raises:
        InputError: if a text is no string, or not a pair where the task is on pairs.
    """
    chosen = model.tasks[model.task_id(task)]
    rows = _rows(texts, chosen)
    encoded = encode(tokenizer, rows, model.model_config.max_length)
    outputs = predict_outputs(model, Collator(tokenizer), encoded, task)
    return [_describe(chosen, output) for output in outputs]


def _rows(texts: Sequence[Text], task: Task) -> Rows:
    if isinstance(texts, str):
        raise InputError(f"texts is the text {texts!r}; give a list of texts")
    width = len(task.columns)
    columns: list[list[str]] = [[] for _ in range(width)]
    for number, text in enumerate(texts, start=1):
        found = tuple(text) if isinstance(text, (tuple, list)) else (text,)
        parts = [part for part in found if _is_text(part)]
        if not len(parts) == len(found) == width:
            wanted = "a text" if width == 1 else "a pair of texts"
            raise InputError(f"row {number}: task '{task.name}' takes {wanted}, not {text!r}")
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    pairs = tuple(columns[1]) if width == 2 else None
    return Rows(texts=tuple(columns[0]), pairs=pairs, labels=np.zeros(len(texts)))


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether a tokenizer takes it; JSON can write half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _describe(task: Task, output: np.ndarray) -> dict[str, Any]:
    if task.kind == "regression":
        return {"value": float(output[0])}
    shifted = np.exp(output - output.max())
    probabilities = (shifted / shifted.sum()).tolist()
    label = task.labels[int(decide(task, output[None])[0])]
    named = {str(name): p for name, p in zip(task.labels, probabilities, strict=True)}
    return {"label": label, "probabilities": named}


def read_inputs(raw: bytes, source: str, task: Task, *, jsonl: bool) -> Iterator[Text]:
    """Yield the texts of a file: a text a line, or JSON objects with the task's text columns.

    Raises:
        InputError: naming file and line.
    """
    for number, line in enumerate(decode_utf8(raw, source).split("\n"), start=1):
        where = f"{source}, line {number}"
        if not line.strip():
            continue
        if not jsonl:
            if len(task.columns) == 2:
                raise InputError(f"{where}: task '{task.name}' is on pairs; give JSONL")
            yield line.rstrip("\r")
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: no JSON: {error}") from error
        yield _columns(row, task, where)


def _columns(row: Any, task: Task, where: str) -> Text:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a JSON object is needed, with {', '.join(task.columns)}")
    for column in task.columns:
        if not _is_text(row.get(column)):
            raise InputError(f"{where}: no text in column '{column}'; found {row.get(column)!r}")
    parts = tuple(row[column] for column in task.columns)
    return parts if len(parts) == 2 else parts[0]


def write_predictions(path: Path, predictions: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in predictions))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
