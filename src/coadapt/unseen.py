"""Scoring a run on tasks that it was not trained on, and which blocks serve them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from coadapt._errors import InputError, nearest
from coadapt.evaluation import TaskScores, score_tasks
from coadapt.language import answer_rows
from coadapt.loading import Loader, encode_rows
from coadapt.model import MultiTaskModel
from coadapt.modes import answering
from coadapt.tasks import Rows, TaskSuite
from coadapt.tasks.pictures import pixel_inputs
from coadapt.tasks.render import stack
from coadapt.tasks.split import text_key

logger = logging.getLogger(__name__)

RULES = ("shared", "mean", "nearest", "task:NAME")
_PROBE_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Service:
    """Which blocks serve an unseen task.

    Args:
        like: the trained task whose blocks serve it; None where a mixture of blocks does.
        gates: (K,) the value of each block's gate; None where the task's own gates hold.
        told: the same in words.
    """

    like: str | None
    gates: tuple[float, ...] | None
    told: str


@dataclass(frozen=True, kw_only=True)
class UnseenScores:
    """What a run scored on a suite that it was not trained on.

    Args:
        rule: which blocks served, see :func:`serve`.
        services: what that meant for each task.
        tasks: the scores.
        predicted: what was predicted, row by row.
        labels: what is true.
    """

    rule: str
    services: dict[str, Service]
    tasks: dict[str, TaskScores]
    predicted: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    @property
    def served(self) -> dict[str, str]:
        """Which blocks served each task, in words."""
        return {task: service.told for task, service in self.services.items()}


def evaluate_unseen(
    model: MultiTaskModel,
    loader: Loader,
    trained: TaskSuite,
    suite: TaskSuite,
    *,
    rule: str | None = None,
    split: str = "test",
    num_resamples: int = 1000,
    seed: int = 0,
) -> UnseenScores:
    """Score a language model's run on another suite.

    Args:
        model: the trained model.
        loader: has its tokenizer.
        trained: the suite it was trained on.
        suite: the other one.
        rule: which blocks serve a task, see :func:`serve`.
        split: of the other suite.
        num_resamples: of the rows, for the intervals.
        seed: of resamples and of what is drawn.

    Raises:
        InputError: if the model has heads, which a task without training lacks; if the rule does
            not fit; or if there are no rows.
    """
    if not model.is_language_model:
        raise InputError(
            f"'{model.model_config.name}' scores by a head a task, and a task that it was not "
            "trained on has none; unseen tasks need a language model"
        )
    _check_rule(rule, model.task_names)
    rows = {task: suite.rows(task, split) for task in suite.names}
    for name, found in rows.items():
        if not len(found):
            raise InputError(f"task '{name}' of suite '{suite.name}' has no {split} rows to score")
    _warn_of_trained(trained, rows)
    tokenizer = loader.tokenizer(model.model_config)
    predicted: dict[str, np.ndarray] = {}
    services: dict[str, Service] = {}
    for task in suite.tasks:
        items = encode_rows(tokenizer, model.model_config, model.kind, task, rows[task.name])
        service = services[task.name] = serve(model, loader, trained, items, rule)
        with model.route.fixing(service.gates):
            predicted[task.name] = answer_rows(
                model,
                tokenizer,
                items,
                task,
                served_as=service.like or model.task_names[0],
                seed=seed,
            )
    labels = {name: found.labels for name, found in rows.items()}
    return UnseenScores(
        rule=rule or "shared",
        services=services,
        tasks=score_tasks(suite.tasks, labels, predicted, num_resamples=num_resamples, seed=seed),
        predicted=predicted,
        labels=labels,
    )


def serve(
    model: MultiTaskModel,
    loader: Loader,
    trained: TaskSuite,
    items: Sequence[Mapping[str, Any]],
    rule: str | None,
) -> Service:
    """Decide which blocks serve a task that the model was not trained on.

    Where all rows go through the same blocks, or one task was trained, there is nothing to decide.
    Else, by ``rule``:

    - ``shared``: the blocks that serve every trained task, and no others;
    - ``mean``: every block, at the mean of the gates of the trained tasks (an averaged adapter);
    - ``nearest``: the blocks of the trained task whose prompts are nearest, by the cosine of the
      base model's mean hidden states, each task's over at most 64 prompts, less their mean over
      the trained tasks;
    - ``task:NAME``: the blocks of that task.

    Without a rule ``shared`` is taken.

    Raises:
        InputError: for another rule, or ``shared`` where no block serves every task.
    """
    attached, names = model.attached, model.task_names
    _check_rule(rule, names)
    if model.recipe.structure.depends_on != "task" or len(names) == 1:
        return Service(like=names[0], gates=None, told="the blocks that serve every row")
    if rule in (None, "shared") and attached.prompts:
        off = (0.0,) * len(attached.blocks)
        return Service(like=None, gates=off, told="the prompt that all tasks share")
    if rule is None or rule == "shared":
        common = [len(owners) == len(names) for owners in attached.owners]
        if not any(common):
            raise InputError(
                "no block serves every trained task, so there is none for a task that is new; "
                f"choose with --by: mean, nearest, or task:NAME of {', '.join(names)}"
            )
        shared = [name for name, whole in zip(attached.blocks, common, strict=True) if whole]
        gates = tuple(float(whole) for whole in common)
        return Service(like=None, gates=gates, told=f"the shared block {', '.join(shared)}")
    if rule == "mean":
        uses = [[t in owners for owners in attached.owners] for t in range(len(names))]
        gates = tuple(float(value) for value in np.mean(uses, axis=0))
        return Service(like=None, gates=gates, told="the mean of the trained tasks' adapters")
    if rule == "nearest":
        like, cosine = _nearest(model, loader, trained, items)
        return Service(like=like, gates=None, told=f"the blocks of {like} (cosine {cosine:.2f})")
    name = rule.removeprefix("task:")
    return Service(like=name, gates=None, told=f"the blocks of {name}")


def _check_rule(rule: str | None, names: Sequence[str]) -> None:
    """Refuse a rule that does not exist, also where nothing is to be decided."""
    if rule is None or rule in RULES[:-1]:
        return
    kind, _, name = rule.partition(":")
    if kind != "task" or name not in names:
        hint = nearest(name, names) if kind == "task" else f"; known: {', '.join(RULES)}"
        raise InputError(f"no rule '{rule}' for unseen tasks{hint}")


def _nearest(
    model: MultiTaskModel, loader: Loader, trained: TaskSuite, items: Sequence[Mapping[str, Any]]
) -> tuple[str, float]:
    """Return the trained task with the nearest prompts, and the cosine."""
    probes = {
        name: _probe(model, loader.encoded(model.model_config, trained, name, "train"))
        for name in model.task_names
    }
    center = np.mean(list(probes.values()), axis=0)
    mine = _probe(model, items) - center
    cosines = {
        name: float(mine @ (p - center) / (np.linalg.norm(mine) * np.linalg.norm(p - center)))
        for name, p in probes.items()
    }
    best = max(cosines, key=cosines.__getitem__)
    return best, cosines[best]


@torch.no_grad()
def _probe(model: MultiTaskModel, items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return (d,) the mean over prompts of the base model's mean last hidden state."""
    chosen = [items[i] for i in np.linspace(0, len(items) - 1, _PROBE_ROWS).astype(int)]
    total = np.zeros(model.backbone.config.get_text_config().hidden_size)
    encoder: Any = model.backbone
    encoder = encoder.get_encoder() if model.kind == "encoder-decoder" else encoder.base_model
    with answering(model), model.route.without_adapters():
        for item in chosen:
            ids = stack([item["prompt"]], 0).to(model.device)
            model.route.set(torch.zeros(1, dtype=torch.long, device=model.device))
            seen = {key: value.to(model.device) for key, value in pixel_inputs([item]).items()}
            output = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), **seen)
            hidden = output.last_hidden_state
            total += hidden[0].double().mean(dim=0).cpu().numpy()
    return total / len(chosen)


def _warn_of_trained(trained: TaskSuite, rows: Mapping[str, Rows]) -> None:
    """Say how many of the prompts the model was trained on: those are not unseen."""
    try:
        known = {key for name in trained.names for key in _keys(trained.rows(name, "train"))}
    except InputError as error:
        logger.warning("whether the model was trained on these texts is not known: %s", error)
        return
    for name, found in rows.items():
        seen = sum(key in known for key in _keys(found))
        if seen:
            logger.warning(
                "task '%s': the model was trained on %d of these %d texts", name, seen, len(found)
            )


def _keys(rows: Rows) -> list[bytes]:
    """Return what tells rows' texts apart, as in the splits."""
    pairs = rows.pairs or [None] * len(rows)
    texts = zip(rows.texts, pairs, strict=True)
    return [text_key([text] if pair is None else [text, pair]) for text, pair in texts]
