"""Task prompts in use: trained, kept between forwards, mixed, left out, saved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from coadapt.adapters import prompts
from coadapt.groups import FastSlow
from coadapt.model import MultiTaskModel, build_model
from coadapt.modes import answering
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.runs import Run, load_run
from coadapt.saving import load_adapter, save_adapter
from coadapt.structures import Bank, TaskPrompt
from coadapt.training import MultiTaskTrainer
from coadapt.verbs.running import _blocks_of
from tests.prompts import make_backbone, make_inputs, prompted, read, run, scattered
from tests.reference.slow_prompts import slow_prompt
from tests.small import MIXED, NAMES, gradients, make_batch, make_model, output_hash, randomize
from tests.toy_runs import assert_same_run, train_toy

PART = TaskPrompt(length=3, layers=2)
RECIPE = Recipe(structure=PART, groups=FastSlow())
LENGTHS, TASK_IDS = (6, 3, 5, 1), (1, 0, 2, 1)


@torch.no_grad()
def evaluated(model: MultiTaskModel, task_ids: Any = TASK_IDS) -> Tensor:
    inputs = make_inputs("bert", LENGTHS)
    with answering(model):
        found = run(model, inputs, task_ids)
        assert torch.equal(run(model, inputs, task_ids), found)
    return found


def own_of(model: MultiTaskModel, task: int) -> list[Tensor]:
    return [p for n, p in model.attached.tensors().items() if n.startswith(f"{NAMES[task]}/")]


# Trained -----------------------------------------------------------------------------------------


def trained(folder: Any, suite: Any, output: Path, *, steps: int, **options: Any) -> Run:
    """Train with a constant rate and without a regularizer."""
    training = {
        "max_steps": steps, "use_cpu": True, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "weight_decay": options.pop("decay", 0.0), "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    return train_toy(folder, suite, output, RECIPE, training=training, **options)


def start_of(found: Run) -> dict[str, Tensor]:
    """Return the tensors that a run began with."""
    return build_model(found.config.model, found.suite.tasks, RECIPE, None, seed=0).state_tensors()


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_first_step_moves_gates_and_heads_and_the_second_all(
    tiny_bert, toy_suite_dict, tmp_path, decay
):
    for steps in (1, 2):
        options = {"steps": steps, "decay": decay, "batches": "balanced"}
        found = trained(tiny_bert, toy_suite_dict, tmp_path / str(steps), **options)
        start, state = start_of(found), found.model.state_tensors()
        for name, tensor in state.items():
            kind = name.split("/")[-1]
            rate = 1e-2 * (10 if kind in "uv" else 1)
            if steps == 2 or kind == "g" or name.startswith("heads/"):
                still = start[name] * (1 - rate * decay) ** steps
                assert not torch.allclose(tensor, still, rtol=1e-4, atol=1e-7), name
            else:  # nothing but decay
                torch.testing.assert_close(tensor, start[name] * (1 - rate * decay))
                assert torch.equal(tensor, start[name]) == (not decay), name


def test_an_absent_task_s_part_keeps_its_bits(tiny_bert, toy_suite_dict, tmp_path):
    """One task a step, so that a step more leaves the others' decay and moments alone."""
    options = {"decay": 0.5, "batches": "single_task"}
    few, many = (
        trained(tiny_bert, toy_suite_dict, tmp_path / str(steps), steps=steps, **options)
        for steps in (3, 4)
    )
    counts = [found.result["train"]["updates"] for found in (few, many)]
    states = [found.model.state_tensors() for found in (few, many)]
    start, seen = start_of(few), set()
    for task in few.suite.names:
        before, after = (count[task] for count in counts)
        for name in (n for n in start if n.startswith(f"{task}/")):
            assert torch.equal(states[0][name], states[1][name]) == (before == after), name
            assert torch.equal(start[name], states[0][name]) == (before == 0), name
        seen.add((before > 0, after > before))
    assert {(True, False), (False, False)} <= seen  # absent after a step of its own, and always


# Kept between forwards ---------------------------------------------------------------------------


def take_fused_step(model: MultiTaskModel) -> None:
    """As the Trainer does; autograd does not notice."""
    gradients(model, make_batch(MIXED))
    torch.optim.AdamW(model.attached.tensors().values(), lr=0.1, fused=True).step()


def edit_unseen(model: MultiTaskModel) -> None:
    """While nothing is evaluated, in a way that autograd does not notice."""
    model.train()
    for tensor in model.attached.tensors().values():
        tensor.data.mul_(0.5)
    model.eval()


@torch.no_grad()
def load_other(model: MultiTaskModel) -> None:
    state = model.state_tensors()
    model.load_state_tensors({n: t.flip(-1) * 0.7 for n, t in state.items()}, "there")


def edit(end: str) -> Any:
    @torch.no_grad()
    def change(model: MultiTaskModel) -> None:
        for name, tensor in model.attached.tensors().items():
            if name.endswith(end):
                tensor.mul_(0.5)

    return change


CHANGES = {
    **{f"edited_{end}": edit(f"/{end}") for end in ("theta", "B", "u", "v", "g")},
    "fused_step": take_fused_step,
    "loaded": load_other,
    "edited_unseen": edit_unseen,
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_kept_keys_are_renewed_when_a_weight_changes(change):
    model = scattered("bert", PART)
    before = evaluated(model)
    assert torch.equal(before, evaluated(model))
    change(model)
    state = model.state_tensors()
    fresh = prompted(make_backbone("bert"), PART).to(next(iter(state.values())).dtype)
    fresh.load_state_tensors(state, "here")
    after = evaluated(model)
    assert not torch.equal(before, after)
    assert torch.equal(after, evaluated(fresh))


def test_keys_of_a_task_are_made_once_while_a_model_answers(monkeypatch):
    model, made = scattered("bert", PART), []

    def make(attention: Any, x: Tensor, head_width: int) -> Any:
        made.append(len(x))
        return stock(attention, x, head_width)

    stock = prompts.keys_and_values
    monkeypatch.setattr(prompts, "keys_and_values", make)
    inputs = make_inputs("bert", LENGTHS)
    for _ in range(2):  # another time they may be others
        with torch.no_grad(), answering(model):
            for tasks, expected in (((2, 0), 4), ((2, 0, 1, 1), 6), ((0, 2, 1, 0), 0)):
                made.clear()
                run(model, {key: value[: len(tasks)] for key, value in inputs.items()}, tasks)
                assert made == [1] * expected  # of each task in two layers, if there are others
    made.clear()
    run(model, inputs, TASK_IDS)
    assert made == [3, 3]  # with a graph, those of all tasks at once


def test_a_task_s_output_does_not_depend_on_another_s_weights():
    model = scattered("bert", PART)
    before = evaluated(model)
    with torch.no_grad():
        for tensor in own_of(model, 1):
            tensor.mul_(-2.0)
    after = evaluated(model)
    for row, task in enumerate(TASK_IDS):
        assert torch.equal(before[row], after[row]) == (task != 1)


def test_gradients_reach_the_tasks_of_the_batch_alone():
    model = scattered("bert", PART)
    found = gradients(model, make_batch((2, 0, 2)))
    names = {id(p): n for n, p in model.named_parameters()}
    for task in range(len(NAMES)):
        for tensor in own_of(model, task):
            # In the graph all the same, as distributed training needs it.
            assert bool(found[names[id(tensor)]].any()) == (task != 1)


# Mixed, or left out ------------------------------------------------------------------------------


def common(model: MultiTaskModel, shares: Any) -> MultiTaskModel:
    """Return a model of one prompt for all: the common one and shares of the tasks' own parts."""
    structure: Any = model.recipe.structure
    alone = prompted(make_backbone("bert"), replace(structure, fast_rank=0))
    state = model.state_tensors()
    for module in model.attached.prompts:
        theta = state[f"shared/{module}/theta"]
        mixed = theta.clone()
        for task, share in zip(NAMES, shares, strict=True):
            u, v = (state[f"{task}/{module}/{key}"] for key in "uv")
            how = {"scale": structure.scale, "form": structure.form}
            whole = slow_prompt(theta, state.get(f"shared/{module}/B"), u, v, **how)
            mixed += share * (whole - theta)
        state[f"shared/{module}/theta"] = mixed
    alone.load_state_tensors(state, "there")
    return alone


@pytest.mark.parametrize("form", ["additive", "hadamard"])
@pytest.mark.parametrize("shares", [(0, 0, 0), (0, 1, 0), (0.2, 0.7, -0.4)], ids=str)
def test_fixed_shares_mix_the_tasks_own_parts(shares, form):
    model = scattered("bert", replace(PART, form=form, scale=1.5))
    wanted = evaluated(common(model, shares))
    with model.route.fixing(shares):
        torch.testing.assert_close(evaluated(model), wanted, rtol=0, atol=1e-5)
        with torch.enable_grad():
            found = run(model, make_inputs("bert", LENGTHS), TASK_IDS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(evaluated(model), wanted, atol=1e-2)
    if shares == (0, 1, 0):
        torch.testing.assert_close(evaluated(model, (1,) * 4), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_adapters_private_blocks_leave_the_frozen_model(tiny_bert):
    options: Any = {"target_modules": "all-linear", "attn_implementation": "eager"}
    model = randomize(make_model(tiny_bert, Bank(), Plan.private(NAMES, 6), **options)).eval()
    base = AutoModel.from_pretrained(tiny_bert, attn_implementation="eager").eval()
    inputs = make_inputs("bert", LENGTHS)
    with model.route.without_adapters():
        assert torch.equal(run(model, inputs, TASK_IDS), read(base, inputs))
    assert not torch.allclose(run(model, inputs, TASK_IDS), read(base, inputs), atol=1e-2)


# Checkpointed, saved, resumed --------------------------------------------------------------------


@pytest.mark.parametrize("re_entrant", [True, False], ids=["re_entrant", "non_re_entrant"])
def test_gradients_are_the_same_with_checkpointing(re_entrant):
    model = scattered("bert", PART).train()
    found, calls = [], []
    for module in model.attached.prompts:
        model.backbone.get_submodule(module).register_forward_hook(lambda *_: calls.append(1))
    for kwargs in (None, {"use_reentrant": re_entrant}):
        if kwargs is not None:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        found.append(gradients(model, make_batch(MIXED)))
    assert len(calls) == 6  # once in each of two layers, then in the forward and the backward
    assert sum("attention_extension" in name for name in found[0]) == 2 * (3 + 2 * len(NAMES))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-6)


def test_saved_and_loaded_prompts_have_the_same_bits(tmp_path):
    model = scattered("bert", PART)
    save_adapter(model, tmp_path / "adapter")
    other = prompted(make_backbone("bert"), PART, seed=2)
    assert not torch.equal(evaluated(model), evaluated(other))
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(evaluated(model), evaluated(other))


class Stopped(BaseException): ...


def test_a_run_goes_on_and_is_opened_with_its_bits(
    tiny_bert, toy_suite_dict, tmp_path, monkeypatch
):
    training = {
        "max_steps": 6, "use_cpu": True, "learning_rate": 1e-2, "save_strategy": "steps",
        "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "weight_decay": 0.1,
        "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip

    def fit(name: str, **options: Any) -> Run:
        options |= {"training": training}
        return train_toy(tiny_bert, toy_suite_dict, tmp_path / name, "ta_lora", **options)

    def compute_loss(self: MultiTaskTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise Stopped
        return original(self, *args, **kwargs)

    whole = fit("whole")
    original = MultiTaskTrainer.compute_loss
    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskTrainer, "compute_loss", compute_loss)
        with pytest.raises(Stopped):
            fit("run")
    fit("run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert output_hash(load_run(tmp_path / "run")) == output_hash(whole)


def test_training_tells_how_often_each_tasks_prompts_moved(tiny_bert, toy_suite_dict, tmp_path):
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", "ta_lora")
    assert _blocks_of(run, "topic") == ["prompts of its own (2)"]
