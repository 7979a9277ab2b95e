"""PEFT adapters that are there already as one run: a block a task."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from coadapt._environment import describe_command, describe_environment
from coadapt._errors import InputError
from coadapt._files import load_tensors, write_json
from coadapt.backbone import ModelConfig, encoder_prefix
from coadapt.config import parse
from coadapt.exporting.peft_format import TENSORS_FILE
from coadapt.importing import PeftAdapter, block_of, fitting, head_of, read_peft_adapter
from coadapt.inits import Start
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Block, Plan
from coadapt.recipe import Recipe
from coadapt.runs import ADAPTER, RESULT, Run, load_run, new_folder, write_config
from coadapt.saving import save_adapter
from coadapt.settings import RunConfig
from coadapt.structures import Bank
from coadapt.tasks import Task, TaskSuite

# Under which PEFT keeps the classifier of a stock model beside the factors.
_HEADS = ("classifier", "score")


def import_adapters(
    folders: Mapping[str, str | Path], suite: TaskSuite, model: Any, output: str | Path
) -> Run:
    """Make a run in which each task goes through one PEFT LoRA, exactly as PEFT runs it.

    Ranks may differ; scales, rsLoRA's too, are folded in. An encoder's task takes the linear
    classifier that was saved beside the factors as its head.

    Args:
        folders: by task the PEFT folder; several tasks may name one.
        suite: the tasks, to predict and to score.
        model: the base model, as for :func:`coadapt.train`.
        output: the run's folder, a new one.

    Raises:
        InputError: if a task has no adapter or an adapter no task; an adapter is no plain LoRA of
            this model; or an encoder's task has no linear classifier beside its factors.
    """
    if set(folders) != set(suite.names):
        raise InputError(
            f"adapters are given for {', '.join(folders)}, the suite's tasks are "
            f"{', '.join(suite.names)}; give TASK=FOLDER for each, and --tasks for some of them"
        )
    target = new_folder(output)
    paths = {task: Path(folder) for task, folder in folders.items()}
    found = {
        path: read_peft_adapter(path, factors_only=True) for path in dict.fromkeys(paths.values())
    }
    config = _config(paths, found, model)
    built = build_model(
        config.model, suite.tasks, config.recipe, config.plan,
        loader=Loader(), start=Start(fills=False),
    )  # fmt: skip
    assert config.plan is not None
    tensors: dict[str, Tensor] = {}
    known = built.state_tensors().keys()
    for path, block in zip(found, config.plan.blocks, strict=True):
        factors = fitting(found[path], built, str(path))
        mine = block_of(built, block, factors, config.plan.blocks[block].rank)
        tensors |= {name: tensor for name, tensor in mine.items() if name in known}
    for task in suite.tasks:
        if not built.is_language_model:
            tensors |= _head(paths[task.name], built, task)
    built.load_state_tensors(tensors, "the adapters")
    return _write(built, config, suite, target, paths)


def _config(paths: Mapping[str, Path], found: Mapping[Path, PeftAdapter], model: Any) -> RunConfig:
    plain = dict(model) if isinstance(model, Mapping) else {"name": str(model)}
    blocks = {}
    for path, adapter in found.items():
        tasks = tuple(task for task, folder in paths.items() if folder == path)
        blocks[tasks[0] if len(tasks) == 1 else path.name] = Block(rank=adapter.r, tasks=tasks)
    base = parse(ModelConfig, plain, "model")
    if "target_modules" not in plain:
        prefix = encoder_prefix(base)
        modules = {name.removeprefix(prefix) for one in found.values() for name in one.factors}
        base = replace(base, target_modules=tuple(sorted(modules)))
    recipe = Recipe(structure=Bank(scale=1.0), sharing="private")
    return RunConfig(model=base, recipe=recipe, plan=Plan(blocks=blocks))


def _head(path: Path, model: MultiTaskModel, task: Task) -> dict[str, Tensor]:
    tensors = load_tensors(path / TENSORS_FILE)
    for name in _HEADS:
        for start in (f"base_model.model.{name}", f"base_model.model.{name}.modules_to_save"):
            if f"{start}.weight" in tensors:
                weight = tensors[f"{start}.weight"]
                bias = tensors.get(f"{start}.bias", weight.new_zeros(len(weight)))
                head = {"weight": weight, "bias": bias}
                return head_of(head, model, task, f"{path / TENSORS_FILE}, {name}")
    raise InputError(
        f"{path}: no linear classifier was saved beside the factors "
        f"({' or '.join(_HEADS)}.weight), so task '{task.name}' has no head; export it with its "
        "head, or train one: coadapt adapt"
    )


def _write(
    model: MultiTaskModel,
    config: RunConfig,
    suite: TaskSuite,
    output: Path,
    paths: Mapping[str, Path],
) -> Run:
    output.mkdir(parents=True, exist_ok=True)
    save_adapter(model, output / ADAPTER)
    run = {
        "command": describe_command(),
        "config_hash": f"{config.hash(suite)}-imported",
        "recipe": None,
        "seed": config.seed,
        "status": "finished",
        "error": None,
        "derived": "imported from " + ", ".join(f"{task}={path}" for task, path in paths.items()),
    }
    result = {"run": run, "train": None, "metrics": {}, "environment": describe_environment()}
    write_json(output / RESULT, result)
    write_config(output, config, suite)
    return load_run(output)
