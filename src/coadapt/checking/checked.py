"""A suite, checked: what its data hold, how the model will see them, what is wrong."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from coadapt._errors import InputError
from coadapt._sheet import Sheet
from coadapt.backbone import ModelConfig, model_kind
from coadapt.checking.data import Seen, leaks, look_at
from coadapt.checking.finding import SHOWN, Finding, some, worst_first
from coadapt.loading import encode_rows
from coadapt.processors import load_tokenizer
from coadapt.tasks import TaskSuite
from coadapt.tasks.language import IGNORED
from coadapt.tasks.split import SPLITS

LETTERS = 300  # of a row that is shown


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found.

    Attributes:
        findings: errors first.
        tasks: by task ``rows`` by split, ``labels`` with how often each is trained on, ``tokens``
            (median, 95th percentile, longest; of training rows, where a model was given), ``cut``
            (how many rows are longer than the model is given).
        shown: by task a training row as the model sees it, cut to 300 letters.
    """

    findings: tuple[Finding, ...]
    tasks: dict[str, dict[str, Any]]
    shown: dict[str, str]

    @property
    def can_be_trained(self) -> bool:
        """Whether nothing was found that would stop a run."""
        return all(finding.level != "error" for finding in self.findings)

    def to_plain(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {"can_be_trained": self.can_be_trained}

    def sheet(self) -> Sheet:
        """Return a table of the tasks."""
        rows = tuple(
            (
                task,
                " / ".join(f"{told['rows'].get(split, 0):,}" for split in SPLITS),
                " / ".join(str(number) for number in told["tokens"]) if told["tokens"] else "-",
                f"{told['cut']:,}" if told["tokens"] else "-",
                _balance(told["labels"]),
            )
            for task, told in self.tasks.items()
        )
        columns = ("task", "train / val. / test", "tokens: 50 % / 95 % / max", "cut", "labels")
        return Sheet(title="rows, lengths and labels", columns=columns, rows=rows)

    def lines(self) -> list[str]:
        """Return a line a finding, with what would do."""
        told = [f"{f.level}, {f.task}: {f.said}. To do: {f.remedy}." for f in self.findings]
        return told or ["nothing was found that is wrong"]


def _balance(labels: Mapping[str, int]) -> str:
    total = sum(labels.values())
    shown = list(labels.items())[:SHOWN]
    parts = [f"{name} {100 * number / total:.0f} %" for name, number in shown]
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(parts) + more if parts else "-"


def check(suite: TaskSuite, model: ModelConfig | None = None) -> Checked:
    """Look at all of a suite's data, and say everything that is wrong rather than the first.

    Args:
        suite: as it is written (:func:`coadapt.tasks.declared_suite`); its data may be of any kind.
        model: whose tokens are to be counted.
    """
    seen = {task.name: look_at(task) for task in suite.tasks}
    findings = [finding for one in seen.values() for finding in one.findings]
    findings += leaks(suite, seen)
    wrong = {finding.task for finding in findings if finding.level == "error"}
    sound = tuple(task for task in suite.tasks if task.name not in wrong)
    if not sound:
        return Checked(findings=worst_first(findings), tasks={}, shown={})
    try:
        with _unsaid():
            ready = replace(suite, tasks=sound).resolved()
            tasks = {task.name: _describe(ready, task.name) for task in ready.tasks}
    except InputError as error:
        stop = Finding(level="error", task="-", what="read", said=str(error), remedy="as it says")
        return Checked(findings=worst_first([*findings, stop]), tasks={}, shown={})
    texts = {name: ready.rows(name, "train").texts for name in tasks}
    first = {name: found[0] for name, found in texts.items() if found}
    if model is not None:
        findings += _lengths(ready, model, tasks, first, seen)
    shown = {name: text[:LETTERS] for name, text in first.items()}
    return Checked(findings=worst_first(findings), tasks=tasks, shown=shown)


@contextmanager
def _unsaid() -> Iterator[None]:
    """Leave out what loading logs: it has been found already, with places."""
    source = logging.getLogger("coadapt.tasks")
    before, source.disabled = source.disabled, True
    children = [logging.getLogger(name) for name in logging.root.manager.loggerDict
                if name.startswith("coadapt.tasks.")]  # fmt: skip
    levels = [child.disabled for child in children]
    for child in children:
        child.disabled = True
    try:
        yield
    finally:
        source.disabled = before
        for child, level in zip(children, levels, strict=True):
            child.disabled = level


def _describe(suite: TaskSuite, name: str) -> dict[str, Any]:
    task, rows = suite.task(name), {split: suite.rows(name, split) for split in SPLITS}
    labels: Mapping[str, int] = {}
    if task.kind == "classification":
        counts = Counter(rows["train"].labels.tolist())
        labels = {str(label): counts[index] for index, label in enumerate(task.labels)}
    sizes = {split: len(found) for split, found in rows.items()}
    return {"rows": sizes, "labels": dict(labels), "tokens": None, "cut": 0}


def _lengths(
    suite: TaskSuite,
    model: ModelConfig,
    tasks: dict[str, dict[str, Any]],
    shown: dict[str, str],
    seen: Mapping[str, Seen],
) -> Iterator[Finding]:
    """Count tokens as training will, and tell what does not fit, in whatever split."""
    tokenizer, kind = load_tokenizer(model), model_kind(model)
    for name, told in tasks.items():
        try:
            with _unsaid():
                items = {
                    split: encode_rows(
                        tokenizer, model, kind, suite.task(name), suite.rows(name, split)
                    )
                    for split in SPLITS
                }
        except InputError as error:
            remedy = "do as it says, or leave the task out"
            yield Finding(level="error", task=name, what="read", said=str(error), remedy=remedy)
            continue
        lengths = {
            split: np.array([len(item["input_ids"]) + item.get("cut", 0) for item in found])
            for split, found in items.items()
        }
        if kind != "encoder" and items["train"]:
            shown[name] = _read_by(tokenizer, items["train"][0])
        if lengths["train"].size:
            parts = (*np.percentile(lengths["train"], (50, 95)), lengths["train"].max())
            told["tokens"] = [int(part) for part in parts]
        yield from _too_long(suite, name, told, seen[name], model.max_length, items, lengths)


def _read_by(tokenizer: Any, item: Mapping[str, Any]) -> str:
    """Return the text of a language model's training row: the prompt, then the answer."""
    answer = [token for token in item["labels"] if token != IGNORED][-item["num_answer"] :]
    said = tokenizer.decode(answer, skip_special_tokens=True)
    return f"{tokenizer.decode(item['prompt'])} => {said}"


def _too_long(
    suite: TaskSuite,
    name: str,
    told: dict[str, Any],
    seen: Seen,
    limit: int,
    items: Mapping[str, list[dict[str, Any]]],
    lengths: Mapping[str, np.ndarray],
) -> Iterator[Finding]:
    places = {key: place for rows in seen.rows.values() for key, _, _, place in rows}
    cut: list[tuple[int, str]] = []
    for split in SPLITS:
        rows = suite.rows(name, split)
        cut += [
            (int(lengths[split][index]), places[rows.key(index)])
            for index, item in enumerate(items[split])
            if item.get("cut")
        ]
    told["cut"] = len(cut)
    if cut:
        total = sum(len(found) for found in items.values())
        longest = [f"{place} ({length})" for length, place in sorted(cut, reverse=True)]
        yield Finding(
            level="warning",
            task=name,
            what="long",
            said=f"{len(cut)} of {total} rows are cut, having more than {limit} tokens: "
            f"{some(longest)}",
            remedy="raise model.max_length, or shorten them",
        )
