"""Align-LoRA by the maximum mean discrepancy over several kernels."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coadapt._errors import InputError
from coadapt.regularizers.pooling import AbstractAlignment, Samples

# Of the authors' code; they play the role of variances.
_OFFICIAL = (
    *(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0),
    *(100.0, 1e3, 1e4, 1e5, 1e6),
)
_NUM_MEDIANS = 5  # 1/4, 1/2, 1, 2 and 4 times the median
_LEAST_MEDIAN = 1e-6


@dataclass(frozen=True, kw_only=True)
class AlignMMD(AbstractAlignment):
    r"""Tasks' representations A x are drawn together, as distributions of any form.

    .. math:: MMD^2(i, j) = \bar k(i, i) + \bar k(j, j) - 2 \bar k(i, j), \quad
        k(x, y) = \sum_\sigma \exp(-\|x - y\|^2 / 2 \sigma)

    with :math:`\bar k(i, j)` the mean over pairs of samples of two tasks, as a mean over pairs of
    tasks and over modules ("Align, Don't Divide", arXiv 2508.05078, L_MK-MMD, which sums over
    pairs: ``reduction: sum_pairs``). Time and memory grow with the square of the samples; the
    defaults for ``max_modules`` and ``max_tokens`` bound them.

    The official bandwidths have a scale of their own, so the term also goes to zero where A shrinks
    and B grows, which aligns nothing; the median's follow the representations' scale.

    Not for a batch of one task, or of tasks with fewer than ``min_count`` samples each: it is zero.

    Args:
        weight: lambda.
        bandwidths: of the kernels. ``median``: 1/4, 1/2, 1, 2 and 4 times the (lower) median
            squared distance of a module's samples, all tasks' together, through which no gradient
            flows (at least 1e-6); a mean over kernels. ``official``: the 19 of the authors'
            code, from 1e-6 to 1e6; a sum over kernels.
        estimator: ``biased`` counts a sample's kernel with itself (the authors' code) and is at
            least 0; ``unbiased`` does not, and may be below 0.
    """

    kind: Literal["align_mmd"] = "align_mmd"
    weight: float = 0.15  # appendix K
    max_modules: int | None = 4
    max_tokens: int | None = 64
    bandwidths: Literal["median", "official"] = "median"
    estimator: Literal["biased", "unbiased"] = "biased"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.estimator == "unbiased" and self.min_count < 2:
            raise InputError(
                f"estimator: 'unbiased' compares a task's samples with each other, and min_count: "
                f"{self.min_count} lets tasks with one in; take at least 2"
            )

    def distances(self, samples: Samples) -> Tensor:
        d2_MGNN = _squared_distances(samples)
        if self.bandwidths == "median":
            kernel, of_itself = _median_kernel(d2_MGNN, samples.member), 1
        else:
            kernel, of_itself = _official_kernel(d2_MGNN), len(_OFFICIAL)
        n_GT = samples.counts
        w_GTN = samples.member / n_GT.clamp(min=1)[..., None]
        k_MGTT = w_GTN @ kernel @ w_GTN.mT
        within = k_MGTT.diagonal(dim1=-2, dim2=-1)
        if self.estimator == "unbiased":
            within = (n_GT * within - of_itself) / (n_GT - 1).clamp(min=1)
        return (within[..., :, None] + within[..., None, :] - 2 * k_MGTT).sum(dim=0)


def _squared_distances(samples: Samples) -> Tensor:
    """Return (M, G, N, N), 0 on the diagonal."""
    # Zeros up to the largest rank leave distances alone and make one tensor of all modules.
    width = max(samples.ranks)
    parts = samples.values.split(samples.ranks, dim=-1)
    x_MGNr = torch.stack([F.pad(part, (0, width - part.shape[-1])) for part in parts])
    # A common shift changes no distance, and keeps digits in the difference of squares.
    x_MGNr = x_MGNr - x_MGNr.detach().mean(dim=-2, keepdim=True)
    gram = x_MGNr @ x_MGNr.mT
    square = gram.diagonal(dim1=-2, dim2=-1)
    return (square[..., :, None] + square[..., None, :] - 2 * gram).clamp(min=0)


def _median_kernel(d2_MGNN: Tensor, member: Tensor) -> Tensor:
    """Return the mean of the kernels around the median."""
    compared_GN = member.any(dim=1)
    pairs = (compared_GN[:, :, None] & compared_GN[:, None, :]).triu(diagonal=1)
    median_M = d2_MGNN.detach()[:, pairs].median(dim=-1).values.clamp(min=_LEAST_MEDIAN)
    # The widest kernel; each of the others is the square of the one before.
    kernel = torch.exp(-d2_MGNN / (8 * median_M[:, None, None, None]))
    total = kernel
    for _ in range(_NUM_MEDIANS - 1):
        kernel = kernel.square()
        total = total + kernel
    return total / _NUM_MEDIANS


def _official_kernel(d2_MGNN: Tensor) -> Tensor:
    """Return the sum of the kernels of the authors' code."""
    total = torch.zeros_like(d2_MGNN)
    for sigma in _OFFICIAL:
        total = total + torch.exp(-d2_MGNN / (2 * sigma))
    return total
