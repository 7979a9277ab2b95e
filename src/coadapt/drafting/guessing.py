"""What a table of a user's own seems to be: which columns are text and label, and of what kind."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from coadapt._errors import InputError
from coadapt.tasks.read import read_file
from coadapt.tasks.task import Kind

# In the order in which they are taken, if several are there.
LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "y"),
    *("answer", "output", "response", "completion", "score", "rating", "stars", "is_duplicate"),
)
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("text_a", "text_b"), ("a", "b")),
)
MAX_CLASSES = 60
REPEATED = 3  # rows a class on average, below which labels are answers rather than classes
NUMBERS = 12  # distinct numbers from which on they are values rather than classes


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What a file seems to hold.

    Attributes:
        name: of the task, from the file's.
        file: the file.
        kind: of the task.
        texts: columns with what is read, one or two.
        label: the column with what is wanted.
        options: of a choice, the column with a list of options.
        rows: how many.
        words: median and 95th percentile of words of a row.
        values: of a classification, labels and how often each stands; else empty.
        reasons: sentences that say why.
    """

    name: str
    file: Path
    kind: Kind
    texts: tuple[str, ...]
    label: str
    options: str | None = None
    rows: int
    words: tuple[int, int]
    values: Mapping[str, int]
    reasons: tuple[str, ...]


def guess(file: Path) -> Guess:
    """Look at a CSV, TSV, JSON, JSONL or Parquet file.

    Raises:
        InputError: if it cannot be read, has too few rows, or nothing in it looks like text or
            label, naming the columns.
    """
    rows = read_file(file)
    if len(rows) < 2:
        raise InputError(f"{file}: rows: {len(rows)}; at least 2 are needed to tell what they are")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    filled = {
        name: [row.get(name) for row in rows if row.get(name) is not None] for name in columns
    }
    options = next((c for c in columns if filled[c] and all(_is_list(v) for v in filled[c])), None)
    plain = [c for c in columns if c != options and filled[c]]
    label, why_label = _label(file, plain, filled)
    texts, why_texts = _texts(file, [c for c in plain if c != label], filled)
    kind, why_kind = _kind(filled[label], len(rows), options)
    words = [sum(len(str(row.get(c) or "").split()) for c in texts) for row in rows]
    counts = Counter(str(value) for value in filled[label])
    return Guess(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem).strip("_.") or "task",
        file=file,
        kind=kind,
        texts=texts,
        label=label,
        options=options,
        rows=len(rows),
        words=(int(median(words)), int(quantiles(words, n=20)[-1])),
        values=dict(counts.most_common()) if kind == "classification" else {},
        reasons=(why_texts, why_label, why_kind),
    )


def guess_all(files: Sequence[Path]) -> list[Guess]:
    """Look at several files.

    Raises:
        InputError: if one cannot be told, with what is wrong with each of those.
    """
    guesses, wrong = [], []
    for file in files:
        try:
            guesses.append(guess(file))
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    return guesses


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value)


def _label(file: Path, columns: Sequence[str], filled: Mapping[str, list[Any]]) -> tuple[str, str]:
    by_name = {column.casefold(): column for column in reversed(columns)}
    for name in LABELS:
        if name in by_name:
            return by_name[name], f"'{by_name[name]}' is the label, by its name"
    few = [c for c in columns if 2 <= len({str(v) for v in filled[c]}) <= len(filled[c]) / REPEATED]
    if not few:
        raise InputError(
            f"{file}: no column looks like a label (by its name, or few values that repeat); found "
            f"{', '.join(columns)}; rename one to 'label', or write the suite by hand"
        )
    best = min(few, key=lambda c: len({str(v) for v in filled[c]}))
    number = len({str(v) for v in filled[best]})
    return best, f"'{best}' is the label: it has the fewest values, {number}"


def _texts(
    file: Path, columns: Sequence[str], filled: Mapping[str, list[Any]]
) -> tuple[tuple[str, ...], str]:
    by_name = {column.casefold(): column for column in columns}
    for one, other in PAIRS:
        if one in by_name and other in by_name:
            pair = by_name[one], by_name[other]
            return pair, f"'{pair[0]}' and '{pair[1]}' are read as a pair, by their names"
    length = {
        c: sum(len(v) for v in filled[c]) / len(filled[c])
        for c in columns
        if all(isinstance(v, str) for v in filled[c]) and not all(_is_number(v) for v in filled[c])
    }
    if not length:
        raise InputError(
            f"{file}: no column looks like text; found {', '.join(columns) or 'none but the label'}"
        )
    best = max(length, key=lambda c: length[c])
    return (best,), f"'{best}' is the text: its values are the longest"


def _kind(values: Sequence[Any], rows: int, options: str | None) -> tuple[Kind, str]:
    if options is not None:
        return "choice", f"'{options}' lists what to choose from"
    distinct = {str(value) for value in values}
    if all(_is_number(value) for value in values):
        fractions = any("." in text for text in distinct)
        if len(distinct) > NUMBERS or (fractions and len(distinct) > 2):
            return "regression", f"the labels are {len(distinct)} different numbers"
    if len(distinct) <= MAX_CLASSES and rows >= REPEATED * len(distinct):
        return "classification", f"the labels are {len(distinct)} values that repeat"
    return "generation", f"the labels are {len(distinct)} different texts: answers to be written"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return isfinite(float(value))  # a column of "nan" holds no numbers
    except (TypeError, ValueError):
        return False
