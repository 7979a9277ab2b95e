"""O-LoRA's orthogonality of the down-projections."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from coadapt._errors import InputError
from coadapt.regularizers.base import LayerFactors
from coadapt.regularizers.orthogonality import (
    AbstractOrthogonality,
    cross_gram,
    own_factors,
    refuse_single_blocks,
)


@dataclass(frozen=True, kw_only=True)
class OLora(AbstractOrthogonality):
    r"""The blocks' down-projections are held orthogonal to each other.

    .. math:: \sum_{t < u} \|A_t A_u^\top\|_1

    entry by entry, summed over modules, with a subgradient of 0 at 0 (O-LoRA, arXiv 2310.14152, as
    the authors' code has it). It was published for tasks that come one after the other, between the
    new task's A and those of the tasks before, which are frozen. Here it is between blocks that are
    trained together, and moves all of them. Their second term, on the norm of the new factors, has
    weight 0 in their scripts and is left out; theirs is not divided by the number of accumulated
    micro-batches, this one is.

    Not for heads over one A, which have no A to hold apart.

    Args:
        weight: lambda_1, of the sum over modules.
    """

    kind: Literal["o_lora"] = "o_lora"
    weight: float = 0.5  # the authors' scripts

    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        refuse_single_blocks(self.kind, layers)
        if any(layer.shared_A for layer in layers.values()):
            raise InputError(
                "regularizer 'o_lora' keeps the blocks' A apart, and heads have one A together; "
                "take structure 'single', 'bank' or 'experts', or regularizer 'spr' or 'pego'"
            )

    def of_layer(self, layer: LayerFactors) -> Tensor:
        A, _ = own_factors(layer)
        return cross_gram(A).abs().sum()
