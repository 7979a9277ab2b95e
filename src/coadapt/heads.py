"""A linear head a task on the pooled vector of its rows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coadapt._seeds import named_generator
from coadapt.adapters import Route
from coadapt.tasks import Task

_INIT_STD = 0.02  # as transformers' encoders draw their classifiers


class TaskHeads(nn.Module):
    """Linear heads, run side by side on a batch of rows of any tasks.

    A regression's head computes in the unit of its labels, ``y = center + scale (w x + b)``, and
    its loss is in that unit too: squared errors of labels from 0 to 5, or in thousands, would drown
    the other tasks' cross-entropies in what is shared.

    Each head's weight is a parameter of its own, in float32, drawn from the stream of its task's
    name; all of them are in the graph of every training step.

    Args:
        tasks: the suite's tasks in order.
        hidden_size: d.
        seed: of the init, N(0, 0.02); biases start at 0.
    """

    def __init__(self, tasks: tuple[Task, ...], hidden_size: int, seed: int) -> None:
        super().__init__()
        self.names = tuple(task.name for task in tasks)
        self.sizes = tuple(task.num_outputs for task in tasks)
        self.weight = nn.ParameterList()
        self.bias = nn.ParameterList()
        for task, size in zip(tasks, self.sizes, strict=True):
            generator = named_generator(seed, "head", task.name)
            drawn = torch.randn(size, hidden_size, generator=generator) * _INIT_STD
            self.weight.append(nn.Parameter(drawn))
            self.bias.append(nn.Parameter(torch.zeros(size)))
        self.regression: Tensor
        regression = torch.tensor([task.kind == "regression" for task in tasks])
        self.register_buffer("regression", regression, persistent=False)
        # In float64, or a center that is large beside its scale would lose the scale's digits.
        units = torch.tensor([task.unit or (0.0, 1.0) for task in tasks], dtype=torch.float64)
        self.units: Tensor
        self.register_buffer("units", units.reshape(-1, 2), persistent=False)

    def forward(self, pooled: Tensor, route: Route) -> Tensor:
        """Return (B, C) outputs, C the widest head at hand; -inf right of a row's own outputs.

        Args:
            pooled: (B, d) float32 or wider.
            route: the rows' tasks.
        """
        present = range(len(self.sizes)) if route.every_block else route.present
        task_ids = route.rows(len(pooled))
        if not present:
            return pooled.new_zeros(0, max(self.sizes))
        weight = torch.cat([self.weight[t] for t in present]).to(pooled.dtype)
        bias = torch.cat([self.bias[t] for t in present]).to(pooled.dtype)
        every = F.linear(pooled, weight, bias)
        sizes = torch.zeros(len(self.sizes), dtype=torch.long, device=pooled.device)
        sizes[list(present)] = torch.tensor([self.sizes[t] for t in present], device=pooled.device)
        starts = (sizes.cumsum(0) - sizes)[task_ids]
        column = torch.arange(int(sizes.max()), device=pooled.device)
        inside = column < sizes[task_ids][:, None]
        own = every.gather(1, (starts[:, None] + column).clamp_max(every.shape[1] - 1))
        center, scale = self.units[task_ids].T.to(own.dtype)[..., None]
        return (center + scale * own).masked_fill(~inside, float("-inf"))

    def row_losses(self, outputs: Tensor, labels: Tensor, task_ids: Tensor) -> Tensor:
        """Return (B,) losses: cross-entropy in nats; of a regression the squared error in its unit.

        Args:
            outputs: (B, C) of :meth:`forward`.
            labels: (B,) class indices or values, as floats.
            task_ids: (B,).
        """
        regression = self.regression[task_ids]
        # A regression row has one finite output, so its cross-entropy to class 0 is exactly 0.
        classes = torch.where(regression, torch.zeros_like(labels), labels).long()
        cross_entropy = F.cross_entropy(outputs, classes, reduction="none")
        scale = self.units[task_ids, 1].to(outputs.dtype)
        squared = ((outputs[:, 0] - labels.to(outputs.dtype)) / scale) ** 2
        return torch.where(regression, squared, cross_entropy)


def without_unit(task: Task, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Return a head, weight (C, d) and bias (C,), as one whose outputs are labels as they are."""
    center, scale = task.unit or (0.0, 1.0)
    return {"weight": weight * scale, "bias": bias * scale + center}


def with_unit(task: Task, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Return what :func:`without_unit` was made of."""
    center, scale = task.unit or (0.0, 1.0)
    return {"weight": weight / scale, "bias": (bias - center) / scale}
