"""What the terms on factors share: which blocks are compared, and in what precision."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coadapt._errors import InputError
from coadapt.regularizers.base import AbstractRegularizer, Captured, LayerFactors, Need


@dataclass(frozen=True, kw_only=True)
class AbstractOrthogonality(AbstractRegularizer):
    """How much the tasks' blocks overlap: a sum over modules and over pairs of blocks.

    Common blocks are left out, and so are modules with fewer than two others. The factors count as
    they are: without s, and with what an init put into them even where that is subtracted again.

    The term does not depend on the batch. Where rows use blocks by their task, a step moves the
    blocks of its tasks alone, whatever the term's gradient for the others is.
    """

    needs: ClassVar[Need] = Need.WEIGHTS

    def select(self, modules: Sequence[str]) -> tuple[str, ...]:
        return tuple(modules)

    def loss(self, captured: Captured) -> Tensor:
        # Gram matrices are matrix products, which autocast would round to half precision.
        with torch.autocast(captured.valid.device.type, enabled=False):
            layers = [layer for layer in captured.factors.values() if len(layer.own) > 1]
            if not layers:
                return captured.zero()
            return torch.stack([self.of_layer(layer) for layer in layers]).sum()

    @abstractmethod
    def of_layer(self, layer: LayerFactors) -> Tensor:
        """Return the term of a layer with two blocks or more to compare."""


def refuse_single_blocks(kind: str, layers: Mapping[str, LayerFactors]) -> None:
    """Refuse a model in which there is no pair of blocks.

    Raises:
        InputError: saying what would do.
    """
    if all(len(layer.own) < 2 for layer in layers.values()):
        raise InputError(
            f"regularizer '{kind}' keeps the tasks' blocks apart, and no adapted module has two of "
            "them; take a plan with a block a task, as sharing 'cooperative' or 'private' makes, "
            "or a structure with several heads or experts"
        )


def own_factors(layer: LayerFactors) -> tuple[list[Tensor], list[Tensor]]:
    """Return every A (r_t, in) and B (out, r_t) that is compared, in at least float32."""
    A, B = ([_precise(of[block]) for block in layer.own] for of in (layer.A, layer.B))
    return A, B


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cross_gram(blocks: Sequence[Tensor]) -> Tensor:
    """Return (R, R) the products of different blocks' rows, each pair of blocks once, else 0.

    >>> cross_gram([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]])])
    tensor([[0., 3., 8.],
            [0., 0., 0.],
            [0., 0., 0.]])

    Args:
        blocks: (r_t, d) each, of any ranks.
    """
    found: Any = _CrossGram.apply(*blocks)
    return found


class _CrossGram(torch.autograd.Function):
    """Keeps the blocks for the backward pass, which are there anyhow, and no copy side by side."""

    @staticmethod
    def forward(ctx: Any, *blocks: Tensor) -> Tensor:
        rows = torch.cat(blocks)
        number = torch.arange(len(blocks), device=rows.device)
        ranks = torch.tensor([len(block) for block in blocks], device=rows.device)
        block_R = number.repeat_interleave(ranks, output_size=len(rows))
        pairs = (block_R[:, None] < block_R).to(rows.dtype)
        ctx.save_for_backward(pairs, *blocks)
        return (rows @ rows.mT) * pairs

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, ...]:
        [gradient], (pairs, *blocks) = gradients, ctx.saved_tensors
        gradient = gradient * pairs
        of_rows = (gradient + gradient.mT) @ torch.cat(blocks)
        return of_rows.split([len(block) for block in blocks])
