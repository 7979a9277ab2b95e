"""Predictions for new texts."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from coadapt._errors import InputError
from coadapt._seeds import named_seed
from coadapt.config import decode_utf8
from coadapt.evaluation import Encoded, decide, predict_outputs
from coadapt.language import generate_texts, score_options
from coadapt.loading import encode_rows
from coadapt.model import MultiTaskModel
from coadapt.tasks import Rows, Task
from coadapt.tasks.render import Collator
from coadapt.tasks.rows import make_rows, object_array, read_content

# A text, a pair of texts, or a row with the task's columns.
Text = str | Sequence[str] | Mapping[str, Any]

_ROWS_AT_ONCE = 64


def predict_texts(
    model: MultiTaskModel, tokenizer: Any, texts: Sequence[Text], task: str, *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield a prediction a text, in order, as soon as it is made.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        texts: strings, pairs of strings for a task on pairs, or mappings with the task's columns.
        task: the task's name.
        seed: of answers that are drawn.

    Returns:
        For a classification ``{"label": ..., "probabilities": {label: p}}``; for a regression
        ``{"value": ...}``; for a choice ``{"option": ..., "position": ..., "log_likelihoods":
        [...]}``, in nats; for a generation ``{"text": ...}``.

    Raises:
        InputError: if a text is not what the task takes, before anything is predicted.
    """
    chosen = model.tasks[model.task_id(task)]
    rows = _rows(texts, chosen)
    encoded = encode_rows(tokenizer, model.model_config, model.kind, chosen, rows)
    return _predict(model, tokenizer, rows, encoded, chosen, seed)


def _predict(
    model: MultiTaskModel, tokenizer: Any, rows: Rows, encoded: Encoded, task: Task, seed: int
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(encoded), _ROWS_AT_ONCE):
        part = encoded[start : start + _ROWS_AT_ONCE]
        if not model.is_language_model:
            outputs = predict_outputs(model, Collator(tokenizer), part, task.name)
            yield from (_describe(task, output) for output in outputs)
        elif task.kind == "generation":
            key, how = named_seed(seed, "predict", str(start)), task.generation
            found = generate_texts(model, tokenizer, part, task.name, how, seed=key)
            yield from ({"text": text} for text in found)
        else:
            for index, scores in enumerate(score_options(model, part, task.name), start=start):
                if task.kind == "classification":
                    yield _describe(task, scores)
                else:
                    assert rows.options is not None
                    yield _describe_choice(rows.options[index], scores)


def _rows(texts: Sequence[Text], task: Task) -> Rows:
    if isinstance(texts, str):
        raise InputError(f"texts is the text {texts!r}; give a list of texts")
    contents = []
    for number, text in enumerate(texts, start=1):
        try:
            contents.append(read_content(task, _row(text, task), answered=False))
        except InputError as error:
            raise InputError(f"row {number}: task '{task.name}' {error}") from error
    unknown = [()] * len(texts) if task.kind == "generation" else [0] * len(texts)
    return make_rows(task, contents, object_array(unknown))


def _row(text: Text, task: Task) -> Mapping[str, Any]:
    """Return the columns that a text or pair of texts stands for."""
    if isinstance(text, Mapping):
        return text
    if isinstance(text, str) and task.messages is not None:
        return {task.messages: [{"role": "user", "content": text}]}
    parts = tuple(text) if isinstance(text, (tuple, list)) else (text,)
    plain = all("." not in column for column in task.input_columns)
    if len(parts) != len(task.input_columns) or not plain or not all(map(_is_text, parts)):
        wanted = {1: "a text", 2: "a pair of texts"}.get(len(task.input_columns), "a row")
        wanted = "a row" if task.image else wanted
        columns = ", ".join(task.input_columns)
        raise InputError(f"takes {wanted}, not {text!r}; or a mapping with {columns}")
    return dict(zip(task.input_columns, parts, strict=True))


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


def _describe_choice(options: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
    position = int(scores.argmax())
    return {
        "option": options[position],
        "position": position,
        "log_likelihoods": scores.tolist(),
    }


def read_inputs(raw: bytes, source: str, task: Task, *, jsonl: bool) -> Iterator[Text]:
    """Yield the rows of a file: a text a line, or JSON objects with the task's columns.

    Raises:
        InputError: naming file and line.
    """
    for number, line in enumerate(decode_utf8(raw, source).split("\n"), start=1):
        where = f"{source}, line {number}"
        if not line.strip():
            continue
        if not jsonl:
            if len(task.input_columns) > 1:
                needed = ", ".join(task.input_columns)
                raise InputError(f"{where}: task '{task.name}' takes {needed}; give JSONL")
            yield line.rstrip("\r")
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: no JSON: {error}") from error
        try:
            if not isinstance(row, dict):
                raise InputError(f"a JSON object is needed, with {', '.join(task.input_columns)}")
            read_content(task, row, answered=False)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        yield row


def write_predictions(path: Path, predictions: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, each as soon as it is there.

    What was written before an interruption stays.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            for row in predictions:
                file.write(f"{json.dumps(row, ensure_ascii=False)}\n")
                file.flush()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
