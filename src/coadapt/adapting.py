"""A new task on a finished run: only what is the task's own is learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._files import MANIFEST, sha256, write_json
from coadapt.config import to_plain
from coadapt.fitting import fit
from coadapt.loading import Loader
from coadapt.runs import ADAPTER, RESULT, Run, load_run
from coadapt.settings import resolve
from coadapt.tasks import TaskSuite, load_suite
from coadapt.transfer import Form, Learn, form_of

# A new task has few rows: a number of steps rather than of epochs.
ADAPT_TRAINING: dict[str, Any] = {
    "max_steps": 200,
    "per_device_train_batch_size": 16,
    "save_strategy": "no",
}
_KEPT = ("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm")


def adapt(
    run: str | Path | Run,
    task: str | Path | dict[str, Any] | TaskSuite,
    *,
    output: str | Path,
    shots: int | None = None,
    learn: Learn | None = None,
    by: str = "mean",
    rank: int | None = None,
    training: dict[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Run:
    r"""Adapt a finished run to a task that it was not trained on; the run stays as it is.

    Only what is the new task's own is trained, and its head if the model is an encoder:

    - ``fast``, the default for prompts: its u and v, with :math:`\theta_0`, B and the gates (or the
      common prompt of multitask prompt tuning) of the run;
    - ``all``: the gates too;
    - ``block``, the default for LoRAs: a new block beside the run's blocks;
    - ``gates``: a number a block and layer, how much of each of the run's blocks is taken.

    What is learned starts from the trained tasks: u and v at their mean, the run's blocks in shares
    that ``by`` gives. A block that is new starts at zero, behind the run's scale.

    Args:
        run: a finished run, of task prompts, or of LoRAs that fold.
        task: a suite of one task: a file, a ready suite's name, plain data, or a TaskSuite.
        output: the new run's folder.
        shots: training rows, of each class in a classification; all if None.
        learn: see above.
        by: ``mean`` over the trained tasks, ``shared`` (only what serves all of them) or
            ``task:NAME``.
        rank: of the new block, 4 if None.
        training: for ``transformers.TrainingArguments``; by default 200 steps of 16 rows at the
            rate of the run.
        seed: of head, block, order and dropout.
        resume: go on with the run in ``output``.

    Returns:
        A run of the new task alone, which needs nothing of the first one.

    Raises:
        InputError: if the run has no such form, its base model is not there or another one, or
            there are fewer rows than shots.

    Example:
        ``coadapt.adapt("runs/a", "new.yaml", shots=16, output="runs/new").evaluate()``
    """
    loader = Loader()
    source = run if isinstance(run, Run) else load_run(run, loader=loader)
    loaded = task if isinstance(task, TaskSuite) else load_suite(task)
    suite = _few(loaded, shots)
    form = form_of(source.model, suite.tasks[0], learn=learn, by=by, rank=rank)
    config = source.config
    data = {
        "model": to_plain(config.model),
        "recipe": to_plain(form.recipe),
        "plan": to_plain(form.plan) if form.plan else None,
        "loss_mean": config.loss_mean,
        "seed": seed,
        "training": _training(config.training, training),
        "adapted_from": sha256(source.path / ADAPTER / MANIFEST),
    }
    resolved = resolve(data, suite, where="adapt()")
    new = fit(resolved, suite, Path(output), resume=resume, loader=loader, prepare=form.put_into)
    write_json(new.path / RESULT, {**new.result, "adapted": _told(source, new, form)})
    return new


def _told(source: Run, new: Run, form: Form) -> dict[str, Any]:
    """Return what the new run says of where it comes from."""
    learned = sum(
        tensor.numel()
        for name, tensor in new.model.attached.tensors().items()
        if name not in form.frozen
    )
    trainable = new.model.num_trainable["heads"]
    return {
        "run": str(source.path),
        "trained_on": list(source.suite.names),
        "values": learned,
        "bytes": 4 * learned,
        "head_values": trainable,
    }


def _few(suite: TaskSuite, shots: int | None) -> TaskSuite:
    """Return a suite of one task with that many training rows.

    Raises:
        InputError: if there are several tasks, or fewer rows.
    """
    if len(suite.tasks) != 1:
        raise InputError(
            f"suite '{suite.name}' has {len(suite.tasks)} tasks ({', '.join(suite.names)}); a run "
            "is adapted to one: choose it with --tasks NAME"
        )
    if shots is None:
        return suite
    if shots < 1:
        raise InputError(
            f"shots is {shots}; give 1 or more. A language model answers without any training: "
            "coadapt evaluate RUN --suite NEW"
        )
    task = suite.tasks[0]
    if task.kind == "classification":
        few = replace(task, num_shots=shots, max_rows=None)
    else:
        few = replace(task, max_rows=shots)
    found = replace(suite, tasks=(few,))
    rows = len(found.rows(task.name, "train"))
    if task.kind != "classification" and rows < shots:
        raise InputError(
            f"task '{task.name}': shots is {shots}, but there are {rows} training rows; lower it"
        )
    return found


def _training(of_run: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    kept = {key: of_run[key] for key in _KEPT if key in of_run}
    given = given or {}
    ours = {k: v for k, v in ADAPT_TRAINING.items() if k != "max_steps" or not _sets_length(given)}
    return {**kept, **ours, **given}


def _sets_length(training: dict[str, Any]) -> bool:
    return "num_train_epochs" in training or "max_steps" in training
