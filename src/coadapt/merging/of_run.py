"""LoRAHub on a finished run: a run like it in which one task is served by a composition."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coadapt._environment import describe_environment
from coadapt._errors import InputError
from coadapt._files import write_json
from coadapt._seeds import named_seed
from coadapt.config import to_plain
from coadapt.exporting.peft_format import rank_of, write_lora
from coadapt.loading import Loader
from coadapt.lora_hub import LoraHub
from coadapt.merging.hub import borrowing, put, search_for_task, training_items
from coadapt.runs import ADAPTER, RESULT, Run, load_run, write_config
from coadapt.saving import save_adapter
from coadapt.tasks import Task


def compose_run(
    run: Run,
    task: str | Task,
    output: str | Path,
    *,
    hub: LoraHub | None = None,
    seed: int | None = None,
    loader: Loader | None = None,
) -> Run:
    """Write a run in which a task is served by a composition of the run's adapters.

    A task of the run gets it in place of what its own block learned, and keeps its head. A new task
    is added with it, which needs a language model: an encoder's new head would be untrained. The
    other tasks' outputs stay. What the search found is in ``result.json`` under ``composition``.

    Args:
        run: a finished run of recipe ``private``.
        task: its name, or a task that is not in the run; examples are drawn from its training rows.
        output: the new run's folder.
        hub: what to search, see :func:`search_for_task`.
        seed: of the search; the run's if None.
        loader: keeps tokenizers and rows that several calls share.

    Raises:
        InputError: see :func:`search_for_task`; or if the folder is not new, or a new task has the
            name of an old one.
    """
    hub, loader, output = hub or LoraHub(), loader or Loader(), Path(output)
    seed = run.config.seed if seed is None else seed
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already; choose another output")
    if isinstance(task, Task) and task.name in run.suite.names:
        raise InputError(f"the run has a task '{task.name}'; give its name, or rename the new one")
    new = isinstance(task, Task)
    suite = replace(run.suite, tasks=(*run.suite.tasks, task)).resolved() if new else run.suite
    task = suite.task(task.name if isinstance(task, Task) else task)
    headed = not run.model.is_language_model
    items = training_items(loader, run.config.model, suite, task.name, headed=headed)
    collate = loader.collator(run.config.model)
    found = search_for_task(run.model, task.name, items, collate, hub=hub, seed=seed)
    plain = {"hub": to_plain(hub), "seed": seed, **found.to_plain()}
    if not new:
        with borrowing(run.model, task.name):
            put(run.model, task.name, found.factors)
            _write_run(run, output, plain)
        return load_run(output, loader=loader)
    with TemporaryDirectory() as folder:
        write_lora(
            Path(folder),
            {name: (A.cpu(), B.cpu()) for name, (A, B) in found.factors.items()},
            rank_of(found.factors),
            base=run.config.model.name,
            backbone=run.model.backbone,
            kind=run.model.kind,
        )
        derived = run.add_task(task, output, adapter=folder)
    write_json(output / RESULT, {**derived.result, "composition": plain})
    return derived


def _write_run(run: Run, output: Path, composition: dict[str, Any]) -> None:
    """Write the run's model as it is now; its hash is that of no trained run."""
    config_hash = run.config.hash(run.suite)
    composed = named_seed(0, config_hash, json.dumps(composition, sort_keys=True))
    told = {
        **run.result["run"],
        "config_hash": f"{composed:016x}",
        "derived": f"task '{composition['task']}' composed of adapters of {run.path}",
    }
    output.mkdir(parents=True, exist_ok=True)
    save_adapter(run.model, output / ADAPTER)
    result = {"run": told, "train": None, "metrics": {}, "environment": describe_environment()}
    write_json(output / RESULT, {**result, "composition": composition})
    write_config(output, run.config, run.suite)
