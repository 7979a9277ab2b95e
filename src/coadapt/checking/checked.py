"""A suite, checked: what its data hold, how the model will see them, what is wrong."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coadapt._errors import InputError
from coadapt._sheet import Sheet
from coadapt.backbone import ModelConfig, load_tokenizer, model_kind
from coadapt.checking.data import leaks, look_at
from coadapt.checking.finding import SHOWN, Finding, worst_first
from coadapt.tasks import TaskSuite
from coadapt.tasks.render import encode
from coadapt.tasks.split import SPLITS

LETTERS = 300  # of a row that is shown


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found.

    Attributes:
        findings: errors first.
        tasks: by task ``rows`` by split, ``labels`` with how often each is trained on, ``tokens``
            (median, 95th percentile, longest; of training rows, where a model was given), ``cut``
            (how many training rows are longer than the model is given).
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
    findings += leaks(seen)
    if any(finding.level == "error" for finding in findings):
        return Checked(findings=worst_first(findings), tasks={}, shown={})
    said: list[str] = []
    try:
        with _kept(said):
            ready = suite.resolved()
            tasks = {task.name: _describe(ready, task.name) for task in ready.tasks}
    except InputError as error:
        stop = Finding(level="error", task="-", what="read", said=str(error), remedy="as it says")
        return Checked(findings=worst_first([*findings, stop]), tasks={}, shown={})
    shown = {name: ready.rows(name, "train").texts for name in tasks}
    if model is not None and model_kind(model) == "encoder":
        findings += _lengths(ready, model, tasks)
    first = {name: texts[0][:LETTERS] for name, texts in shown.items() if texts}
    return Checked(findings=worst_first(findings), tasks=tasks, shown=first)


@contextmanager
def _kept(said: list[str]) -> Iterator[None]:
    """Keep what loading logs: it has been found already, with places."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    source, handler = logging.getLogger("coadapt.tasks"), Keep()
    source.addHandler(handler)
    before, source.propagate = source.propagate, False
    try:
        yield
    finally:
        source.removeHandler(handler)
        source.propagate = before


def _describe(suite: TaskSuite, name: str) -> dict[str, Any]:
    task, rows = suite.task(name), {split: suite.rows(name, split) for split in SPLITS}
    labels: Mapping[str, int] = {}
    if task.kind == "classification":
        counts = Counter(rows["train"].labels.tolist())
        labels = {str(label): counts[index] for index, label in enumerate(task.labels)}
    sizes = {split: len(found) for split, found in rows.items()}
    return {"rows": sizes, "labels": dict(labels), "tokens": None, "cut": 0}


def _lengths(
    suite: TaskSuite, model: ModelConfig, tasks: dict[str, dict[str, Any]]
) -> Iterable[Finding]:
    """Count tokens as training will, and tell what does not fit."""
    tokenizer = load_tokenizer(model)
    findings = []
    for name, told in tasks.items():
        rows = suite.rows(name, "train")
        items = encode(tokenizer, rows, model.max_length)
        lengths = np.array([len(item["input_ids"]) + item.get("cut", 0) for item in items])
        if not lengths.size:
            continue
        told["tokens"] = [int(v) for v in (*np.percentile(lengths, (50, 95)), lengths.max())]
        told["cut"] = int((lengths > model.max_length).sum())
        if told["cut"]:
            longest = rows.texts[int(lengths.argmax())]
            findings.append(
                Finding(
                    level="warning",
                    task=name,
                    what="long",
                    said=f"{told['cut']} of {len(lengths)} training rows have more than "
                    f"{model.max_length} tokens and are cut; the longest ({lengths.max()}) begins "
                    f"'{longest[:40]}'",
                    remedy="raise model.max_length, or shorten them",
                )
            )
    return findings
