"""The tasks' shares of an optimizer step, for a balancing to weigh or combine."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coadapt._seeds import named_generator
from coadapt.balancing import AbstractBalancing


class BalancedStep:
    """Collects a step's losses or gradients by task and puts the balanced gradient in place.

    The stock backward pass leaves in each parameter the gradient of the mean over tasks, and of
    the regularizers' terms; a balancing's direction replaces that mean and nothing else.

    Args:
        balancing: how.
        shared: the parameters that several tasks train; the others keep their gradients.
        num_tasks: T.
        seed: of what the balancing draws.
    """

    def __init__(
        self,
        balancing: AbstractBalancing,
        shared: Sequence[nn.Parameter],
        num_tasks: int,
        *,
        seed: int,
    ) -> None:
        self._balancing, self._shared, self._seed = balancing, tuple(shared), seed
        self.state = balancing.start(num_tasks)
        self._losses = torch.zeros(num_tasks)
        self._present = torch.zeros(num_tasks, dtype=torch.bool)
        self._factors = torch.ones(num_tasks)
        self._jacobian: Tensor | None = None

    def begin(self, present: Tensor, device: torch.device) -> None:
        """Start a step that has rows of these tasks, (T,) bool, on any rank."""
        self._present = present.to(device)
        self._losses = torch.zeros(len(present), device=device)
        if self._balancing.needs_jacobian:
            width = sum(p.numel() for p in self._shared)
            self._jacobian = torch.zeros(int(present.sum()), width, device=device)
            return
        ahead = {name: value.clone() for name, value in self.state.items()}
        self._factors = self._balancing.weights(ahead, self._losses, self._present)

    def add(self, losses: Tensor, here: Sequence[int]) -> Tensor:
        """Take a micro-batch's part of the tasks' mean losses and return what to add to its loss.

        Args:
            losses: (T,) attached to the graph, which is kept; they sum to the step's mean losses.
            here: the tasks of the micro-batch; the others' part is zero.
        """
        self._losses += losses.detach()
        if self._jacobian is None:
            return (losses * (self._factors - 1.0)).sum() / self._present.sum()
        rows = torch.cumsum(self._present, 0) - 1
        for task in here:
            found = torch.autograd.grad(
                losses[task], self._shared, retain_graph=True, allow_unused=True
            )
            parts = zip(found, self._shared, strict=True)
            flat = [torch.zeros_like(p) if g is None else g for g, p in parts]
            self._jacobian[rows[task]] += torch.cat([part.flatten() for part in flat])
        return losses.sum() * 0.0

    @torch.no_grad()
    def finish(self, over_ranks: Callable[[Tensor], Tensor], step: int) -> None:
        """Balance the gradients that the step's backward passes left, and move the state.

        Args:
            over_ranks: sums a tensor over the ranks.
            step: the step's number, which decides what is drawn.
        """
        losses = over_ranks(self._losses)
        if self._jacobian is None:
            self._balancing.weights(self.state, losses, self._present)
            return
        jacobian = over_ranks(self._jacobian)
        drawn = named_generator(self._seed, "balancing", str(step))
        direction = self._balancing.combine(self.state, jacobian, losses, self._present, drawn)
        change = direction - jacobian.mean(dim=0)
        sizes = [p.numel() for p in self._shared]
        for parameter, part in zip(self._shared, change.split(sizes), strict=True):
            if parameter.grad is not None:
                parameter.grad += part.view_as(parameter)
        self._jacobian = None

    def to_plain(self) -> dict[str, list[Any]]:
        """Return the state as plain data; a value that is not there yet is None."""
        return {
            name: [None if math.isnan(value) else value for value in tensor.tolist()]
            for name, tensor in self.state.items()
        }

    def take_plain(self, plain: dict[str, list[Any]]) -> None:
        """Go on from what :meth:`to_plain` returned."""
        for name, values in plain.items():
            numbers = [math.nan if value is None else value for value in values]
            self.state[name].copy_(torch.tensor(numbers, dtype=torch.float64))
