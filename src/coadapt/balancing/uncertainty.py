"""Weights from the tasks' homoscedastic uncertainty."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt.balancing._adam import adam_step, start_adam
from coadapt.balancing.base import AbstractLossBalancing, State


@dataclass(frozen=True, kw_only=True)
class Uncertainty(AbstractLossBalancing):
    r"""A log-variance s_t a task is learned, and weighs its loss: the lower the loss, the more.

    .. math:: \min_{\theta, s} \sum_t e^{-s_t} L_t(\theta) + s_t, \qquad s_t = 0 \text{ at start}

    Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics (Kendall,
    Gal and Cipolla, arXiv 1705.07115), section 3. For a constant loss, e^{s_t} comes to rest at
    L_t, so that every weighted loss tends to 1. Deviations:

    - One form for tasks of all kinds. The paper derives half of this for a squared error, which has
      the same minimum, and e^{-s} L + s/2 for a cross-entropy, whose minimum is e^s = 2 L.
    - s is moved by Adam at a rate of its own, where the paper trains it with the network.

    As a loss falls towards 0 its weight grows without bound, and with it the size of the whole
    step; ``normalize`` keeps the step's. Not for losses that can be negative or zero.

    Args:
        learning_rate: of s, positive: about the most that s, in nats, moves in a step.
        normalize: divide the weights by their mean over the tasks of the step. Not in the paper.

    Raises:
        InputError: if the learning rate is not positive.

    Example:
        >>> import torch
        >>> balancing = Uncertainty()
        >>> state = balancing.start(2)
        >>> losses, present = torch.tensor([0.5, 2.0]), torch.tensor([True, True])
        >>> for _ in range(500):
        ...     weights = balancing.weights(state, losses, present)
        >>> [round(weight, 2) for weight in weights.tolist()]
        [2.0, 0.5]
    """

    kind: Literal["uncertainty"] = "uncertainty"
    learning_rate: float = 0.025  # as GradNorm's, so that the two compare
    normalize: bool = False

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"uncertainty: learning_rate must be positive, not {self.learning_rate}"
            )

    def start(self, num_tasks: int) -> State:
        """Start with s = 0, so with weights of 1."""
        return {
            "log_variances": torch.zeros(num_tasks, dtype=torch.float64),
            **start_adam(num_tasks),
        }

    @torch.no_grad()
    def weights(self, state: State, losses: Tensor, present: Tensor) -> Tensor:
        """Return e^{-s}, then take a step on s."""
        s = state["log_variances"]
        there = present.cpu()
        weights = torch.where(there, (-s).exp(), 0.0)
        gradient = 1 - weights * losses.to(s)
        s += adam_step(state, gradient, there, self.learning_rate)
        if self.normalize:
            weights = weights * (there.sum() / weights.sum())
        return weights.to(losses)
