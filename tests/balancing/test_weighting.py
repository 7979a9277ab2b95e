"""Learned weights against autograd and torch's Adam, and what they come to."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch

from coadapt._errors import InputError
from coadapt.balancing import GradNorm, Uncertainty

NAN = math.nan
ALL = torch.ones(3, dtype=torch.bool)
# Which of three tasks take part; every task rests at least once, and one comes late.
STEPS = [(1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1), (0, 0, 1), (1, 1, 1)] * 5


def draw(seed=0):
    """Losses that fall at unlike rates, and gradients of unlike size, for each of STEPS."""
    rng = np.random.default_rng(seed)
    for step, present in enumerate(STEPS):
        losses = np.array([2.0, 0.3, 40.0]) * np.exp(-np.array([0.01, 0.05, 0.0]) * step)
        losses *= rng.uniform(0.8, 1.2, 3)
        jacobian = rng.normal(size=(3, 6)) * np.array([[1e-3], [0.2], [5.0]])
        yield (
            torch.from_numpy(losses),
            torch.from_numpy(jacobian),
            torch.tensor(present, dtype=torch.bool),
        )


def learn(values, learning_rate):
    """Return scalar parameters, each with an Adam of its own, which rests where it has no part."""
    parameters = [torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]
    return parameters, [torch.optim.Adam([p], lr=learning_rate) for p in parameters]


def mask(losses, present):
    return torch.where(present, losses, NAN)


# Uncertainty.


@pytest.mark.parametrize("normalize", [False, True])
def test_uncertainty_against_autograd(normalize):
    balancing = Uncertainty(learning_rate=0.1, normalize=normalize)
    state = balancing.start(3)
    s, optimizers = learn([0.0, 0.0, 0.0], 0.1)
    for losses, _, present in draw():
        expected = torch.zeros(3, dtype=torch.float64)
        for t in present.nonzero().flatten().tolist():
            expected[t] = (-s[t].detach()).exp()
            optimizers[t].zero_grad()
            (torch.exp(-s[t]) * losses[t] + s[t]).backward()
            optimizers[t].step()
        if normalize:
            expected *= present.sum() / expected.sum()
        found = balancing.weights(state, mask(losses, present), present)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert min(abs(p.item()) for p in s) > 0.5  # they did learn


def test_uncertainty_starts_without_weights():
    balancing = Uncertainty()
    weights = balancing.weights(balancing.start(3), torch.tensor([5.0, 0.1, NAN]), ALL)
    assert weights.dtype is torch.float32
    assert weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize("normalize", [False, True])
def test_uncertainty_rests_where_weighted_losses_are_one(normalize):
    balancing = Uncertainty(normalize=normalize)
    state = balancing.start(3)
    losses = torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64)
    for _ in range(2000):
        balancing.weights(state, losses, ALL)
    weights = balancing.weights(state, losses, ALL)
    torch.testing.assert_close(state["log_variances"].exp(), losses, rtol=1e-3, atol=0)
    expected = 1 / losses if not normalize else 3 / losses / (1 / losses).sum()
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=0)


def test_uncertainty_normalized_has_a_mean_of_one_over_those_present():
    balancing = Uncertainty(learning_rate=0.5, normalize=True)
    state = balancing.start(3)
    for losses, _, present in draw():
        weights = balancing.weights(state, mask(losses, present), present)
        assert float(weights[present].mean()) == pytest.approx(1)


def test_uncertainty_has_no_use_for_gradients():
    with pytest.raises(AssertionError, match="weighs losses"):
        Uncertainty().combine({}, torch.ones(1, 2), torch.ones(1), ALL[:1], torch.Generator())


# GradNorm.


def combine(balancing, state, jacobian, losses, present):
    rows = jacobian[present]
    return balancing.combine(state, rows, mask(losses, present), present, torch.Generator())


def algorithm(w, initial, optimizers, jacobian, losses, present, alpha):
    """A step of algorithm 1 on the tasks there are, the norms differentiated by autograd."""
    there = present.nonzero().flatten().tolist()
    direction = torch.stack([w[t].detach() * jacobian[t] for t in there]).sum(dim=0) / len(there)
    for t in there:
        initial.setdefault(t, float(losses[t]))
    norms = [torch.linalg.vector_norm(w[t] * jacobian[t]) for t in there]
    mean_norm = float(torch.stack(norms).detach().mean())
    ratios = [float(losses[t]) / initial[t] for t in there]
    loss = torch.zeros((), dtype=torch.float64)
    for norm, ratio in zip(norms, ratios, strict=True):
        rate = ratio / (sum(ratios) / len(there))
        loss = loss + (norm - mean_norm * rate**alpha).abs()
    total = sum(w[t].item() for t in there)
    for t in there:
        optimizers[t].zero_grad()
    loss.backward()
    for t in there:
        optimizers[t].step()
    with torch.no_grad():
        moved = sum(w[t].item() for t in there)
        for t in there:
            w[t].mul_(total / moved)
    return direction


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_grad_norm_against_autograd(alpha):
    balancing = GradNorm(alpha=alpha, learning_rate=0.02)
    state = balancing.start(3)
    w, optimizers = learn([1.0, 1.0, 1.0], 0.02)
    initial: dict[int, float] = {}
    for losses, jacobian, present in draw():
        expected = algorithm(w, initial, optimizers, jacobian, losses, present, alpha)
        found = combine(balancing, state, jacobian, losses, present)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    weights = torch.stack([p.detach() for p in w])
    torch.testing.assert_close(state["weights"], weights, rtol=1e-9, atol=0)
    assert float(weights.max()) > 1.2
    assert float(weights.sum()) == pytest.approx(3)


def test_grad_norm_starts_as_the_mean():
    balancing = GradNorm()
    jacobian = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    found = combine(balancing, balancing.start(3), jacobian, torch.ones(3), ALL)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, jacobian.mean(dim=0))


def run(balancing, norms, losses, steps=600):
    """Return the mean weights over the last 100 steps of gradients of constant size."""
    state = balancing.start(len(norms))
    jacobian = torch.diag(torch.tensor(norms, dtype=torch.float64))
    kept = []
    for _ in range(steps):
        combine(balancing, state, jacobian, torch.tensor(losses), ALL[: len(norms)])
        kept.append(state["weights"].clone())
        assert float(kept[-1].min()) > 0
    return torch.stack(kept[-100:]).mean(dim=0), kept


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_grad_norm_makes_norms_equal_where_rates_are(size):
    norms = [1.0 * size, 2.0 * size, 4.0 * size]
    weights, _ = run(GradNorm(), norms, [1.0, 1.0, 1.0])
    expected = torch.tensor([12 / 7, 6 / 7, 3 / 7], dtype=torch.float64)  # of sum 3, as 1 / norm
    torch.testing.assert_close(weights, expected, rtol=0.1, atol=0)


def test_grad_norm_pushes_a_task_that_lags():
    balancing = GradNorm(alpha=1.0)
    state = balancing.start(2)
    jacobian, there = torch.eye(2, dtype=torch.float64), ALL[:2]
    combine(balancing, state, jacobian, torch.tensor([1.0, 1.0]), there)
    kept = []
    for _ in range(600):
        combine(balancing, state, jacobian, torch.tensor([0.9, 0.3]), there)
        kept.append(state["weights"].clone())
    # r is 1.5 and 0.5 times their mean, so the norms come to the ratio 3 : 1.
    expected = torch.tensor([1.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(kept[-100:]).mean(dim=0), expected, rtol=0.1, atol=0)


def test_grad_norm_keeps_weights_positive_however_unlike_the_gradients():
    _, kept = run(GradNorm(learning_rate=0.3), [1e-4, 1.0, 1e4], [1.0, 1.0, 1.0])
    assert min(float(weights.min()) for weights in kept) < 0.01  # it did come near
    for weights in kept:
        assert float(weights.sum()) == pytest.approx(3)


@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
def test_grad_norm_survives_a_loss_or_gradient_of_zero(losses):
    weights, _ = run(GradNorm(), [0.0, 1.0, 2.0], losses, steps=20)
    assert weights.isfinite().all()


def test_grad_norm_alone_in_a_step_nothing_moves():
    balancing = GradNorm()
    state = balancing.start(3)
    alone = torch.tensor([False, True, False])
    jacobian = torch.ones(3, 4, dtype=torch.float64)
    for loss in (3.0, 2.0, 1.0):
        found = combine(balancing, state, jacobian, torch.full((3,), loss), alone)
        assert torch.equal(found, jacobian[1])
    assert state["weights"].tolist() == [1, 1, 1]
    assert torch.equal(state["initial_losses"].isnan(), ~alone)
    assert float(state["initial_losses"][1]) == 3


# Both.


def step_of(balancing, state, losses, jacobian, present):
    if balancing.needs_jacobian:
        return combine(balancing, state, jacobian, losses, present)
    return balancing.weights(state, mask(losses, present), present)


@pytest.fixture(params=[Uncertainty(), GradNorm()], ids=["uncertainty", "grad_norm"])
def balancing(request):
    return request.param


def test_an_absent_task_does_not_move(balancing):
    state = balancing.start(3)
    for losses, jacobian, present in draw():
        before = {name: tensor.clone() for name, tensor in state.items()}
        step_of(balancing, state, losses, jacobian, present)
        for name, tensor in state.items():
            kept = tensor[~present]
            torch.testing.assert_close(
                kept, before[name][~present], rtol=0, atol=0, equal_nan=True, msg=name
            )
        moved = state["adam_steps"] - before["adam_steps"]
        assert moved.tolist() == present.double().tolist()


def test_a_saved_state_goes_on_as_if_nothing_had_been(balancing):
    whole, halves = balancing.start(3), balancing.start(3)
    assert all(t.dtype is torch.float64 and t.shape == (3,) for t in whole.values())
    for step, batch in enumerate(draw()):
        if step == 13:
            halves = safetensors.torch.load(safetensors.torch.save(halves))
        one, other = (step_of(balancing, state, *batch) for state in (whole, halves))
        assert torch.equal(one, other)


def test_neither_losses_nor_gradients_are_changed(balancing):
    losses, jacobian, present = next(draw())
    losses, rows = mask(losses, present), jacobian[present]
    kept = losses.clone(), rows.clone()
    if balancing.needs_jacobian:
        balancing.combine(balancing.start(3), rows, losses, present, torch.Generator())
    else:
        balancing.weights(balancing.start(3), losses, present)
    torch.testing.assert_close((losses, rows), kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, math.inf])
@pytest.mark.parametrize("part", [Uncertainty, GradNorm])
def test_a_rate_out_of_range(part, value):
    with pytest.raises(InputError, match=f"{part.kind}: learning_rate must be positive, not"):
        part(learning_rate=value)


@pytest.mark.parametrize("value", [-0.1, NAN, math.inf])
def test_an_alpha_out_of_range(value):
    with pytest.raises(InputError, match="grad_norm: alpha must be at least 0, not"):
        GradNorm(alpha=value)
