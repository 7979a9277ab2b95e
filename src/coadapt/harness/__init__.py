"""lm-evaluation-harness: its tasks scored by a run, each by the blocks that serve it."""

from coadapt.harness.scores import (
    HarnessScores,
    HarnessValue,
    choose_services,
    evaluate_harness,
    score_run,
)
from coadapt.harness.tasks import HarnessTask, load_harness_tasks, require_lm_eval

__all__ = [
    "HarnessScores",
    "HarnessTask",
    "HarnessValue",
    "choose_services",
    "evaluate_harness",
    "load_harness_tasks",
    "require_lm_eval",
    "score_run",
]
