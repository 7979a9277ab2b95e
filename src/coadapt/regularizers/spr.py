"""ThanoRA's subspace-preserving regularization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coadapt.regularizers.base import LayerFactors
from coadapt.regularizers.orthogonality import (
    AbstractOrthogonality,
    cross_gram,
    own_factors,
    refuse_single_blocks,
)


@dataclass(frozen=True, kw_only=True)
class Spr(AbstractOrthogonality):
    r"""The tasks' blocks are held orthogonal to each other, B to B and A to A.

    .. math:: \sum_{t < u} \|B_t^\top B_u\|_F^2 + \|A_t A_u^\top\|_F^2

    summed over modules; the cooperative block is left out (ThanoRA, arXiv 2505.18640, equations 16
    and 17). It costs one product of all B, and of all A, with themselves a module. Either summand
    at 0 makes the updates orthogonal, <B_t A_t, B_u A_u> = 0 (proposition 3.2), so the term asks
    for more than that.

    Heads over one A have only the first summand: their A is the same one.

    Both summands are of fourth order in the factors, so what a weight does depends on how the init
    scales them, and on the model's size; ``normalized`` takes that away.

    Args:
        weight: lambda, of the sum over modules.
        normalized: divide a pair's first summand by :math:`\|B_t\|_F^2 \|B_u\|_F^2`, its second by
            the A's likewise, so that each lies in [0, 1]. A block at 0 contributes 0; the gradient
            of one that is close to it is large, which an init with B = 0 makes in the first steps.
    """

    kind: Literal["spr"] = "spr"
    weight: float = 1e-4  # section 4.1
    normalized: bool = False

    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        refuse_single_blocks(self.kind, layers)

    def of_layer(self, layer: LayerFactors) -> Tensor:
        A, B = own_factors(layer)
        overlap = self._overlap([block.mT for block in B])
        return overlap if layer.shared_A else overlap + self._overlap(A)

    def _overlap(self, blocks: Sequence[Tensor]) -> Tensor:
        if self.normalized:
            blocks = [_unit(block) for block in blocks]
        return cross_gram(blocks).square().sum()


def _unit(block: Tensor) -> Tensor:
    """Return a block by its Frobenius norm, or as it is if that is 0."""
    norm = torch.linalg.vector_norm(block)
    return block / torch.where(norm > 0, norm, 1.0)
