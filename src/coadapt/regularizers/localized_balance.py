"""LoRAMoE's localized balancing constraint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt.regularizers.base import AbstractRegularizer, Captured, LayerFactors, Need


@dataclass(frozen=True, kw_only=True)
class LocalizedBalance(AbstractRegularizer):
    r"""Experts of a task's own type may be used more than the others; beyond that all equally.

    .. math:: \frac{\operatorname{var}(I Q)}{\operatorname{mean}(I Q)^2}, \quad
        I_{nm} = 1 \pm \delta

    over experts n and the batch's rows m, with Q the expert's mean probability over the row's
    tokens and plus where the expert's type is the row's task's; summed over modules (LoRAMoE, arXiv
    2312.09979, the localized balancing constraint).

    The paper divides the variance by the mean, the authors' code by its square, which is the
    default: it has no unit. The code sums over a row's tokens, padding included, so that long rows
    count for more; here Q is a mean over tokens that are none of padding.

    Not for packed batches, which have no rows.

    Args:
        weight: of the sum over modules.
        delta: from 0, experts' types do not matter, to 1.
        task_types: a number for each of the suite's tasks, in order.
        expert_types: a number for each expert, in order; which of them an expert has does not
            matter otherwise.
        dispersion: ``cv2``, the squared coefficient of variation, or ``var_over_mean``.
    """

    needs: ClassVar[Need] = Need.ROUTING

    kind: Literal["localized_balance"] = "localized_balance"
    weight: float = 0.01
    delta: float = 0.1
    task_types: tuple[int, ...] = ()
    expert_types: tuple[int, ...] = ()
    dispersion: Literal["cv2", "var_over_mean"] = "cv2"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.delta <= 1:
            raise InputError(f"delta must lie in [0, 1], not {self.delta}")
        for name, of in (("task_types", "task"), ("expert_types", "expert")):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; it needs a number for each {of}, as in [0, 1]")

    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        num_blocks = len(next(iter(layers.values())).B)
        for name, number, of in (
            ("task_types", num_tasks, "tasks"),
            ("expert_types", num_blocks, "experts"),
        ):
            if len(getattr(self, name)) != number:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} numbers, and there are {number} {of}"
                )

    def select(self, modules: Sequence[str]) -> tuple[str, ...]:
        return tuple(modules)

    def loss(self, captured: Captured) -> Tensor:
        if captured.packed:
            raise InputError(
                "localized_balance compares rows, which stand in one another's sequence in a "
                "packed batch; take packing: false"
            )
        rows = captured.valid.any(dim=1)
        valid, sign_NK = captured.valid[rows], self._signs(captured.task_ids[rows])
        if sign_NK.numel() < 2:
            return captured.zero()
        terms = []
        for name, routing in captured.routing.items():
            p_NSK = routing.probabilities[rows]
            if p_NSK.shape[-1] != len(self.expert_types):
                raise InputError(
                    f"expert_types has {len(self.expert_types)} numbers, and module '{name}' has "
                    f"{p_NSK.shape[-1]} experts"
                )
            q_NK = p_NSK.masked_fill(~valid[..., None], 0.0).sum(dim=1) / valid.sum(1)[:, None]
            terms.append(self._dispersion(q_NK + self.delta * (sign_NK * q_NK)))
        return torch.stack(terms).sum()

    def _signs(self, task_ids: Tensor) -> Tensor:
        """Return (N, K), 1 where an expert's type is the row's, -1 elsewhere."""
        known = len(self.task_types)
        if len(task_ids) and int(task_ids.max()) >= known:
            raise InputError(
                f"task_types has {known} numbers, and the batch has task {int(task_ids.max())} "
                "(from 0); it needs one for each of the suite's tasks"
            )
        device = task_ids.device
        types = torch.tensor(self.task_types, device=device)[task_ids]
        return 2 * (types[:, None] == torch.tensor(self.expert_types, device=device)).int() - 1

    def _dispersion(self, used_NK: Tensor) -> Tensor:
        variance, mean = used_NK.var(), used_NK.mean()
        # As in the authors' code; the mean is 0 where delta is 1 and every expert another's.
        return variance / ((mean.square() if self.dispersion == "cv2" else mean) + 1e-10)
