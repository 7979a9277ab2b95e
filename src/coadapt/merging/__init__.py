"""Composing and merging trained adapters."""

from coadapt.lora_hub import Form, LoraHub
from coadapt.merge_methods import Merge
from coadapt.merging.combining import Merged, merge_folds
from coadapt.merging.composing import (
    Composed,
    check_composable,
    compose_deltas,
    compose_factors,
)
from coadapt.merging.hub import Composition, compose_every_task, put, search_for_task
from coadapt.merging.of_adapters import merge_adapters
from coadapt.merging.of_run import compose_run
from coadapt.merging.of_runs import MergedRun, merge_every_task, merge_runs
from coadapt.merging.searching import Found, minimize

__all__ = [
    "Composed",
    "Composition",
    "Form",
    "Found",
    "LoraHub",
    "Merge",
    "Merged",
    "MergedRun",
    "check_composable",
    "compose_deltas",
    "compose_every_task",
    "compose_factors",
    "compose_run",
    "merge_adapters",
    "merge_every_task",
    "merge_folds",
    "merge_runs",
    "minimize",
    "put",
    "search_for_task",
]
