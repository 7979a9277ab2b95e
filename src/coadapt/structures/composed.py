"""Trained blocks in shares, and perhaps a new one: how a new task is put on a finished run."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from coadapt._errors import InputError
from coadapt.adapters import BlockShares, DependsOn
from coadapt.structures._partition import AbstractPartitioned
from coadapt.structures.base import Attached, Site


@dataclass(frozen=True, kw_only=True)
class Composed(AbstractPartitioned):
    r"""The blocks of a finished run in shares that are the same for every row.

    .. math:: y = W x + s \sum_k c_k B_k A_k x

    Made by ``coadapt adapt``, which takes the blocks from the run and freezes them. The shares are
    learned, one a block and layer (as LoRAHub searches them, arXiv 2307.13269, one a block), or
    fixed beside a new block that is learned. It folds into one exact LoRA.

    Parameters: K a map, or r (d_in + d_out) of the new block.

    Args:
        shares: by block of the plan, c_k at start.
        learned: whether the shares are trained.
    """

    kind: Literal["composed"] = "composed"
    shares: dict[str, float]
    learned: bool = False

    depends_on: ClassVar[DependsOn] = "nothing"

    def attach(self, site: Site) -> Attached:
        """Build the plan's blocks behind their shares.

        Raises:
            InputError: if plan and shares name different blocks.
        """
        assert site.plan is not None
        plan = site.plan
        if plan.blocks.keys() != self.shares.keys():
            raise InputError(
                f"structure 'composed' has shares of blocks {', '.join(self.shares)}, and the plan "
                f"has {', '.join(plan.blocks)}; give each block a share"
            )

        def gate(name: str, base: nn.Module) -> BlockShares:
            device: torch.device | None = next((p.device for p in base.parameters()), None)
            start = [self.shares[block] for block in plan.blocks]
            return BlockShares(start, plan.ranks_in(name), learned=self.learned, device=device)

        return self._attach_blocks(site, plan.blocks, gate, ranks_in=plan.ranks_in)
