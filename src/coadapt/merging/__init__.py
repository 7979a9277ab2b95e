"""Composing and merging trained adapters."""

from coadapt.lora_hub import Form, LoraHub
from coadapt.merging.composing import (
    Composed,
    check_composable,
    compose_deltas,
    compose_factors,
)
from coadapt.merging.hub import Composition, compose_every_task, put, search_for_task
from coadapt.merging.of_run import compose_run
from coadapt.merging.searching import Found, minimize

__all__ = [
    "Composed",
    "Composition",
    "Form",
    "Found",
    "LoraHub",
    "check_composable",
    "compose_deltas",
    "compose_every_task",
    "compose_factors",
    "compose_run",
    "minimize",
    "put",
    "search_for_task",
]
