"""Training a run from its configuration, and resuming it after whatever stopped it."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments

from coadapt._environment import describe_command, describe_environment, peak_memory_mib
from coadapt._errors import InputError
from coadapt._files import read_json, write_json, write_text
from coadapt.arguments import training_arguments
from coadapt.backbone import ModelConfig
from coadapt.checkpoints import STATE, check_checkpoint, last_checkpoint
from coadapt.config import changed_keys, to_plain
from coadapt.evaluation import TaskScores, evaluate_model
from coadapt.loading import Loader
from coadapt.merging.after_training import after_training, check_compose
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.runs import (
    ADAPTER,
    CONFIG,
    PLAN,
    RESULT,
    Run,
    read_config,
    read_status,
    write_config,
)
from coadapt.saving import save_adapter
from coadapt.settings import RunConfig, merge_for_api, resolve
from coadapt.starting import Prepared, prepare_start, write_start
from coadapt.tasks import TaskSuite, load_suite
from coadapt.tasks.render import TaskDataset
from coadapt.training import METRICS_FILE, MultiTaskTrainer

logger = logging.getLogger(__name__)


def train(
    model: str | dict[str, Any] | ModelConfig,
    suite: str | Path | dict[str, Any] | TaskSuite,
    recipe: str | dict[str, Any] | Recipe = "lora",
    *,
    output: str | Path,
    plan: str | Path | dict[str, Any] | Plan | None = None,
    budget: int | None = None,
    training: dict[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    statistics: str | Path | None = None,
    **options: Any,
) -> Run:
    """Adapt one model to the tasks of a suite.

    Args:
        model: a hub id, a folder, an asset such as ``asset:minilm``, or a ModelConfig.
        suite: a suite file, a ready suite's name, plain data, or a TaskSuite.
        recipe: a name that ``coadapt methods`` lists, or a Recipe.
        output: the run's folder; must be new unless ``resume``.
        plan: who shares: a Plan, its file or its plain data; made from ``budget`` if None.
        budget: the summed rank, 8 if None.
        training: for ``transformers.TrainingArguments``.
        seed: of adapters, heads, order and dropout.
        resume: go on from the last whole checkpoint of the same configuration.
        statistics: a folder for what an init with statistics gathers, for other runs to take; in
            the run's folder, and removed at its end, if None.
        options: the other fields of :class:`coadapt.settings.RunConfig`, such as ``batches``.

    Raises:
        InputError: if the configuration, the data or the folder cannot be used.
        TrainingDiverged: if a loss or weight stops being finite; checkpoints are kept.

    Example:
        ``run = coadapt.train("asset:minilm", "demo", recipe="lora", output="runs/a")``
    """
    loaded = suite if isinstance(suite, TaskSuite) else load_suite(suite)
    data = merge_for_api(
        model, recipe, plan, budget=budget, training=training, seed=seed, **options
    )
    config = resolve(data, loaded, where="train()")
    return fit(config, loaded, Path(output), resume=resume, statistics=statistics)


def fit(
    config: RunConfig,
    suite: TaskSuite,
    output: Path,
    *,
    resume: bool = False,
    loader: Loader | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    statistics: str | Path | None = None,
    prepare: Callable[[MultiTaskModel], None] | None = None,
) -> Run:
    """Train the run that ``config`` describes in ``output``, see :func:`train`.

    Args:
        config: what to train.
        suite: on which tasks.
        output: the run's folder.
        resume: go on with the run in it.
        loader: keeps what several runs share.
        callbacks: told of the training's course, besides our own.
        statistics: see :func:`train`.
        prepare: is given the fresh model, to put into it what is trained already.
    """
    loader = loader or Loader()
    args = training_arguments(config, suite, output)
    state = PartialState()  # as the arguments have set it up
    config_hash = config.hash(suite)
    if state.is_main_process:
        _refuse_other(output, config, suite, resume=resume)
    if resume and (output / ADAPTER).is_dir() and read_status(output) == "finished":
        logger.info("run %s has finished already", output)
        return Run(output, config, suite, loader=loader)
    # What is wrong with the configuration or the data shows here, before anything is written.
    folder = statistics or output / "tmp-statistics"  # which goes when the run has finished
    prepared = prepare_start(config, suite, folder, loader, quiet=bool(args.disable_tqdm))
    model = _build_model(config, suite, prepared, loader)
    if prepare is not None:
        prepare(model)
    trainer = _build_trainer(model, config, suite, args, config_hash, loader)
    for callback in callbacks:
        trainer.add_callback(callback)
    checkpoint = last_checkpoint(output) if resume else None
    if checkpoint is not None:
        _check_same(checkpoint, config_hash)
        logger.info("resuming from %s", checkpoint)
    state.wait_for_everyone()
    if state.is_main_process:
        _claim(output, config, suite)
    with _marked(output, config, config_hash, main=state.is_main_process):
        if state.is_main_process:
            _cut_log(output, checkpoint)
        state.wait_for_everyone()
        began = time.perf_counter()
        # Without anything to train it is the base model as it is, to compare with.
        if any(parameter.requires_grad for parameter in trainer.multi.parameters()):
            trainer.go_on(checkpoint)
        model, told = after_training(trainer.multi, config, suite, loader)
        if state.is_main_process:
            trainer.refuse_bad_weights()
            save_adapter(model, output / ADAPTER)
            _finish(output, trainer, time.perf_counter() - began, told)
            write_start(output, config, model.plan, prepared)
        state.wait_for_everyone()
    return Run(output, config, suite, model, loader)


def _build_model(
    config: RunConfig, suite: TaskSuite, prepared: Prepared, loader: Loader
) -> MultiTaskModel:
    return build_model(
        config.model,
        suite.tasks,
        prepared.recipe,
        prepared.plan,
        loss_mean=config.loss_mean,
        seed=config.seed,
        loader=loader,
        start=prepared.start,
    )


def _build_trainer(
    model: MultiTaskModel,
    config: RunConfig,
    suite: TaskSuite,
    args: TrainingArguments,
    config_hash: str,
    loader: Loader,
) -> MultiTaskTrainer:
    check_compose(model, config, suite)
    return MultiTaskTrainer(
        model,
        args,
        dataset=TaskDataset(
            [loader.encoded(config.model, suite, task, "train") for task in suite.names],
            None
            if model.is_language_model
            else [suite.rows(task, "train").labels for task in suite.names],
        ),
        collate=loader.collator(config.model, packed=config.packing),
        mixing=config.mixing,
        composition=config.batches,
        bucket=config.bucket,
        score=_scorer(model, config, suite, loader) if args.eval_strategy != "no" else None,
        config_hash=config_hash,
    )


def _scorer(
    model: MultiTaskModel, config: RunConfig, suite: TaskSuite, loader: Loader
) -> Callable[[], dict[str, TaskScores]]:
    """Return what scores the validation rows while the model trains."""
    labels = {task: suite.rows(task, "validation").labels for task in suite.names}
    for task, found in labels.items():
        if not len(found):
            raise InputError(f"task '{task}' has no validation rows to choose a checkpoint by")
    encoded = {task: loader.encoded(config.model, suite, task, "validation") for task in labels}
    collate, tokenizer = loader.collator(config.model), loader.tokenizer(config.model)

    def score() -> dict[str, TaskScores]:
        return evaluate_model(model, collate, encoded, labels, tokenizer=tokenizer, num_resamples=0)

    return score


def _refuse_other(output: Path, config: RunConfig, suite: TaskSuite, *, resume: bool) -> None:
    """Refuse a folder that this run may not write in."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; choose another output")
    if not (output / CONFIG).is_file():
        if output.is_dir() and any(not p.name.startswith((".", "tmp-")) for p in output.iterdir()):
            raise InputError(f"{output} is not empty and no run; choose another output")
        return
    if not resume:
        raise InputError(
            f"{output} holds another run; choose another output, or go on with it (--resume)"
        )
    there, there_suite = read_config(output)
    if there.hash(there_suite) == config.hash(suite):
        return
    old = {**to_plain(there), "suite": there_suite.to_plain()}
    new = {**to_plain(config), "suite": suite.to_plain()}
    changed = [name for key in new for name in changed_keys(key, old.get(key), new[key])]
    raise InputError(
        f"{output} was started with another configuration (changed: {', '.join(changed)}); "
        f"resume with the same one ({output / CONFIG}) or choose another output"
    )


def _claim(output: Path, config: RunConfig, suite: TaskSuite) -> None:
    """Make the folder a run's, if it is not yet; one with a configuration is a run."""
    output.mkdir(parents=True, exist_ok=True)
    if not ((output / CONFIG).is_file() and (output / PLAN).is_file()):
        write_config(output, config, suite)


def _check_same(checkpoint: Path, config_hash: str) -> None:
    check_checkpoint(checkpoint)
    if read_json(checkpoint / STATE)["config_hash"] != config_hash:
        raise InputError(f"{checkpoint} is of another configuration; remove it or start anew")


@contextmanager
def _marked(output: Path, config: RunConfig, config_hash: str, *, main: bool) -> Iterator[None]:
    """Keep result.json's status true: running, failed or cancelled."""
    run: dict[str, Any] = {
        "command": describe_command(),
        "config_hash": config_hash,
        "recipe": config.recipe_name,
        "seed": config.seed,
        "status": "running",
        "error": None,
    }
    result = {"run": run, "train": None, "metrics": {}, "environment": describe_environment()}
    if main:
        write_json(output / RESULT, result)
    try:
        yield
    except BaseException as error:
        run["status"] = "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"
        run["error"] = f"{type(error).__name__}: {error}"
        if main:
            write_json(output / RESULT, result)
        raise


def _cut_log(output: Path, checkpoint: Path | None) -> None:
    """Drop the log's lines after the checkpoint: they will be written again."""
    path = output / METRICS_FILE
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else -1
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in lines if _step_of(line) <= step]
    write_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:  # a kill cut the line short
        return float("inf")


def _finish(output: Path, trainer: MultiTaskTrainer, seconds: float, told: dict[str, Any]) -> None:
    model: MultiTaskModel = trainer.multi
    result = read_json(output / RESULT)
    result["run"]["status"] = "finished"
    result["train"] = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "tokens": trainer.tokens_seen,
        "seconds": seconds,
        "peak_memory_mib": peak_memory_mib(),
        "trainable": model.num_trainable,
        "updates": trainer.updates,
        "rows_an_epoch": trainer.sampler.counts(),
        "padding": trainer.sampler.padding_share(),
        "cut": dict(zip(model.task_names, trainer.dataset.cut, strict=True)),
        "best_checkpoint": Path(best).name
        if (best := trainer.state.best_model_checkpoint)
        else None,
    }
    write_json(output / RESULT, {**result, **told})
    for folder in output.glob("tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)
