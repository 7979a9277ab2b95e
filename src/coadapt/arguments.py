"""From a configuration's ``training:`` to what the stock Trainer takes."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from coadapt._errors import InputError, nearest
from coadapt.settings import RunConfig
from coadapt.tasks import TaskSuite

# What a run trains with where its `training:` is silent.
DEFAULT_TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.06,
    "weight_decay": 0.01,
    "logging_steps": 10,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "report_to": "none",
    "ddp_find_unused_parameters": False,
}
# What the extra `trackers` brings.
_TRACKERS = ("tensorboard", "mlflow")


def training_arguments(config: RunConfig, suite: TaskSuite, output: Path) -> TrainingArguments:
    """Hand ``training:`` to transformers, on top of our defaults and below what a run fixes.

    Raises:
        InputError: for a key or value that cannot be used, naming it.
    """
    fixed = {"output_dir": str(output), "seed": config.seed, "remove_unused_columns": False}
    for key, value in fixed.items():
        if key in config.training:
            raise InputError(f"training.{key} is set by the run itself (to {value!r}); drop it")
    _check_training(config.training)
    _refuse_sharding(config.training)
    # Processes launched on a machine without an accelerator find each other only if told.
    defaults = {**DEFAULT_TRAINING, "use_cpu": not torch.accelerator.is_available()}
    if config.best is not None:
        rule = {
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{config.best}",
            "greater_is_better": True,
        }
        for key in rule.keys() & config.training:
            raise InputError(f"training.{key} is what best ('{config.best}') decides; drop one")
        defaults |= {"eval_strategy": "epoch", **rule}
    try:
        args = TrainingArguments(**{**defaults, **config.training, **fixed})
    except (TypeError, ValueError) as error:
        raise InputError(f"training: transformers refuses these arguments: {error}") from error
    if args.n_gpu > 1:  # transformers would wrap the model in DataParallel, which splits the counts
        raise InputError(
            f"{args.n_gpu} accelerators are visible to one process; start one process for each "
            f"(torchrun --nproc_per_node {args.n_gpu} -m coadapt train ...), or make one visible"
        )
    _refuse_unscored(args, suite)
    _refuse_absent_trackers(args)
    return args


def _refuse_sharding(training: Mapping[str, Any]) -> None:
    """Refuse FSDP and DeepSpeed, asked for in `training:` or by `accelerate launch`.

    A block that a step lacks has no gradient, and both keep parameters of many blocks in one; and
    where there is no accelerator, accelerate leaves FSDP out in silence.
    """
    for name, given in (("FSDP", training.get("fsdp")), ("DeepSpeed", training.get("deepspeed"))):
        if given or os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            raise InputError(
                f"{name} is asked for, and coadapt does not train sharded models; launch plain "
                "processes (accelerate launch --multi_gpu --num_processes N -m coadapt train ...)"
            )


def _check_training(training: dict[str, Any]) -> None:
    """Refuse unknown keys, and texts for numbers: transformers says so late or not at all."""
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    hints = get_type_hints(TrainingArguments)
    for key, value in training.items():
        if key not in known:
            near = nearest(key, known)
            hint = near if "did you mean" in near else "; see transformers.TrainingArguments"
            raise InputError(f"unknown key 'training.{key}'{hint}")
        wanted = set(get_args(hints[key]) or (hints[key],))
        if wanted <= {int, float, bool, NoneType} and isinstance(value, (str, list, dict)):
            words = " or ".join(sorted(kind.__name__ for kind in wanted))
            raise InputError(f"training.{key}: found {value!r}; give {words}")


def _refuse_unscored(args: TrainingArguments, suite: TaskSuite) -> None:
    """Refuse a metric to choose by that an evaluation does not give: the Trainer asks late."""
    if args.metric_for_best_model is None:
        return
    scores = ["overall", *suite.names, *(f"{t.name}_{m}" for t in suite.tasks for m in t.metrics)]
    found = args.metric_for_best_model.removeprefix("eval_")
    if found not in scores:
        hint = nearest(found, scores)
        raise InputError(f"training.metric_for_best_model: '{found}' is no score{hint}")


def _refuse_absent_trackers(args: TrainingArguments) -> None:
    """Refuse a tracker that is unknown or not installed: the Trainer asks after loading models."""
    for name in args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            hint = nearest(str(name), list(INTEGRATION_TO_CALLBACK))
            raise InputError(f"training.report_to: '{name}' is no tracker of transformers{hint}")
        if name not in get_available_reporting_integrations():
            extra = (
                'pip install "coadapt[trackers]"' if name in _TRACKERS else "install its package"
            )
            raise InputError(f"training.report_to: '{name}' is not installed: {extra}")
