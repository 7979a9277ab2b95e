"""Align-LoRA by the Kullback-Leibler divergence."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt.regularizers.pooling import AbstractAlignment, Samples

# Of the variances, in squared units of the representation.
_LEAST_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class AlignKL(AbstractAlignment):
    r"""Tasks' representations A x, each a diagonal Gaussian, are drawn together.

    .. math:: \tfrac12 [KL(p_i \| p_j) + KL(p_j \| p_i)] = \tfrac14 \sum_d
        \frac{(v_{id} - v_{jd})^2 + (m_{id} - m_{jd})^2 (v_{id} + v_{jd})}{v_{id} v_{jd}}

    with a task's means m and variances v over its samples in the batch, as a mean over pairs of
    tasks and over modules ("Align, Don't Divide", arXiv 2508.05078, L_KL). The variances divide by
    n and are raised by a floor, so that a constant dimension does no harm. Scaling a module's
    representation changes nothing but for the floor, so shrinking A is no way out.

    The paper sums over pairs (``reduction: sum_pairs``) and does not say what a sample is. Its
    code compares position by position, over padding too, with variances that divide by n - 1;
    ``pool: position`` is the nearest.

    Not for a batch of one task, or of tasks with fewer than ``min_count`` samples each: it is zero.

    Args:
        weight: lambda.
        floor: what is added to a variance, as a part of the variance of all samples that are
            compared (at a position), which is averaged over the module's dimensions; at least 0.
            Gradients do not flow through it, and it is never less than 1e-6.
    """

    kind: Literal["align_kl"] = "align_kl"
    weight: float = 0.1  # appendix K
    floor: float = 1e-3

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not self.floor >= 0:
            raise InputError(f"floor must be at least 0, not {self.floor}")
        if self.max_tokens is not None and self.pool != "token":
            raise InputError(
                f"max_tokens: {self.max_tokens} has no effect on pool: '{self.pool}', which has a "
                "sample a row; take max_tokens: null, or pool: token"
            )

    def distances(self, samples: Samples) -> Tensor:
        m_GTR, v_GTR = _moments(samples)
        v_GTR = v_GTR + self._floor(samples, m_GTR.detach(), v_GTR.detach())
        m_i, m_j = m_GTR[:, :, None], m_GTR[:, None, :]
        v_i, v_j = v_GTR[:, :, None], v_GTR[:, None, :]
        apart = (v_i - v_j).square() + (m_i - m_j).square() * (v_i + v_j)
        return 0.25 * (apart / (v_i * v_j)).sum(dim=-1)

    def _floor(self, samples: Samples, m_GTR: Tensor, v_GTR: Tensor) -> Tensor:
        """Return (G, 1, R), a value a module and group."""
        share_GT1 = (samples.counts / samples.counts.sum(dim=-1, keepdim=True))[..., None]
        mean_G1R = (share_GT1 * m_GTR).sum(dim=1, keepdim=True)
        v_G1R = (share_GT1 * (v_GTR + (m_GTR - mean_G1R).square())).sum(dim=1, keepdim=True)
        floors = [
            part.mean(dim=-1, keepdim=True).expand_as(part)
            for part in v_G1R.split(samples.ranks, dim=-1)
        ]
        return (self.floor * torch.cat(floors, dim=-1)).clamp(min=_LEAST_FLOOR)


def _moments(samples: Samples) -> tuple[Tensor, Tensor]:
    """Return the means and the variances, which divide by n, of every task, each (G, T, R)."""
    member, n_GT1 = samples.member, samples.counts.clamp(min=1)[..., None]
    m_GTR = member @ samples.values / n_GT1
    # Around the mean, not as a difference of squares: the means may be large.
    around_GNR = samples.values - member.mT @ m_GTR
    return m_GTR, member @ around_GNR.square() / n_GT1
