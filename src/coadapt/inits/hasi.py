"""HASI, ThanoRA's start: a block a task in the directions that its inputs use, and one for all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from coadapt._errors import InputError
from coadapt.adapters import AbstractAdapted
from coadapt.inits.base import (
    AbstractStatisticalInit,
    BlockStart,
    Spectra,
    Statistics,
    fill_default,
    float_weight,
    projected,
    put,
    whitened,
)
from coadapt.planning import COOPERATIVE, InfeasibleBudget, Plan
from coadapt.spectra import Spectrum, leading, spectral_entropy_of


@dataclass(frozen=True, kw_only=True)
class Hasi(AbstractStatisticalInit):
    r"""Heterogeneity-aware subspace initialisation of ThanoRA (arXiv 2505.18640, section 3.2).

    With :math:`C_t` the mean of x x' over the valid tokens of task t (equation 2) and
    :math:`W C_t = U S V'` (equation 3), task t's block starts as

    .. math:: B_t A_t = U_{r_t} S_{r_t} V_{r_t}' C_t^{-1} = U_{r_t} U_{r_t}' W

    (equation 4; the identity on the right needs no inverse). Its rank in each map comes from the
    entropy of the top R singular values (equation 5) by a softmax over the tasks (equation 7); the
    cooperative block (equation 8) starts as LoRA does. Every row goes through all blocks.

    What the text leaves open, and what is taken: the start is subtracted, as in CorDA and PiSSA;
    entropies are normalised, as in its figure; ranks sum exactly.

    **gamma.** "All components are further scaled by gamma" has four readings: (i) the structure's
    scale s = gamma, the default of recipe ``thanora``; (ii) ``factor_scale`` gamma, or (iii) its
    square root, with s = 1; (iv) s = gamma and ``factor_scale`` gamma^-1/2, which keeps s B A.

    Args:
        temperature: tau of the softmax, above 0; small values give one task nearly all.
        entropy: ``normalised`` by ln R, or ``raw``.
        min_rank: of a task's block; the larger of 1 and a quarter of an even share if None.
        rounding: ``exact`` gives each task the minimum and divides the rest by largest remainder;
            ``paper`` is max(min_rank, floor(...)), where what is left over goes to the cooperative
            block and what is too much is taken from the largest.
        balance: ``svd`` gives both factors of a block one norm; ``paper`` is B = U S^1/2,
            A = S^-1/2 U' W, whose norms, and so the weight of SPR, depend on the unit of C.
        orthogonalise: take each task's block, in the suite's order, from what the blocks before
            have left of W, within the q > R left singular vectors that are kept.
        factor_scale: of all factors, the cooperative block's too.
        subtract: whether the model starts as the base model. Without, it starts as
            W + s (a large part of W), as a literal reading has it.
    """

    kind: Literal["hasi"] = "hasi"
    temperature: float = 0.2
    entropy: Literal["normalised", "raw"] = "normalised"
    min_rank: int | None = None
    rounding: Literal["exact", "paper"] = "exact"
    balance: Literal["svd", "paper"] = "svd"
    orthogonalise: bool = False
    factor_scale: float = 1.0
    subtract: bool = True

    statistics: ClassVar[Statistics] = "tasks"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name, value in (("temperature", self.temperature), ("factor_scale", self.factor_scale)):
            if not value > 0:
                raise InputError(f"{name} must be positive, not {value}")
        if self.min_rank is not None and self.min_rank < 1:
            raise InputError(f"min_rank must be at least 1, not {self.min_rank}")

    @property
    def offset(self) -> bool:
        """Whether what the blocks start with is subtracted."""
        return self.subtract

    def decompose(
        self, W: Tensor, C: Tensor, rank: int, generator: Generator, near: Tensor | None = None
    ) -> Spectrum:
        """Return the largest triplets by a randomised decomposition."""
        return leading(W, C, rank, generator=generator, near=near)

    def refine(self, plan: Plan, spectra: Spectra) -> Plan:
        """Return the plan with the ranks that the entropies give each task in each map.

        Raises:
            InputError: if the plan has other blocks than one a task and ``cooperative``.
            InfeasibleBudget: if the minimum ranks exceed what the tasks' blocks have together.
        """
        tasks = [name for name in plan.blocks if name != COOPERATIVE]
        if len(plan.blocks) != len(plan.tasks) + 1 or set(tasks) != set(plan.tasks):
            raise InputError(
                f"init 'hasi' fills a block named after each task and one named '{COOPERATIVE}'; "
                f"the plan has {', '.join(plan.blocks)}. Drop the plan and give a budget"
            )
        budget = plan.budget - plan.blocks[COOPERATIVE].rank
        ranks: dict[str, dict[str, int]] = {}
        for module, found in spectra.items():
            given = self._allocate([found[task] for task in tasks], budget, plan.budget)
            of_tasks = dict(zip(tasks, given, strict=True))
            ranks[module] = {**of_tasks, COOPERATIVE: plan.budget - sum(given)}
        return Plan(blocks=plan.blocks, ranks=ranks)

    def _allocate(self, spectra: Sequence[Spectrum], budget: int, total: int) -> list[int]:
        """Return the tasks' ranks in one map; what is not given goes to the cooperative block."""
        entropies = [self.entropy_of(spectrum, total) for spectrum in spectra]
        shares = torch.softmax(torch.tensor(entropies).double() / self.temperature, dim=0).tolist()
        least = self.min_rank or max(1, budget // (4 * len(spectra)))
        ranks = allocate_task_ranks(budget, shares, least, rounding=self.rounding)
        # A task whose inputs span fewer directions leaves the rest to the cooperative block.
        return [max(1, min(r, s.rank)) for r, s in zip(ranks, spectra, strict=True)]

    def entropy_of(self, spectrum: Spectrum, rank: int) -> float:
        """Return the entropy of a task's top ``rank`` singular values in one map."""
        return spectral_entropy_of(spectrum.sigma[:rank], normalised=self.entropy == "normalised")

    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        """Fill a task's block from its spectrum, the cooperative one as LoRA's.

        Raises:
            InputError: if the weight is quantised.
        """
        if start.block not in start.spectra or start.spectra[start.block].rank == 0:
            fill_default(layer, block, start.generator, self.factor_scale)
            return
        W = float_weight(layer, self.kind)
        rank = layer.B[block].shape[1]
        U, sigma = self._directions(layer, block, start.spectra[start.block])
        U, sigma = U[:, :rank], sigma[:rank]
        made = projected(W, U) if self.balance == "svd" else whitened(W, U, sigma)
        put(layer, block, made, self.factor_scale)

    def _directions(
        self, layer: AbstractAdapted, block: int, found: Spectrum
    ) -> tuple[Tensor, Tensor]:
        """Return a task's left singular vectors and values, of what is left of W if so asked."""
        if not self.orthogonalise or block == 0:
            return found.U, found.sigma
        # B_j spans what block j has taken; (I - Q Q') W C = (I - Q Q') U S V'.
        taken = torch.cat([layer.B[j].detach().double() for j in range(block)], dim=1)
        basis, sizes, _ = torch.linalg.svd(taken, full_matrices=False)
        basis = basis[:, sizes > 1e-9 * sizes.max()]
        left = found.U * found.sigma
        U, sigma, _ = torch.linalg.svd(left - basis @ (basis.T @ left), full_matrices=False)
        return U, sigma


def allocate_task_ranks(
    budget: int,
    shares: Sequence[float],
    least: int,
    *,
    rounding: Literal["exact", "paper"] = "exact",
) -> list[int]:
    """Split a rank budget over tasks by their shares, with a least rank each.

    Args:
        budget: of all tasks' blocks together.
        shares: (T,) weights that sum to 1.
        least: rank of each task at least.
        rounding: ``exact``: each gets ``least``, the rest is split by largest remainder, ties to
            the task of lower index, and the sum is the budget. ``paper`` (ThanoRA, equation 7):
            max(least, floor(budget * share)); the sum may be less, and an excess is taken from
            the largest.

    Raises:
        InfeasibleBudget: if T times ``least`` exceeds the budget.

    Example:
        >>> allocate_task_ranks(10, [0.5, 0.25, 0.25], 1)
        [4, 3, 3]
        >>> allocate_task_ranks(10, [0.5, 0.25, 0.25], 1, rounding="paper")
        [5, 2, 2]
    """
    num = len(shares)
    if num * least > budget:
        raise InfeasibleBudget(
            f"{num} tasks with rank {least} each need {num * least}, and their blocks have "
            f"{budget}; raise the budget, or lower min_rank"
        )
    if rounding == "paper":
        ranks = [max(least, math.floor(budget * share)) for share in shares]
        while sum(ranks) > budget:
            ranks[max(range(num), key=lambda i: (ranks[i], -i))] -= 1
        return ranks
    # Exact fractions of 12 digits: equal shares stay ties whatever rounding made of them.
    exact = [Fraction(round(share * 10**12)) for share in shares]
    rest, total = budget - num * least, sum(exact)
    ideal = [rest * share / total for share in exact]
    ranks = [least + math.floor(x) for x in ideal]
    by_remainder = sorted(range(num), key=lambda i: (math.floor(ideal[i]) - ideal[i], i))
    for index in by_remainder[: budget - sum(ranks)]:
        ranks[index] += 1
    return ranks
