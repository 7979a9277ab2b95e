"""The tasks' own parts of prompts held orthogonal: TA-LoRA's regularizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor

from coadapt.regularizers.base import (
    AbstractRegularizer,
    Captured,
    FastWeights,
    LayerFactors,
    Need,
)


@dataclass(frozen=True, kw_only=True)
class TaskOrthogonality(AbstractRegularizer):
    r"""The squared cosine of the tasks' matrices A_i = U_i V_i', meant over pairs and layers.

    .. math:: \frac{1}{|\mathrm{layers}|\,\binom{T}{2}} \sum_{\ell} \sum_{i < j}
              \frac{\|U_i^\top U_j\|_F^2}{\|U_i\|_F^2\, \|U_j\|_F^2}

    At rank 1 it is :math:`\cos^2(u_i, u_j)`. TA-LoRA (arXiv 2505.00009) penalises
    :math:`A_i^\top A_j`, whose norm is :math:`|u_i^\top u_j|\,\|v_i\|\,\|v_j\|` at rank 1: it holds
    the u's apart, not what they write. Normalised, so that shrinking is not rewarded; the form and
    the weight are our reading. Reachable only with an inner rank of T q or more.

    Exactly 0 for a single task. It does not depend on the batch, and a step moves only the parts of
    its own tasks.

    Args:
        weight: lambda.
        of: ``u``; ``v``, the same of the V's, which holds the prompts' directions apart; or
            ``product``, :math:`\langle A_i, A_j \rangle_F^2` by the squared norms.
    """

    kind: Literal["task_orthogonality"] = "task_orthogonality"
    weight: float = 1e-2
    of: Literal["u", "v", "product"] = "u"

    needs: ClassVar[Need] = Need.PROMPTS

    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        """Nothing to refuse: a single task has a term of 0."""

    def select(self, modules: Sequence[str]) -> tuple[str, ...]:
        return tuple(modules)

    def loss(self, captured: Captured) -> Tensor:
        with torch.autocast(captured.valid.device.type, enabled=False):
            terms = [self._of_layer(fast) for fast in captured.prompts.values() if len(fast.u) > 1]
            return torch.stack(terms).mean() if terms else captured.zero()

    def _of_layer(self, fast: FastWeights) -> Tensor:
        u, v = torch.stack(list(fast.u)), torch.stack(list(fast.v)).mT  # (T, k, q), (T, d, q)
        pairs = torch.tensor(list(combinations(range(len(u)), 2)), device=u.device)
        first, second = pairs[:, 0], pairs[:, 1]
        inner_u, inner_v = (x[first].mT @ x[second] for x in (u, v))  # (pairs, q, q)
        if self.of == "product":
            overlap = (inner_u * inner_v).sum(dim=(1, 2)) ** 2
            norm = ((u.mT @ u) * (v.mT @ v)).sum(dim=(1, 2))
        else:
            x, inner = (u, inner_u) if self.of == "u" else (v, inner_v)
            overlap, norm = (inner**2).sum(dim=(1, 2)), (x**2).sum(dim=(1, 2))
        # A part of norm 0 has no direction to hold apart.
        return (overlap / (norm[first] * norm[second]).clamp_min(1e-30)).mean()
