"""Scores by lm-evaluation-harness: its texts and metrics, the blocks of one of our models."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from coadapt._errors import InputError
from coadapt._files import write_json
from coadapt._seeds import named_seed
from coadapt.harness.tasks import HarnessTask, brief
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel
from coadapt.modes import answering
from coadapt.runs import RESULT, Run
from coadapt.unseen import Service, serve

# Where a forward of a decoder, an encoder or an encoder-decoder's decoder has its rows.
_WITH_ROWS = ("input_ids", "inputs_embeds", "decoder_input_ids")


@dataclass(frozen=True, kw_only=True)
class HarnessValue:
    """A metric as the harness reports it.

    Args:
        value: in the metric's own unit.
        stderr: the harness's standard error; None where it gives none.
    """

    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class HarnessScores:
    """What the harness reports of one of its tasks or groups.

    Args:
        task: the task of ours that it is the same as, if it was said to be.
        served: which blocks served it, in words.
        num_rows: how many rows were scored; None of a group.
        num_fewshot: examples shown before each row; None of a group.
        task_version: the harness's version of the task; None where it states none.
        lm_eval: the harness's own version.
        metrics: by its name, with ``,FILTER`` where the answers went through a filter.
    """

    task: str | None
    served: str
    num_rows: int | None
    num_fewshot: int | None
    task_version: str | None
    lm_eval: str
    metrics: dict[str, HarnessValue]


def choose_services(
    run: Run,
    tasks: Sequence[HarnessTask],
    rule: str | None = None,
    services: Mapping[str, Service] | None = None,
) -> tuple[Service, ...]:
    """Decide which blocks serve each task of the harness.

    Args:
        run: of a language model.
        tasks: of :func:`coadapt.harness.load_harness_tasks`.
        rule: for those that are the same as no task of ours, see :func:`coadapt.unseen.serve`.
        services: which blocks serve our tasks, where those are not the tasks of the run.

    Raises:
        InputError: if the model has heads, or no block can serve a task.
    """
    model = run.model
    if not model.is_language_model:
        raise InputError(
            f"lm-evaluation-harness scores language models, but '{run.config.model.name}' answers "
            "by a head a task"
        )
    if model.kind == "image-text":
        raise InputError(
            f"lm-evaluation-harness gives '{run.config.model.name}' texts alone here; score its "
            "own suite: coadapt evaluate RUN"
        )
    if services is None:
        services = {
            name: Service(like=name, gates=None, told=f"the blocks of {name}")
            for name in model.task_names
        }
    return tuple(services.get(task.task or "") or _serve_other(run, task, rule) for task in tasks)


def score_run(
    run: Run, tasks: Sequence[HarnessTask], services: Sequence[Service]
) -> dict[str, HarnessScores]:
    """Score tasks of the harness by a run, and add what it reports to ``lm_eval`` of result.json.

    Args:
        run: of a language model.
        tasks: of :func:`coadapt.harness.load_harness_tasks`.
        services: of :func:`choose_services`.
    """
    found = evaluate_harness(run.model, run.tokenizer, tasks, services, seed=run.config.seed)
    result = run.result
    plain = {name: asdict(scores) for name, scores in found.items()}
    result["lm_eval"] = {**result.get("lm_eval", {}), **plain}
    write_json(run.path / RESULT, result)
    return found


def _serve_other(run: Run, task: HarnessTask, rule: str | None) -> Service:
    """Decide which blocks serve a task of the harness that is none of ours."""
    names = ", ".join(run.model.task_names)
    if rule == "nearest":
        raise InputError(
            f"'{task.asked}' is no task of ours, so --by nearest has no prompts to compare; write "
            f"TASK={task.asked} with one of {names}, or choose --by shared, mean or task:NAME"
        )
    try:
        return serve(run.model, Loader(), run.suite, (), rule)
    except InputError as error:
        raise InputError(
            f"which blocks serve '{task.asked}'? write TASK={task.asked} with one of {names}; "
            f"{error}"
        ) from error


def evaluate_harness(
    model: MultiTaskModel,
    tokenizer: Any,
    tasks: Sequence[HarnessTask],
    services: Sequence[Service],
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, HarnessScores]:
    """Score tasks of the harness, each served by blocks of the model, which is loaded once.

    Texts, few-shot examples and metrics are the harness's, and so is what it does with a text that
    is too long for the base model; ``model.max_length`` cuts none. A run with ``model.chat`` gets
    them through the chat template.

    Args:
        model: a language model; its mode is restored.
        tokenizer: its tokenizer.
        tasks: of :func:`load_harness_tasks`.
        services: which blocks serve each, see :func:`coadapt.unseen.serve`.
        batch_size: requests that run at once.
        seed: of few-shot examples and of what is drawn, with the task's name.

    Returns:
        By the harness's names, a group's parts after it.
    """
    from lm_eval.models.huggingface import HFLM

    make: Any = HFLM  # its registration hides what it takes
    with _quiet():
        # It changes the padding token and side of the tokenizer that it gets.
        harness = make(
            pretrained=model.backbone,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
        )
    found: dict[str, HarnessScores] = {}
    for task, service in zip(tasks, services, strict=True):
        with answering(model), _serving(model, service):
            drawn = named_seed(seed, "lm_eval", task.name)
            raw = _run(harness, task, chat=model.model_config.chat, seed=drawn)
        found |= _read(raw, task, service)
    return found


@contextmanager
def _serving(model: MultiTaskModel, service: Service) -> Iterator[None]:
    """Let every forward of the backbone, whatever its rows, go through the service's blocks.

    The harness calls the backbone itself, and an encoder-decoder's ``generate`` its encoder.
    """
    index = model.task_id(service.like or model.task_names[0])

    def set_route(_: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        given = [*args[:1], *(inputs.get(name) for name in _WITH_ROWS)]
        num_rows = next(len(value) for value in given if isinstance(value, torch.Tensor))
        model.route.set(torch.full((num_rows,), index, dtype=torch.long, device=model.device))

    called: list[Any] = [model.backbone]
    if model.kind == "encoder-decoder":
        called.append(model.backbone.get_encoder())
    # First of all hooks: those of learned prompts look at the route.
    hooks = [
        module.register_forward_pre_hook(set_route, prepend=True, with_kwargs=True)
        for module in called
    ]
    try:
        with model.route.fixing(service.gates):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(harness: Any, task: HarnessTask, *, chat: bool, seed: int) -> dict[str, Any]:
    """Return what the harness reports of a task.

    Its ``simple_evaluate`` would do this too, and seed the global random state.
    """
    from jinja2 import TemplateError
    from lm_eval.evaluator import evaluate

    for one in task.loaded["tasks"].values():
        if one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
        one.set_fewshot_seed(seed=seed % 2**31)
    devices = [harness.device] if harness.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            raw = evaluate(
                lm=harness,
                task_dict=task.loaded,
                log_samples=False,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
    # What a task's templates and functions may raise on its rows.
    except (TemplateError, OSError, ValueError, KeyError, TypeError) as error:
        told = f"lm-evaluation-harness cannot score '{task.asked}': {brief(error)}"
        raise InputError(told) from error
    assert raw is not None, "only other ranks get nothing"
    return dict(raw)


def _read(raw: Mapping[str, Any], task: HarnessTask, service: Service) -> dict[str, HarnessScores]:
    """Return the harness's results by its tasks and groups."""
    rows, shots, versions = raw.get("n-samples", {}), raw.get("n-shot", {}), raw["versions"]
    return {
        name: HarnessScores(
            task=task.task if name == task.name else None,
            served=service.told,
            num_rows=rows.get(name, {}).get("effective"),
            num_fewshot=shots.get(name),
            task_version=None if versions.get(name) is None else str(versions[name]),
            lm_eval=version("lm_eval"),
            metrics=_metrics(values),
        )
        for name, values in {**raw.get("groups", {}), **raw["results"]}.items()
    }


def _metrics(values: Mapping[str, Any]) -> dict[str, HarnessValue]:
    """Return ``{metric: value}`` of ``{"acc,none": ..., "acc_stderr,none": ..., "alias": ...}``."""
    found = {}
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        found[metric if filtered == "none" else key] = HarnessValue(
            value=float(value), stderr=float(error) if isinstance(error, int | float) else None
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the harness's warning that a model which it is given is not one that it loads."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
