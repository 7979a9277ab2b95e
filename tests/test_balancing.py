"""A balancing in training: what it replaces, what it leaves, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from coadapt import InputError, train
from coadapt.balancing import GradNorm, PCGrad, Uncertainty
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES
from coadapt.stepping import BalancedStep
from coadapt.structures import Single
from tests.small import MIXED, NAMES, blocks_of, make_batch, make_model, randomize

PLAN = Plan.shared(NAMES, 3)
LORA = RECIPES["lora"].recipe


def model_of(tiny_bert):
    return randomize(make_model(tiny_bert, Single(), PLAN, dtype="float64")).double()


def grad_of(parameter):
    assert parameter.grad is not None
    return parameter.grad.clone()


def task_losses(model, batch):
    outputs = model(**batch)
    counts = torch.bincount(batch["task_ids"], minlength=len(NAMES)).double()
    zeros = torch.zeros(len(NAMES), dtype=torch.float64)
    shares = outputs["row_losses"].double() / counts[batch["task_ids"]]
    return outputs["loss"], zeros.index_add(0, batch["task_ids"], shares)


def balanced_gradients(model, balancing, batches):
    """The gradients of a step of several micro-batches, its task counts being the step's."""
    shared = list(blocks_of(model).values())
    step = BalancedStep(balancing, shared, len(NAMES), seed=0)
    step.begin(torch.ones(len(NAMES), dtype=torch.bool), torch.device("cpu"))
    model.zero_grad()
    for batch, share in batches:
        loss, means = task_losses(model, batch)
        (share * loss + step.add(share * means, (0, 1, 2))).backward()
    step.finish(lambda tensor: tensor, 1)
    return [grad_of(p) for p in shared], [grad_of(p) for p in model.heads.parameters()]


def pcgrad_loop(jacobian, orders):
    """Algorithm 1 of arXiv 2001.06782, projections in the given orders, and their mean."""
    found = []
    for i, order in enumerate(orders):
        g = jacobian[i].clone()
        for j in order:
            if j != i and g @ jacobian[j] < 0:
                g = g - (g @ jacobian[j]) / (jacobian[j] @ jacobian[j]) * jacobian[j]
        found.append(g)
    return torch.stack(found).mean(dim=0)


def test_the_step_is_the_balancings_direction_from_gradients_a_task(tiny_bert):
    model, batch, balancing = model_of(tiny_bert), make_batch(MIXED), GradNorm()
    jacobian = separate_gradients(model, batch)
    found, _ = balanced_gradients(model, balancing, [(batch, 1.0)])
    mine = torch.cat([g.flatten() for g in found])
    torch.testing.assert_close(mine, jacobian.mean(dim=0), rtol=1e-6, atol=1e-8)  # weights of 1


def test_micro_batches_give_the_whole_steps_direction(tiny_bert):
    model, batch = model_of(tiny_bert), make_batch(MIXED)
    whole, heads = balanced_gradients(model, GradNorm(alpha=0.0), [(batch, 1.0)])
    halves, same_heads = balanced_gradients(model, GradNorm(alpha=0.0), [(batch, 0.5)] * 2)
    for one, other in zip(whole + heads, halves + same_heads, strict=True):
        torch.testing.assert_close(one, other)


def test_pcgrad_in_a_step_is_the_papers_loop(tiny_bert):
    pytest.importorskip("torchjd")
    model, batch = model_of(tiny_bert), make_batch((0, 0, 2, 2))
    jacobian = separate_gradients(model, batch, (0, 2))
    expected = pcgrad_loop(jacobian, [[1], [0]])  # two tasks leave no choice of order
    shared = list(blocks_of(model).values())
    step = BalancedStep(PCGrad(), shared, len(NAMES), seed=0)
    step.begin(torch.tensor([True, False, True]), torch.device("cpu"))
    model.zero_grad()
    loss, means = task_losses(model, batch)
    (loss + step.add(torch.nan_to_num(means), (0, 2))).backward()
    step.finish(lambda tensor: tensor, 1)
    mine = torch.cat([grad_of(p).flatten() for p in shared])
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-8)


def separate_gradients(model, batch, tasks=(0, 1, 2)):
    """(P, n) by a forward and backward pass a task: the slow oracle."""
    rows = []
    for task in tasks:
        model.zero_grad()
        torch.nan_to_num(task_losses(model, batch)[1])[task].backward()
        rows.append(torch.cat([grad_of(p).flatten() for p in blocks_of(model).values()]))
    return torch.stack(rows)


def test_uncertainty_weighs_the_losses_of_the_step_after(tiny_bert):
    model, batch, balancing = model_of(tiny_bert), make_batch(MIXED), Uncertainty(learning_rate=0.5)
    step = BalancedStep(balancing, list(blocks_of(model).values()), len(NAMES), seed=0)
    everyone = torch.ones(len(NAMES), dtype=torch.bool)
    step.begin(everyone, torch.device("cpu"))
    loss, means = task_losses(model, batch)
    assert step.add(means, (0, 1, 2)).detach() == 0.0  # the first weights are 1
    step.finish(lambda tensor: tensor, 1)
    s = step.state["log_variances"]
    assert torch.equal(s.sign(), (means.detach() - 1).sign())
    step.begin(everyone, torch.device("cpu"))
    total = loss + step.add(means, (0, 1, 2))
    torch.testing.assert_close(
        total.detach(), ((-s).exp() * means).mean().detach(), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("balancing", [GradNorm(), Uncertainty()], ids=["grad_norm", "uncertainty"])
def test_a_resumed_run_goes_on_as_if_never_stopped(tiny_bert, toy_suite_dict, tmp_path, balancing):
    recipe = replace(LORA, balancing=balancing)
    training = {
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    model = {"name": str(tiny_bert), "dtype": "float32", "max_length": 32}

    def fit(name, **options):
        return train(
            model, toy_suite_dict, recipe, output=tmp_path / name, training=training, **options
        )

    whole = fit("whole").model.state_tensors()
    fit("cut")
    for path in sorted((tmp_path / "cut").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    for file in (tmp_path / "cut" / "adapter").iterdir():
        file.unlink()
    (tmp_path / "cut" / "adapter").rmdir()
    resumed = fit("cut", resume=True).model.state_tensors()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    plain = train(
        model, toy_suite_dict, LORA, output=tmp_path / "plain", training=training
    ).model.state_tensors()
    assert any(not torch.equal(whole[name], plain[name]) for name in whole)


@pytest.mark.parametrize("recipe", ["lora+grad_norm", "align_kl"])
def test_re_entrant_checkpointing_is_refused_before_anything_is_written(
    tiny_bert, toy_suite_dict, tmp_path, recipe
):
    training = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
        "use_cpu": True,
    }
    model = {"name": str(tiny_bert), "dtype": "float32", "max_length": 32}
    with pytest.raises(InputError, match="use_reentrant: false"):
        train(model, toy_suite_dict, recipe, output=tmp_path / "run", training=training)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_a_balancing_cannot_take_part_in_is_refused(tiny_bert, toy_suite_dict, tmp_path):
    model = {"name": str(tiny_bert), "dtype": "float32", "max_length": 32}
    grad_norm = Recipe(structure=Single(), balancing=GradNorm(), sharing="shared")

    def start(**options):
        train(model, toy_suite_dict, grad_norm, output=tmp_path / "run", **options)

    with pytest.raises(InputError, match=r"loss_mean.*take 'tasks', not 'rows'"):
        start(loss_mean="rows")
    assert not (tmp_path / "run" / "config.yaml").exists()
