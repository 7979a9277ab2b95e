"""The load balance of a router, as in the Switch Transformer and MixLoRA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt.regularizers.base import AbstractRegularizer, Captured, LayerFactors, Need


@dataclass(frozen=True, kw_only=True)
class LoadBalance(AbstractRegularizer):
    r"""Blocks that are used often and are given much probability cost.

    .. math:: K \sum_e f_e P_e

    with f_e the tokens that use block e, as a part of all tokens of all modules, and P_e its mean
    probability (MixLoRA, arXiv 2404.15159, and its code; Switch Transformers, arXiv 2101.03961,
    equation 4). A token of a router with ``top_k`` uses its k most probable blocks; of a router
    without, it is counted for its most probable one. Gradients flow through P alone.

    The term is k where routing is uniform, and K where every token is sure of the same block.
    It may fall a little below k: a block may be the choice of most and have little probability.

    Args:
        weight: 0.001 in MixLoRA's code.
    """

    needs: ClassVar[Need] = Need.ROUTING

    kind: Literal["load_balance"] = "load_balance"
    weight: float = 0.001

    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        pass  # any router has a load

    def select(self, modules: Sequence[str]) -> tuple[str, ...]:
        return tuple(modules)

    def loss(self, captured: Captured) -> Tensor:
        routings = list(captured.routing.values())
        shapes = {(routing.probabilities.shape[-1], routing.top_k) for routing in routings}
        if len(shapes) > 1:
            raise InputError(
                "load_balance counts the blocks of all modules together, and these have different "
                f"numbers of blocks or of top_k: {sorted(shapes, key=str)}"
            )
        if not captured.valid.any():
            return captured.zero()
        [(num_blocks, top_k)] = shapes
        p_NK = torch.cat([routing.probabilities[captured.valid] for routing in routings])
        choices = p_NK.detach().topk(top_k or 1, dim=-1).indices
        used_NK = torch.zeros_like(p_NK).scatter(-1, choices, 1.0)
        return num_blocks * (used_NK.mean(dim=0) * p_NK.mean(dim=0)).sum()
