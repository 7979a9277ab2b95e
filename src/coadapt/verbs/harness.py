"""What `coadapt evaluate --lm-eval` reads and prints."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from coadapt.verbs.common import names

if TYPE_CHECKING:
    from coadapt.evaluation import TaskScores
    from coadapt.harness import HarnessScores, HarnessTask
    from coadapt.runs import Run
    from coadapt.tasks import TaskSuite
    from coadapt.unseen import Service


def harness_tasks(
    asked: str | None, folder: Path | None, suite: "TaskSuite"
) -> "tuple[HarnessTask, ...]":
    """Load tasks of the harness, before anything is scored."""
    if asked is None:
        return ()
    from coadapt.harness import load_harness_tasks

    return load_harness_tasks(names(asked) or (), folder, suite.names)


def serving_blocks(
    run: "Run",
    harness: "Sequence[HarnessTask]",
    rule: str | None,
    services: "Mapping[str, Service] | None" = None,
) -> "tuple[Service, ...]":
    """Decide which blocks serve tasks of the harness, if there are any."""
    if not harness:
        return ()
    from coadapt.harness import choose_services

    return choose_services(run, harness, rule, services)


def harness_table(reported: "dict[str, HarnessScores]", scores: "dict[str, TaskScores]") -> Table:
    """Return what lm-evaluation-harness reports, our scores of the same tasks beside it."""
    versions = ", ".join(sorted({found.lm_eval for found in reported.values()}))
    columns = ("task", "served by", "rows", "metric", "score", "stderr", "ours")
    table = Table(*columns, title=f"lm-evaluation-harness {versions}")
    for name, found in reported.items():
        first = (name, found.served, "" if found.num_rows is None else str(found.num_rows))
        theirs = [
            (key, f"{metric.value:.3f}", "" if metric.stderr is None else f"{metric.stderr:.3f}")
            for key, metric in found.metrics.items()
        ]
        mine = scores[found.task].metrics if found.task else {}
        ours = [f"{key} {score.value:.3f}" for key, score in mine.items()]
        for row, own in zip_longest(theirs, ours):
            table.add_row(*first, *(row or ("", "", "")), own or "")
            first = ("", "", "")
    return table
