"""Residual coupling and capacity of a trained run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError
from coadapt._seeds import named_seed
from coadapt.adapters import AbstractSlotted
from coadapt.config import parse, to_plain
from coadapt.diagnosis.capacities import capacity_tables, input_moments, reference_noise
from coadapt.diagnosis.collect import Encoded
from coadapt.diagnosis.coupling import CouplingEstimate
from coadapt.diagnosis.measures import Diagnosis, TableMeasure, TaskMeasure
from coadapt.diagnosis.residuals import (
    Calibrated,
    Judged,
    assumptions,
    calibrate,
    control,
    coupling_by_pair,
    coupling_table,
    shared_coupling,
    teacher_coupling,
)
from coadapt.evaluation import predict_outputs
from coadapt.loading import Loader
from coadapt.runs import Run, load_run
from coadapt.tasks.render import Collator

Array = NDArray[np.float64]

_MAX_CAPACITY_ROWS = 256  # a task, whose tokens the moments are summed over


@dataclass(frozen=True, kw_only=True)
class RunDiagnosisConfig:
    """How a trained run is diagnosed.

    Args:
        split: whose rows its errors are judged on.
        max_pool: rows a task of the pool that teachers label.
        seed: of resamples and permutations.
    """

    split: str = "validation"
    max_pool: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.split not in ("validation", "test"):
            raise InputError(f"split must be validation or test, not '{self.split}'")
        if self.max_pool < 1:
            raise InputError(f"max_pool must be at least 1, not {self.max_pool}")

    def generator(self, *names: str) -> np.random.Generator:
        """Return the random stream of that name."""
        return np.random.default_rng(named_seed(self.seed, "run diagnosis", *names))


def diagnose_run(
    run: str | Path | Run,
    *,
    teachers: Sequence[str | Path | Run] = (),
    reference: str | Path | Run | None = None,
    loader: Loader | None = None,
    **options: Any,
) -> Diagnosis:
    """Measure what a trained run's errors have in common and what its adapters let through.

    The residual coupling of tasks is in the data only where tasks label the same texts; there it is
    ``delta_hat``. For other tasks it can be had under an assumption, with teachers in the place of
    labels: ``delta_teacher``. ``null_alignment`` pairs unrelated rows and measures nothing; it is
    there to compare with.

    Args:
        run: a finished run, or its folder.
        teachers: one or two finished runs of the same tasks, such as private adapters, whose
            predictions stand for labels; two, of different seeds and training rows, give a placebo.
        reference: the run whose adapter sets the noise of the capacity proxies; the run itself if
            None, and then capacities of two runs do not compare.
        loader: keeps what the runs share.
        options: the fields of :class:`RunDiagnosisConfig`.

    Raises:
        InputError: if a run has not finished, has one task, or too few rows of one to judge it by;
            or a teacher or the reference is not of the same suite or base model.

    Example:
        ``found = coadapt.diagnose_run("runs/shared", teachers=["runs/private"])``
    """
    config = parse(RunDiagnosisConfig, options, "diagnose_run()")
    loader = loader or Loader()
    opened = _open(run, loader)
    names = opened.suite.names
    if loader.kind(opened.config.model) != "encoder":
        raise InputError(
            f"run {opened.path} is of a language model; so far a diagnosis reads the heads of an "
            "encoder"
        )
    if len(names) < 2:
        raise InputError(f"run {opened.path} has one task; residual coupling is between tasks")
    # Now, not after minutes of work.
    taught = _open_teachers(opened, teachers, loader)
    other = _open_reference(opened, reference, loader)
    judged = _judge(opened, loader, config.split)
    heads = [calibrate(task) for task in judged]
    notes: list[str] = []
    estimates, told = shared_coupling(judged, heads, config.generator("shared"))
    notes += told
    null, told = control(judged, heads, config.generator("null"))
    notes += told
    rows: dict[str, CouplingEstimate] = {
        f"{found.estimator}: {', '.join(group)}": found for group, found in estimates.items()
    }
    pairs = {
        f"coupling of {', '.join(group)}": coupling_by_pair(names, group, found)
        for group, found in estimates.items()
    }
    if taught:
        found, told = _teach(opened, taught, loader, config, heads)
        rows |= found
        notes += told
        if (whole := found.get("delta_teacher: all tasks")) is not None:
            pairs["teacher"] = coupling_by_pair(names, names, whole)
    if null is not None:
        rows["null_alignment: unrelated rows"] = null
    notes += assumptions(rows)
    return Diagnosis(
        tasks=names,
        of=f"run {opened.path}",
        rows={task.task.name: len(task.rows) for task in judged},
        settings={
            **to_plain(config),
            "teachers": [str(teacher.path) for teacher in taught],
            "reference": str(other.path),
        },
        pairs=pairs,
        by_task={"temperature": _temperatures(names, heads)},
        tables=coupling_table(rows) | _capacity(opened, other, loader, config, notes),
        notes=tuple(notes),
    )


def _open(run: str | Path | Run, loader: Loader) -> Run:
    return run if isinstance(run, Run) else load_run(run, loader=loader)


def _open_teachers(run: Run, teachers: Sequence[str | Path | Run], loader: Loader) -> list[Run]:
    """Return the teachers, one or two of the run's suite and base model, or none."""
    opened = [_open(teacher, loader) for teacher in teachers]
    if len(opened) > 2:
        raise InputError(f"give one teacher, or two for a placebo, not {len(opened)}")
    for teacher in opened:
        # By another split it would have been trained on rows that the run is judged on.
        if _suite_of(teacher) != _suite_of(run):
            raise InputError(
                f"the teacher {teacher.path} has other tasks, labels or splits than {run.path}; "
                "take a run of the same suite"
            )
        _refuse_other_base(run, teacher, "teacher")
    return opened


def _open_reference(run: Run, reference: str | Path | Run | None, loader: Loader) -> Run:
    """Return the run that sets the noise, by default the run itself."""
    if reference is None:
        return run
    opened = _open(reference, loader)
    _refuse_other_base(run, opened, "reference")
    return opened


def _suite_of(run: Run) -> tuple[Any, ...]:
    """Return what decides a run's labels and held-out rows; training rows may differ."""
    suite = run.suite
    tasks = [(task.name, task.kind, task.labels, task.data, task.columns) for task in suite.tasks]
    return tasks, suite.seed, suite.split


def _refuse_other_base(run: Run, other: Run, what: str) -> None:
    ours, theirs = run.config.model.name, other.config.model.name
    if theirs != ours:
        raise InputError(
            f"the {what} {other.path} has another base model, {theirs}, than {run.path}, {ours}"
        )


def _judge(run: Run, loader: Loader, split: str) -> list[Judged]:
    encoded = _encoded(run, loader, split)
    collate = Collator(run.tokenizer)
    return [
        Judged(
            task=task,
            rows=run.suite.rows(task.name, split),
            outputs=predict_outputs(run.model, collate, encoded[task.name], task.name),
        )
        for task in run.suite.tasks
    ]


def _encoded(run: Run, loader: Loader, split: str) -> dict[str, Any]:
    found = {
        task: loader.encoded(run.config.model, run.suite, task, split) for task in run.suite.names
    }
    for task, rows in found.items():
        if not rows:
            raise InputError(f"task '{task}' has no {split} rows to judge the run by")
    return found


def _teach(
    run: Run,
    teachers: Sequence[Run],
    loader: Loader,
    config: RunDiagnosisConfig,
    heads: Sequence[Calibrated],
) -> tuple[dict[str, CouplingEstimate], list[str]]:
    """Return the coupling with teachers' labels on the rows of all tasks, and of each task."""
    pool = {
        task: _some(rows, config.max_pool, config.generator("pool", task))
        for task, rows in _encoded(run, loader, config.split).items()
    }
    students = _on_pool(run, pool)
    taught = [_on_pool(teacher, pool) for teacher in teachers]
    calibrated = [
        [calibrate(task) for task in _judge(teacher, loader, config.split)] for teacher in teachers
    ]
    found: dict[str, CouplingEstimate] = {}
    failed: dict[str, list[str]] = {}
    for source in (None, *pool):
        name = "all tasks" if source is None else f"texts of {source}"
        kept = slice(None) if source is None else _span(pool, source)
        part = [{task: outputs[kept] for task, outputs in each.items()} for each in taught]
        try:
            estimate, placebo = teacher_coupling(
                {task: outputs[kept] for task, outputs in students.items()},
                part,
                heads,
                calibrated,
                config.generator("teacher", source or "all tasks"),
            )
        except InputError as error:
            failed.setdefault(str(error), []).append(name)
            continue
        found[f"delta_teacher: {name}"] = estimate
        if placebo is not None:
            found[f"placebo: {name}"] = placebo
    return found, [f"no delta_teacher on {', '.join(on)}: {why}" for why, on in failed.items()]


def _some(rows: Encoded, num: int, generator: np.random.Generator) -> Encoded:
    """Return so many of the rows, in their order: the first ones may all be of one class."""
    order = generator.permutation(len(rows))
    return [rows[row] for row in np.sort(order[:num])]


def _on_pool(run: Run, pool: Mapping[str, Encoded]) -> dict[str, Array]:
    rows = [row for found in pool.values() for row in found]
    collate = Collator(run.tokenizer)
    return {task: predict_outputs(run.model, collate, rows, task) for task in run.suite.names}


def _span(pool: Mapping[str, Encoded], source: str) -> slice:
    start = 0
    for task, rows in pool.items():
        if task == source:
            return slice(start, start + len(rows))
        start += len(rows)
    raise AssertionError(source)


def _temperatures(names: Sequence[str], heads: Sequence[Calibrated]) -> TaskMeasure:
    values = np.array([head.temperature for head in heads])
    most = int(np.abs(np.log(values)).argmax())
    return TaskMeasure(
        title="temperature of each head (above 1: it was too sure)",
        reading=f"furthest from 1 for {names[most]} ({values[most]:.2f})",
        values=values,
    )


def _capacity(
    run: Run, reference: Run, loader: Loader, config: RunDiagnosisConfig, notes: list[str]
) -> dict[str, TableMeasure]:
    model = run.model
    if not model.attached.layers:
        notes.append(f"recipe '{run.config.recipe_name}' adapts no layer: no capacities")
        return {}
    if any(isinstance(layer, AbstractSlotted) for layer in model.attached.layers.values()):
        notes.append("experts of whole feed-forwards have inputs of their own: no capacities")
        return {}
    collate = Collator(run.tokenizer)
    encoded = {
        task: _some(rows, _MAX_CAPACITY_ROWS, config.generator("capacity", task))
        for task, rows in _encoded(run, loader, "train").items()
    }
    moments = input_moments(model, collate, encoded)
    if reference is run:
        notes.append(
            "the noise of the capacity proxies is this run's own: to compare runs give all of them "
            "the same reference"
        )
    return capacity_tables(model, moments, reference_noise(reference.model, moments))
