"""Adam for a vector with an entry a task, each with a clock of its own."""

import torch
from torch import Tensor

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # torch's, and the paper's


def start_adam(num_tasks: int) -> dict[str, Tensor]:
    """Return the state of Adam before the first step."""
    names = ("adam_mean", "adam_square", "adam_steps")
    return {name: torch.zeros(num_tasks, dtype=torch.float64) for name in names}


def adam_step(
    state: dict[str, Tensor], gradient: Tensor, present: Tensor, learning_rate: float
) -> Tensor:
    """Return the change of each entry, 0 where a task is absent; the state moves in place.

    Adam: A Method for Stochastic Optimization (arXiv 1412.6980), algorithm 1. An absent task keeps
    its moments and its step count, as if it were optimized alone.

    Args:
        state: holds the tensors of :func:`start_adam`.
        gradient: (T,) float64; anything where a task is absent.
        present: (T,) bool.
        learning_rate: positive.
    """
    mean, square, steps = (state[name] for name in ("adam_mean", "adam_square", "adam_steps"))
    g = gradient[present]
    steps[present] += 1
    mean[present] = _BETA_1 * mean[present] + (1 - _BETA_1) * g
    square[present] = _BETA_2 * square[present] + (1 - _BETA_2) * g**2
    m = mean[present] / (1 - _BETA_1 ** steps[present])
    v = square[present] / (1 - _BETA_2 ** steps[present])
    change = torch.zeros_like(mean)
    change[present] = -learning_rate * m / (v.sqrt() + _EPSILON)
    return change
