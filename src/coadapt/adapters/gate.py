"""Which rows, or tokens, of a batch use which blocks of the rank axis.

A gate gives one value a block, repeated over the block's ranks (``h = gate * z`` in
:mod:`coadapt.adapters.layer`). What it looks at decides what can be shipped: a gate that depends on
nothing folds into one exact LoRA, a gate on the task into one exact LoRA a task, a gate on the
token into nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from coadapt.adapters.route import Route

DependsOn = Literal["nothing", "task", "token"]


class AbstractGate(ABC):
    """One value a block of the rank axis."""

    depends_on: ClassVar[DependsOn]

    @abstractmethod
    def blocks(self, route: Route) -> tuple[int, ...]:
        """Return the indices of the blocks that take part in this forward, in order."""

    top_k: int | None = None

    @property
    def router(self) -> nn.Parameter | None:
        """The (K, in) map that makes logits of the layer's input, if the gate has one."""
        return None

    @abstractmethod
    def __call__(self, z: Tensor, route: Route, logits: Tensor | None) -> Tensor | None:
        """Return values broadcastable to z (..., R of :meth:`blocks`), or None where all are 1.

        Args:
            z: (B, ..., R) what is gated.
            route: the rows' tasks.
            logits: (B, ..., K) the router's product with the layer's input.
        """

    def own(self, x: Tensor, route: Route) -> Tensor | None:
        """Return (B, r) which entries of the rank axis of :meth:`blocks` each row uses.

        Where a row uses fewer than r, the rest is R, the axis's length. None where computing
        all entries for all rows is no dearer, or rows use more than their own.
        """
        return None

    @abstractmethod
    def constants(self, task: int) -> tuple[float, ...]:
        """Return the (K,) values that every row of ``task`` gets, for folding.

        A gate on the token returns those of a router at zero logits, which an offset takes.
        """


class ConstantGate(AbstractGate):
    """Every block at 1 for every row."""

    depends_on: ClassVar[DependsOn] = "nothing"

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks

    def blocks(self, route: Route) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self._num_blocks))

    def __call__(self, z: Tensor, route: Route, logits: Tensor | None) -> Tensor | None:
        """None: all values are 1."""
        return None

    def constants(self, task: int) -> tuple[float, ...]:
        """Ones."""
        return (1.0,) * self._num_blocks


class TaskGate(AbstractGate):
    """1 for the blocks that the row's task uses, 0 for the others.

    Args:
        uses: for each task the indices of its blocks, ascending.
        ranks: (K,) the blocks' ranks.
    """

    depends_on: ClassVar[DependsOn] = "task"

    # From this rank of all blocks, and this many times a row's own, products by row are cheaper:
    # `benchmarks/scaling.py` shows where the two cross.
    min_rank: ClassVar[int] = 64
    min_share: ClassVar[int] = 4

    def __init__(self, uses: Sequence[Sequence[int]], ranks: Sequence[int]) -> None:
        self._uses = tuple(tuple(u) for u in uses)
        self._ranks = tuple(ranks)
        member_TK = torch.zeros(len(self._uses), len(self._ranks))
        for task, blocks in enumerate(self._uses):
            member_TK[task, list(blocks)] = 1.0
        self._member_TR = member_TK.repeat_interleave(torch.tensor(self._ranks), dim=1)

    def blocks(self, route: Route) -> tuple[int, ...]:
        """Every block while gradients flow or no row is there, else those of the batch's tasks."""
        if route.bare:
            return ()
        if route.fixed is not None:
            return tuple(block for block, value in enumerate(route.fixed) if value)
        if route.every_block or not route.present:
            return tuple(range(len(self._ranks)))
        return tuple(sorted({block for task in route.present for block in self._uses[task]}))

    def __call__(self, z: Tensor, route: Route, logits: Tensor | None) -> Tensor | None:
        """Return (B, 1, ..., R) zeros and ones, or (1, S, R) for a packed row."""
        task_ids = route.rows(z.shape[0])
        blocks = self.blocks(route)
        if route.fixed is not None:
            return self._fixed(route.fixed, blocks, z)
        if all(self._uses[task] == blocks for task in route.present):
            return None
        key = (self, z.dtype, z.device)
        kept = route.recall(key)
        if kept is None:
            kept = route.remember(key, self._rows(task_ids, blocks).to(z))
        if task_ids.dim() > 1:
            return kept
        return kept.view(kept.shape[0], *[1] * (z.dim() - 2), kept.shape[1])

    def own(self, x: Tensor, route: Route) -> Tensor | None:
        """Return each row's entries, (B, r), where there are many blocks and it uses few."""
        if route.fixed is not None or not route.present:
            return None
        task_ids, blocks = route.rows(x.shape[0]), self.blocks(route)
        columns = [self._columns(self._uses[task], blocks) for task in route.present]
        total, most = sum(self._ranks[block] for block in blocks), max(map(len, columns))
        if task_ids.dim() > 1 or total < max(self.min_rank, self.min_share * most):
            return None
        key = (self, "own", x.device)
        kept = route.recall(key)
        if kept is None:
            table = torch.full((len(self._uses), most), total)
            for task, mine in zip(route.present, columns, strict=True):
                table[task, : len(mine)] = torch.tensor(mine)
            kept = route.remember(key, table.to(x.device)[task_ids])
        return kept

    def _columns(self, used: Sequence[int], among: Sequence[int]) -> list[int]:
        """Return where the entries of some blocks stand on the rank axis of others."""
        ends = accumulate(self._ranks[block] for block in among)
        starts = {b: end - self._ranks[b] for b, end in zip(among, ends, strict=True)}
        return [starts[block] + i for block in used for i in range(self._ranks[block])]

    def _fixed(self, fixed: Sequence[float], blocks: Sequence[int], z: Tensor) -> Tensor:
        """Return (R,) the same values for every row."""
        values = torch.tensor([fixed[block] for block in blocks])
        return values.repeat_interleave(torch.tensor([self._ranks[b] for b in blocks])).to(z)

    def _rows(self, task_ids: Tensor, blocks: tuple[int, ...]) -> Tensor:
        columns = self._columns(blocks, range(len(self._ranks)))
        return self._member_TR[:, columns].to(task_ids.device)[task_ids]

    def constants(self, task: int) -> tuple[float, ...]:
        """One-hot (or several-hot) of the task's blocks."""
        return tuple(float(block in self._uses[task]) for block in range(len(self._ranks)))


class RouterGate(AbstractGate, nn.Module):
    r"""A softmax over the blocks for every token: :math:`w(x) = \mathrm{softmax}(W_r x)`.

    In float32 whatever the dtype of the products. A linear map without bias on the layer's own
    input, trained with the rest (HydraLoRA, arXiv 2404.19245, equation 5; LoRAMoE, arXiv
    2312.09979, equation 5).

    Args:
        module: the adapted module's name.
        in_features: of the layer.
        ranks: (K,) the blocks' ranks.
        top_k: keep the k largest values of a token, renormalised to sum 1; None for all.
        device: of the layer.
    """

    depends_on: ClassVar[DependsOn] = "token"

    def __init__(
        self,
        module: str,
        in_features: int,
        ranks: Sequence[int],
        *,
        top_k: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self._module, self._ranks, self.top_k = module, tuple(ranks), top_k
        self.weight = nn.Parameter(torch.zeros(len(ranks), in_features, device=device))

    @property
    def router(self) -> nn.Parameter:
        """The (K, in) map."""
        return self.weight

    def blocks(self, route: Route) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(len(self._ranks)))

    def __call__(self, z: Tensor, route: Route, logits: Tensor | None) -> Tensor:
        """Return (B, ..., R) each token's weights, a block's repeated over its ranks."""
        assert logits is not None
        wide = torch.promote_types(logits.dtype, torch.float32)
        weights = torch.softmax(logits, dim=-1, dtype=wide)
        route.note("routing", self._module, weights)
        if self.top_k is not None:
            weights = keep_largest(weights, self.top_k)
        return spread(weights.to(z.dtype), self._ranks)

    def constants(self, task: int) -> tuple[float, ...]:
        """1/K each, the softmax of zero logits."""
        return (1.0 / len(self._ranks),) * len(self._ranks)


def keep_largest(weights: Tensor, k: int) -> Tensor:
    """Return (..., K) weights with all but each token's k largest at 0, renormalised to sum 1."""
    values, chosen = weights.topk(k, dim=-1)
    values = values / values.sum(dim=-1, keepdim=True)
    return torch.zeros_like(weights).scatter(-1, chosen, values)


def spread(weights: Tensor, ranks: Sequence[int]) -> Tensor:
    """Return (..., R) the (..., K) weights of blocks, each repeated over its block's ranks."""
    if len(set(ranks)) == 1:
        return weights.unsqueeze(-1).expand(*weights.shape, ranks[0]).flatten(-2)
    counts = torch.tensor(ranks, device=weights.device)
    return weights.repeat_interleave(counts, dim=-1)
