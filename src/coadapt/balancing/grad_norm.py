"""Weights that let the tasks' gradients be of comparable size."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from coadapt._errors import InputError
from coadapt.balancing._adam import adam_step, start_adam
from coadapt.balancing.base import AbstractGradientBalancing, State

_LEAST_WEIGHT = 1e-3
_LEAST_LOSS = 1e-12


@dataclass(frozen=True, kw_only=True)
class GradNorm(AbstractGradientBalancing):
    r"""A weight w_t a task is learned: slow tasks get larger gradients, fast ones smaller.

    .. math::
        L_{grad} = \sum_t \left| G_t - \bar{G}\, r_t^\alpha \right|, \qquad
        G_t = w_t \lVert \nabla L_t \rVert, \qquad
        r_t = \frac{L_t / L_t(0)}{\operatorname{mean}_i L_i / L_i(0)}

    GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks (Chen et
    al., arXiv 1711.02257), equations 1 and 2, algorithm 1. The mean norm and r are constants when
    L_grad is differentiated. The step is taken with the weights as they were; then they move and
    are scaled back to the sum they had. Deviations:

    - The norm is that of the gradient of all shared parameters, which is there anyway; the paper
      takes one layer's, to save time.
    - The weights are moved by Adam, so that the rate means the same whatever the gradients' size;
      algorithm 1 names no optimizer.
    - Only the tasks of the step move, and keep the sum of their weights. With all tasks in every
      step this is the paper's: the weights sum to T.
    - A weight stays at least 0.001 before it is scaled; the paper does not say what keeps it
      positive.
    - The direction is the mean of w_t times the gradient of t, where the paper has the sum.

    L_t(0) is the loss of the first step that had the task, noise included. Not for losses that can
    be negative, nor for tasks whose first loss is near its lowest.

    Args:
        alpha: how strongly a task that lags is pushed, at least 0; 0 asks for equal norms.
        learning_rate: of the weights, positive: about the most that one moves in a step.

    Raises:
        InputError: if a number is out of its range.
    """

    kind: Literal["grad_norm"] = "grad_norm"
    alpha: float = 1.5  # what the paper takes on NYUv2
    learning_rate: float = 0.025

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"grad_norm: alpha must be at least 0, not {self.alpha}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"grad_norm: learning_rate must be positive, not {self.learning_rate}")

    def start(self, num_tasks: int) -> State:
        """Start with weights of 1; a task's initial loss is nan until it is seen."""
        return {
            "weights": torch.ones(num_tasks, dtype=torch.float64),
            "initial_losses": torch.full((num_tasks,), math.nan, dtype=torch.float64),
            **start_adam(num_tasks),
        }

    @torch.no_grad()
    def combine(
        self,
        state: State,
        jacobian: Tensor,
        losses: Tensor,
        present: Tensor,
        generator: Generator,
    ) -> Tensor:
        """Return mean_t w_t g_t, then take a step on w."""
        w, there = state["weights"], present.cpu()
        assert len(jacobian) == there.sum(), "a row for each task of the step"
        direction = (w[there].to(jacobian) @ jacobian) / len(jacobian)

        initial = state["initial_losses"]
        initial[:] = torch.where(there & initial.isnan(), losses.to(w), initial)
        ratio = losses.to(w)[there] / initial[there].clamp(min=_LEAST_LOSS)
        r = ratio / ratio.mean().clamp(min=_LEAST_LOSS)
        wide = torch.promote_types(jacobian.dtype, torch.float32)
        norms = torch.linalg.vector_norm(jacobian, dim=1, dtype=wide).to(w)
        G = w[there] * norms
        gradient = torch.zeros_like(w)
        gradient[there] = (G - G.mean() * r**self.alpha).sign() * norms

        total = w[there].sum()
        w += adam_step(state, gradient, there, self.learning_rate)
        w[there] = w[there].clamp(min=_LEAST_WEIGHT)
        w[there] *= total / w[there].sum()
        return direction
