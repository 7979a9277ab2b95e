"""PEGO's orthogonality of whole updates, without the matrices that it is defined on."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coadapt._errors import InputError
from coadapt.adapters.linear import linear_weight
from coadapt.regularizers.base import LayerFactors
from coadapt.regularizers.orthogonality import (
    AbstractOrthogonality,
    own_factors,
    refuse_single_blocks,
)


@dataclass(frozen=True, kw_only=True)
class Pego(AbstractOrthogonality):
    r"""The blocks' updates B A are held orthogonal to each other, and to the base weight if asked.

    .. math:: \sum_{i < j} \|(B_i A_i)^\top B_j A_j\|_1 \quad (+ \sum_i \|W (B_i A_i)^\top\|_1)

    entry by entry, summed over modules, with a subgradient of 0 at 0 (PEGO, arXiv 2407.15085, as
    ThanoRA, arXiv 2505.18640, writes it in equation 18). The authors' code compares the other way
    round, :math:`(B_i A_i) (B_j A_j)^\top`, which is ``orientation: output``, and adds the second
    sum with the same weight. They have up to four LoRAs, whatever the number of tasks, on the
    query and value maps of a vision transformer.

    The entries are those of an (in, in) or (out, out) matrix a pair, which is made some rows at a
    time, with the gradient in the same pass, so memory does not grow with their number. Time does:
    three products of d^2 r multiplications a pair and module.

    Args:
        weight: of both sums over modules.
        orientation: ``input`` compares what updates read and write as d_in x d_in; ``output`` as
            d_out x d_out.
        preserve: whether to add the second sum; not with a quantised base model.
        chunk: rows at a time, at least 1; None for all, kept for the backward pass, as the authors'
            code does.
    """

    kind: Literal["pego"] = "pego"
    weight: float = 1e-3  # the authors' scripts
    orientation: Literal["input", "output"] = "input"
    preserve: bool = False
    chunk: int | None = 256

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk must be at least 1 row, or null for all, not {self.chunk}")

    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        refuse_single_blocks(self.kind, layers)
        if self.preserve:
            for module, layer in layers.items():
                _refuse_quantized(module, layer)

    def of_layer(self, layer: LayerFactors) -> Tensor:
        A, B = own_factors(layer)
        pairs = list(combinations(range(len(A)), 2))
        # Each matrix is P Q' with P and Q as narrow as a block.
        if self.orientation == "input":
            products = [(A[i].mT @ (B[i].mT @ B[j]), A[j].mT) for i, j in pairs]
        else:
            products = [(B[i] @ (A[i] @ A[j].mT), B[j]) for i, j in pairs]
        if self.preserve:
            WA = self._times_base(layer, torch.cat(A).mT)
            products += zip(WA.split([len(block) for block in A], dim=1), B, strict=True)
        return torch.stack([self._l1(P, Q) for P, Q in products]).sum()

    def _times_base(self, layer: LayerFactors, right: Tensor) -> Tensor:
        weight = linear_weight(layer.base)
        if self.chunk is None:
            return weight.to(right.dtype) @ right
        found: Any = _TimesBase.apply(weight, right, self.chunk)
        return found

    def _l1(self, P: Tensor, Q: Tensor) -> Tensor:
        """Return the sum of the absolute entries of P Q'."""
        if self.chunk is None:
            return (P @ Q.mT).abs().sum()
        found: Any = _ProductL1.apply(P, Q, self.chunk)
        return found


def _refuse_quantized(module: str, layer: LayerFactors) -> None:
    weight = linear_weight(layer.base)
    shape = (len(next(iter(layer.B.values()))), next(iter(layer.A.values())).shape[1])
    if not weight.is_floating_point() or weight.shape != shape:
        raise InputError(
            f"regularizer 'pego' with preserve: true reads the weight of '{module}', which is "
            f"quantised ({weight.dtype}); take a base model in full precision, or preserve: false"
        )


class _ProductL1(torch.autograd.Function):
    """The sum of the absolute entries of P Q', for P (m, r) and Q (n, r)."""

    @staticmethod
    def forward(ctx: Any, P: Tensor, Q: Tensor, chunk: int) -> Tensor:
        # The gradient is known but for a factor, so the rows are made once and thrown away.
        total, dP, dQ = P.new_zeros(()), torch.empty_like(P), torch.zeros_like(Q)
        for start in range(0, len(P), chunk):
            rows = slice(start, start + chunk)
            product = P[rows] @ Q.mT
            sign = product.sign()
            total += product.abs_().sum()
            torch.mm(sign, Q, out=dP[rows])
            dQ.addmm_(sign.mT, P[rows])
        ctx.save_for_backward(dP, dQ)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        [gradient], (dP, dQ) = gradients, ctx.saved_tensors
        return gradient * dP, gradient * dQ, None


class _TimesBase(torch.autograd.Function):
    """W X for a frozen W (m, d) of any dtype, without a copy of W in that of X (d, r)."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, X: Tensor, chunk: int) -> Tensor:
        ctx.chunk = chunk
        ctx.save_for_backward(W)
        return torch.cat([rows.to(X.dtype) @ X for rows in W.split(chunk)])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[None, Tensor, None]:
        [gradient], [W] = gradients, ctx.saved_tensors
        parts = zip(W.split(ctx.chunk), gradient.split(ctx.chunk), strict=True)
        total = gradient.new_zeros(W.shape[1], gradient.shape[1])
        for rows, of_rows in parts:
            total.addmm_(rows.to(gradient.dtype).mT, of_rows)
        return None, total, None
