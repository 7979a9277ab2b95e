"""PEFT's prompts in training: gradients, checkpointing, saved, opened and resumed."""

from typing import Any

import pytest
import torch

from coadapt import InputError
from coadapt.runs import Run, load_run
from coadapt.saving import load_adapter, save_adapter
from coadapt.training import MultiTaskTrainer
from tests.peft_prompts import (
    MULTITASK,
    PREFIX,
    PROMPT,
    STRUCTURES,
    gentle,
    own_module,
    scattered,
    tuned,
)
from tests.prompts import make_inputs, run
from tests.small import MIXED, gradients, make_batch, output_hash
from tests.toy_runs import assert_same_run, train_toy

LENGTHS, TASK_IDS = (6, 3, 5, 1), (1, 0, 2, 1)


@pytest.fixture(params=STRUCTURES.values(), ids=list(STRUCTURES))
def structure(request):
    return request.param


# Training ----------------------------------------------------------------------------------------


def test_gradients_reach_the_tasks_of_the_batch_alone():
    model = scattered("bert", MULTITASK)
    found = gradients(model, make_batch((2, 0, 2)))
    for name in ("prefix_task_cols", "prefix_task_rows"):
        gradient = found[f"backbone.prompt_encoder.{name}"]
        assert [bool(of.any()) for of in gradient] == [True, False, True]
    assert found["backbone.prompt_encoder.embedding.weight"].any()


def test_a_batch_without_rows_takes_part(structure):
    model = scattered("bert", structure)
    model(**make_batch(()))["loss"].backward()
    for parameter in own_module(model).parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("part", [PROMPT, MULTITASK], ids=["prompt", "multitask"])
@pytest.mark.parametrize("re_entrant", [True, False], ids=["re_entrant", "non_re_entrant"])
def test_gradients_are_the_same_with_checkpointing(part, re_entrant):
    model, found = scattered("bert", part).train(), []
    for kwargs in (None, {"use_reentrant": re_entrant}):
        if kwargs is not None:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        found.append(gradients(model, make_batch(MIXED)))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-6)


def test_a_prefix_is_refused_with_checkpointing_while_training():
    model = scattered("bert", PREFIX).train()
    model.activation_checkpointing_enable()
    with pytest.raises(InputError, match=r"set training\.activation_checkpointing to false"):
        model(**make_batch(MIXED))
    model.eval()(**make_batch(MIXED))


# Saved, opened and resumed -----------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_prompts_have_the_same_bits(structure, tmp_path):
    model, inputs = scattered("bert", structure), make_inputs("bert", LENGTHS)
    save_adapter(model, tmp_path / "adapter")
    other = tuned(gentle("bert"), structure, seed=2)
    assert not torch.equal(run(model, inputs, TASK_IDS), run(other, inputs, TASK_IDS))
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(run(model, inputs, TASK_IDS), run(other, inputs, TASK_IDS))


class Stopped(BaseException): ...


@pytest.mark.parametrize("recipe", ["prefix_tuning", "multitask_prompt_tuning"])
def test_a_run_goes_on_and_is_opened_with_its_bits(
    recipe, tiny_bert, toy_suite_dict, tmp_path, monkeypatch
):
    training = {
        "max_steps": 4, "use_cpu": True, "learning_rate": 1e-2, "save_strategy": "steps",
        "save_steps": 2, "eval_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip

    def fit(name: str, **options: Any) -> Run:
        options |= {"training": training}
        return train_toy(tiny_bert, toy_suite_dict, tmp_path / name, recipe, **options)

    def compute_loss(self: MultiTaskTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
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
