"""Runs that must take the same course: step by step, through the trainer, in float32."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from coadapt.planning import Block, Plan
from coadapt.processors import load_tokenizer
from coadapt.structures import Bank, Single, Structure
from coadapt.tasks import Collator, Proportional, TaskDataset, TaskSuite, encode, load_suite
from coadapt.training import MultiTaskTrainer
from tests.small import make_model

GOLDEN = Path(__file__).with_name("golden.json")
NAMES = ("sentiment", "topic", "same", "degree")
PRIVATE = Plan.private(NAMES, 8)
STRUCTURES: dict[str, tuple[Structure, Plan]] = {
    "lora": (Single(), Plan.shared(NAMES, 4)),
    "private": (Bank(), PRIVATE),
    "clustered": (Bank(), Plan.clustered({"words": NAMES[::3], "subjects": NAMES[1:3]}, 6)),
    "shared_private": (Bank(), Plan.shared_private(NAMES, 8)),
}


@pytest.fixture
def suite(toy_suite_dict):
    return load_suite(toy_suite_dict)


@dataclass
class Step:
    """One optimizer step: its loss, the tasks of its rows, and everything trained after it."""

    loss: float = 0.0
    tasks: set[str] = field(default_factory=set)
    state: dict[str, Tensor] = field(default_factory=dict)


class Recorder(TrainerCallback):
    """Keeps every step of a trainer."""

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer
        self.steps = [Step()]
        self.start = self.state()
        compute_loss = trainer.compute_loss

        def recorded(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            loss = compute_loss(model, inputs, *args, **kwargs)
            self.steps[-1].loss += loss.item()
            self.steps[-1].tasks |= {trainer.multi.task_names[t] for t in inputs["task_ids"]}
            return loss

        trainer.compute_loss = recorded

    def state(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.trainer.multi.state_tensors().items()}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps[-1].state = self.state()
        self.steps.append(Step())


@dataclass
class Course:
    """A finished training: its state before it and after each step."""

    start: dict[str, Tensor]
    steps: list[Step]
    trainer: MultiTaskTrainer

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]

    def before_and_after(self) -> Iterator[tuple[dict[str, Tensor], Step]]:
        befores = [self.start, *(step.state for step in self.steps[:-1])]
        return zip(befores, self.steps, strict=True)


def follow(
    folder: Path,
    suite: TaskSuite,
    structure: Structure,
    plan: Plan,
    output: Path,
    *,
    composition: Any = "mixed",
    loss_mean: str = "tasks",
    **training: Any,
) -> Course:
    """Train with AdamW at a constant rate, with decay and no dropout, and record each step."""
    model = make_model(folder, structure, plan, tasks=suite.tasks, loss_mean=loss_mean)
    tokenizer = load_tokenizer(model.model_config)
    rows = [suite.rows(name, "train") for name in suite.names]
    defaults = {
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 0,
    }
    output.mkdir(parents=True)
    trainer = MultiTaskTrainer(
        model,
        TrainingArguments(**{**defaults, **training}),
        dataset=TaskDataset([encode(tokenizer, r, 32) for r in rows], [r.labels for r in rows]),
        collate=Collator(tokenizer),
        mixing=Proportional(),
        composition=composition,
    )
    recorder = Recorder(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    return Course(recorder.start, recorder.steps[:-1], trainer)


def assert_same_state(mine: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance)


def distance(mine: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((mine[name] - other[name]).abs().max()) for name in mine)


# Accumulation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_mean", ["tasks", "rows"])
@pytest.mark.parametrize("name", ["lora", "private", "shared_private"])
def test_batch_8_is_batch_1_accumulated_8_times(tiny_bert, suite, tmp_path, name, loss_mean):
    parts = (tiny_bert, suite, *STRUCTURES[name])
    options = {"loss_mean": loss_mean, "max_steps": 8}
    whole = follow(*parts, tmp_path / "whole", **options)
    cut = follow(
        *parts,
        tmp_path / "cut",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        **options,
    )
    assert len(whole.steps) == len(cut.steps) == 8
    assert any(len(step.tasks) > 1 for step in whole.steps)
    for mine, other in zip(whole.steps, cut.steps, strict=True):
        assert mine.tasks == other.tasks
        assert mine.loss == pytest.approx(other.loss, abs=1e-5)
        assert_same_state(mine.state, other.state, 1e-5)
    assert distance(whole.start, whole.steps[-1].state) > 1e-2


def test_an_epoch_of_short_steps_accumulates_too(tiny_bert, suite, tmp_path):
    """The last step of an epoch has fewer rows than micro-batches; the second epoch follows."""
    parts = (tiny_bert, suite.subset(["sentiment", "topic"]), Bank(), Plan.private(NAMES[:2], 4))
    whole = follow(*parts, tmp_path / "whole", num_train_epochs=2)
    cut = follow(
        *parts,
        tmp_path / "cut",
        num_train_epochs=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )
    num_rows = sum(whole.trainer.sampler.counts().values())
    assert num_rows % 8
    assert len(whole.steps) == len(cut.steps) == 2 * -(-num_rows // 8)
    for mine, other in zip(whole.steps, cut.steps, strict=True):
        assert mine.loss == pytest.approx(other.loss, abs=1e-5)
    assert_same_state(whole.steps[-1].state, cut.steps[-1].state, 1e-5)


# One run together, or one each -------------------------------------------------------------------


def test_private_adapters_trained_together_equal_those_trained_alone(tiny_bert, suite, tmp_path):
    options = {"composition": "single_task", "num_train_epochs": 2}
    plan = Plan(
        blocks={n: Block(rank=r, tasks=(n,)) for n, r in zip(NAMES, (2, 1, 3, 2), strict=True)}
    )
    together = follow(tiny_bert, suite, Bank(), plan, tmp_path / "together", **options)
    turns = [next(iter(step.tasks)) for step in together.steps]
    assert all(len(step.tasks) == 1 for step in together.steps)
    assert any(mine != after for mine, after in zip(turns, turns[2:], strict=False))
    for name in NAMES:
        own_plan = Plan(blocks={name: plan.blocks[name]})
        alone = follow(
            tiny_bert, suite.subset([name]), Bank(), own_plan, tmp_path / name, **options
        )
        mine = [step for step in together.steps if name in step.tasks]
        assert len(mine) == len(alone.steps) >= 6
        for step, other in zip(mine, alone.steps, strict=True):
            assert step.loss == pytest.approx(other.loss, abs=1e-6)
            own = {key: step.state[key] for key in other.state}
            assert_same_state(own, other.state, 1e-6)
        assert distance(alone.start, alone.steps[-1].state) > 1e-2


# Lazy update -------------------------------------------------------------------------------------


def part_of(name: str) -> str:
    """Return the block, or ``heads/task``, that a tensor belongs to."""
    first, second, *_ = name.split("/")
    return f"heads/{second}" if first == "heads" else first


def drifts(course: Course, plan: Plan) -> list[float]:
    """Return how far each parameter moved in each step whose rows did not use it."""
    owners = {name: set(block.tasks) for name, block in plan.blocks.items()}
    owners |= {f"heads/{task}": {task} for task in NAMES}
    return [
        float((tensor - before[name]).abs().max())
        for before, step in course.before_and_after()
        for name, tensor in step.state.items()
        if owners[part_of(name)].isdisjoint(step.tasks)
    ]


@pytest.mark.parametrize("name", ["private", "clustered", "shared_private"])
def test_what_a_step_does_not_use_does_not_move(tiny_bert, suite, tmp_path, name):
    structure, plan = STRUCTURES[name]
    options = {"composition": "single_task", "num_train_epochs": 1}
    course = follow(tiny_bert, suite, structure, plan, tmp_path / "run", **options)
    found = drifts(course, plan)
    assert len(found) > 100
    assert max(found) == 0.0
    counted = {f"heads/{task}": sum(task in step.tasks for step in course.steps) for task in NAMES}
    for block, owner in plan.blocks.items():
        counted[block] = sum(not step.tasks.isdisjoint(owner.tasks) for step in course.steps)
    assert course.trainer.updates == counted


def test_without_the_lazy_update_it_would_move(tiny_bert, suite, tmp_path, monkeypatch):
    monkeypatch.setattr(MultiTaskTrainer, "_skip_absent", lambda *_: None)
    options = {"composition": "single_task", "num_train_epochs": 1}
    course = follow(tiny_bert, suite, Bank(), PRIVATE, tmp_path / "run", **options)
    found = drifts(course, PRIVATE)
    assert sum(moved > 1e-4 for moved in found) > len(found) / 2


def test_the_oracle_a_gradient_of_zero_is_not_none():
    """AdamW by hand: decay and old moments move a weight whose gradient is zero."""
    for gradient, moves in ((torch.zeros(1), True), (None, False)):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
        weight.grad = torch.ones(1)
        optimizer.step()
        before = weight.item()
        weight.grad = gradient
        optimizer.step()
        momentum = 0.9 * 0.1 / (1 - 0.9**2)
        variance = 0.999 * 0.001 / (1 - 0.999**2)
        exact = before * (1 - 0.1 * 0.1) - 0.1 * momentum / (variance**0.5 + 1e-8)
        assert weight.item() == pytest.approx(exact if moves else before, rel=1e-5)
        assert (weight.item() != before) == moves


def test_a_mixed_step_updates_what_its_rows_use(tiny_bert, suite, tmp_path):
    course = follow(tiny_bert, suite, Bank(), PRIVATE, tmp_path / "run", num_train_epochs=1)
    assert any(1 < len(step.tasks) < 4 for step in course.steps)
    for before, step in course.before_and_after():
        for name, tensor in step.state.items():
            used = part_of(name).removeprefix("heads/") in step.tasks
            assert torch.equal(tensor, before[name]) != used, name


# Reach and equivalence ---------------------------------------------------------------------------


@pytest.mark.parametrize("composition", ["mixed", "balanced", "single_task"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_after_one_epoch_everything_has_moved(tiny_bert, suite, tmp_path, name, composition):
    options = {"num_train_epochs": 1, "composition": composition, "weight_decay": 0.0}
    course = follow(tiny_bert, suite, *STRUCTURES[name], tmp_path / "run", **options)
    for key, tensor in course.steps[-1].state.items():
        assert float((tensor - course.start[key]).abs().max()) > 1e-4, key


def test_a_bank_of_one_cluster_trains_as_single_to_the_bit(tiny_bert, suite, tmp_path):
    plan = Plan.shared(NAMES, 4)
    single, bank = (
        follow(tiny_bert, suite, structure, plan, tmp_path / structure.kind, max_steps=10)
        for structure in (Single(), Bank())
    )
    assert single.losses == bank.losses
    for mine, other in zip(single.steps, bank.steps, strict=True):
        assert all(torch.equal(mine.state[name], other.state[name]) for name in other.state)


# Golden ------------------------------------------------------------------------------------------


def test_losses_are_the_golden_ones(tiny_bert, suite, tmp_path, request):
    losses = {
        name: follow(tiny_bert, suite, *parts, tmp_path / name, max_steps=10).losses
        for name, parts in STRUCTURES.items()
    }
    if request.config.getoption("--regen"):
        rounded = {name: [round(loss, 6) for loss in found] for name, found in losses.items()}
        GOLDEN.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden.keys() == losses.keys()
    for name, found in losses.items():
        difference = torch.tensor(found) - torch.tensor(golden[name])
        # Processors round differently; a change of method stands out in a step or shifts them all.
        assert float(difference.abs().max()) < 1e-4, name
        assert abs(float(difference.mean())) < 2e-5, name
