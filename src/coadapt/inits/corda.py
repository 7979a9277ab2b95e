"""CorDA: start from the part of a weight that the inputs of all tasks use most, or least."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor

from coadapt.adapters import AbstractAdapted
from coadapt.inits.base import (
    POOLED,
    AbstractStatisticalInit,
    BlockStart,
    Statistics,
    float_weight,
    projected,
    put,
    whitened,
)
from coadapt.spectra import Spectrum, full, leading


@dataclass(frozen=True, kw_only=True)
class Corda(AbstractStatisticalInit):
    r"""Context-oriented decomposition of W by the moments C of its inputs.

    .. math:: W C = U S V', \quad s B A = U_r S_r V_r' C^{-1} = U_r U_r' W

    CorDA (arXiv 2406.05223, equations 3 to 6). The identity on the right needs no inverse, and so
    none of the damping that the published code and PEFT search for. C is the mean of x x' over the
    valid tokens of all tasks' rows together; the published code scales each batch by its largest
    entry and counts padding.

    Args:
        mode: ``instruction_previewed`` trains the largest triplets, ``knowledge_preserving`` the
            smallest, for which C is to be of texts whose knowledge is to be kept.
        balance: ``svd`` gives both factors one norm; ``paper`` takes B = U S^1/2, A = S^-1/2 U' W,
            whose norms depend on the unit of C.
    """

    kind: Literal["corda"] = "corda"
    mode: Literal["instruction_previewed", "knowledge_preserving"] = "instruction_previewed"
    balance: Literal["svd", "paper"] = "svd"

    statistics: ClassVar[Statistics] = "pooled"

    @property
    def offset(self) -> bool:
        """Yes: the update at start is a part of W."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return the settings that the spectra depend on."""
        return super().identity() | {"mode": self.mode}

    def decompose(
        self, W: Tensor, C: Tensor, rank: int, generator: Generator, near: Tensor | None = None
    ) -> Spectrum:
        """Return the largest triplets by a randomised decomposition, or the smallest by a full."""
        if self.mode == "instruction_previewed":
            return leading(W, C, rank, generator=generator, near=near)
        return full(W, C, count=min(rank, *W.shape), smallest=True)

    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        """Take the triplets after those of the blocks before, where every row uses all blocks.

        Raises:
            InputError: if the weight is quantised.
        """
        W, found = float_weight(layer, self.kind), start.spectra[POOLED]
        ranks = [B.shape[1] for B in layer.B]
        first = sum(ranks[:block]) if layer.gate.depends_on == "nothing" else 0
        kept = slice(first, first + ranks[block])
        U = found.U[:, kept]
        made = projected(W, U) if self.balance == "svd" else whitened(W, U, found.sigma[kept])
        put(layer, block, made, layer.scale**-0.5)
