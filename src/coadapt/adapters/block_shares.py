"""A number a block, the same for every row: how much of each trained adapter a new task takes."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from coadapt.adapters.gate import AbstractGate, DependsOn, spread
from coadapt.adapters.route import Route


class BlockShares(AbstractGate, nn.Module):
    """A constant a block of one layer, learned or fixed.

    Args:
        start: (K,) the constants at start.
        ranks: (K,) the blocks' ranks.
        learned: whether they are trained.
        device: of the layer.
    """

    depends_on: ClassVar[DependsOn] = "nothing"

    def __init__(
        self,
        start: Sequence[float],
        ranks: Sequence[int],
        *,
        learned: bool,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        values = torch.tensor(start, dtype=torch.float32, device=device)
        self.shares = nn.Parameter(values, requires_grad=learned)
        self._ranks = tuple(ranks)

    def blocks(self, route: Route) -> tuple[int, ...]:
        """All of them."""
        return () if route.bare else tuple(range(len(self._ranks)))

    def __call__(self, z: Tensor, route: Route, logits: Tensor | None) -> Tensor:
        """Return (R,) each block's constant, repeated over its ranks."""
        return spread(self.shares, self._ranks).to(z.dtype)

    def constants(self, task: int) -> tuple[float, ...]:
        """The constants as they are now."""
        return tuple(self.shares.detach().tolist())
