"""One layer behind every LoRA-family structure: a LoRA whose rank axis is cut into gated blocks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coadapt.adapters.gate import AbstractGate, Route
from coadapt.adapters.linear import linear_shape


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Which entries are dropped while training.

    Args:
        p: probability in [0, 1).
        at: ``"z"`` drops entries of A x, ``"x"`` those of the layer's input (as PEFT does; slower).
        samples: masks whose mean is taken (multi-sample dropout, arXiv 1905.09788); of z.
        each_head: whether heads over one A have masks of their own.
    """

    p: float = 0.0
    at: Literal["z", "x"] = "z"
    samples: int = 1
    each_head: bool = True

    def drop(self, z: Tensor) -> Tensor:
        """Return z with entries dropped, as while training."""
        if self.p == 0.0:
            return z
        if self.samples == 1:
            return F.dropout(z, self.p)
        masks = F.dropout(z.new_ones(self.samples, *z.shape), self.p)
        return z * masks.mean(dim=0)


def add_update(y: Tensor, h: Tensor, B: Tensor, scale: float) -> Tensor:
    """Return y + s B h in the dtype of y, for h (..., R) and B (out, R)."""
    # One fused product and sum: the update never exists as a tensor of its own.
    flat = torch.addmm(
        y.reshape(-1, y.shape[-1]),
        h.reshape(-1, h.shape[-1]).to(y.dtype),
        B.to(y.dtype).t(),
        alpha=scale,
    )
    return flat.view(y.shape)


def take_rows(parts: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return (B, r, d) rows of parts that stand one above the other; past the last are zeros."""
    whole = torch.cat([*parts, parts[0].new_zeros(1, parts[0].shape[1])])
    # In the parameters' own dtype, so that gradients of rows that share one are added up in it.
    return F.embedding(index, whole)


class Gated(Protocol):
    """What is to be known of any layer's gate."""

    @property
    def router(self) -> nn.Parameter | None:
        """The (K, in) map that makes logits of the layer's input, if the gate has one."""

    @property
    def top_k(self) -> int | None:
        """How many blocks a token uses; None for all."""


GateT = TypeVar("GateT", bound=Gated, covariant=True)


class AbstractAdapted(ABC, nn.Module, Generic[GateT]):
    """A frozen linear map with low-rank blocks: what inits, saving and regularizers know of it.

    Attributes:
        m: (out, 1) the trained magnitudes of the weight's rows, or None where there are none.

    Args:
        base: the map to adapt; it is frozen and never edited.
        ranks: (K,) ranks of the blocks, each at least 1.
        gate: which blocks a row or token uses.
        route: the rows' tasks, shared by all layers of a model.
        scale: s = lora_alpha / r, the same for every block whatever its rank.
        dropout: what is dropped while training.
        shared_A: whether the blocks, of equal rank, are heads over one A.
        name: the module's name in its backbone, under which the layer notes what it computes.

    Raises:
        ValueError: if ``base`` does not behave like a linear map.
    """

    m: nn.Parameter | None

    def __init__(
        self,
        base: nn.Module,
        ranks: Sequence[int],
        *,
        gate: GateT,
        route: Route,
        scale: float,
        dropout: Dropout = Dropout(),
        shared_A: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        shape = linear_shape(base)
        if shape is None:
            raise ValueError(f"{type(base).__name__} does not behave like a linear map")
        assert not shared_A or len(set(ranks)) == 1, "heads over one A have its rank"
        self.in_features, self.out_features = shape
        self.base = base.requires_grad_(False)
        device = next((p.device for p in base.parameters()), None)
        downs = ranks[:1] if shared_A else ranks
        self.A = nn.ParameterList(torch.zeros(r, self.in_features, device=device) for r in downs)
        self.B = nn.ParameterList(torch.zeros(self.out_features, r, device=device) for r in ranks)
        self.A0 = nn.ParameterList()
        self.B0 = nn.ParameterList()
        self.register_parameter("m", None)
        self.gate = gate
        self.route = route
        self.scale = scale
        self.dropout = dropout
        self.shared_A = shared_A
        self.name = name

    @property
    def weight(self) -> Tensor:
        """The base map's own; T5 looks at its dtype before it runs the map."""
        return self.base.get_parameter("weight")

    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Return (A, B) of every block; heads have the same A."""
        return [(self.A[0 if self.shared_A else k], B) for k, B in enumerate(self.B)]

    def pair(self, block: int) -> tuple[Tensor, Tensor]:
        """Return the (A, B) of a block for an init to fill.

        Heads share the A of the first: those after it get one that is thrown away.
        """
        spare = self.shared_A and block > 0
        return torch.empty_like(self.A[0]) if spare else self.A[block], self.B[block]

    @abstractmethod
    def freeze_offset(self) -> None:
        """Subtract from now on what the current factors add, so that the layer starts as ``base``.

        Raises:
            ValueError: if no value of the gate at start is known.
        """

    @abstractmethod
    def fold(self, task: int) -> tuple[Tensor, Tensor]:
        """Return float32 (A, B) with ``B A`` the whole update for rows of ``task``.

        Raises:
            ValueError: if the gate depends on the token, so that no such factors exist.
        """

    @abstractmethod
    def delta(self, task: int) -> Tensor:
        """Return float32 (out, in), what is added to the weight for rows of ``task``.

        Raises:
            ValueError: if the gate depends on the token.
        """

    def extra_repr(self) -> str:
        """Return shape, ranks and scale."""
        ranks = ", ".join(str(b.shape[1]) for b in self.B)
        return f"in={self.in_features}, out={self.out_features}, ranks=({ranks}), s={self.scale}"


class PartitionedLinear(AbstractAdapted[AbstractGate]):
    r"""A frozen linear map plus a low-rank update whose rank axis is cut into gated blocks.

    .. math:: z = A x, \quad h = g \odot z, \quad y = W x + b + s B h

    with A: (R, in), B: (out, R), R = r_1 + ... + r_K and one gate value a block, repeated over the
    block's ranks (LoRA, arXiv 2106.09685, equation 3, is K = 1 and g = 1). With one A for all
    blocks (heads), A: (r, in) and z is repeated K times. However many blocks there are, a batch of
    rows of any tasks costs the two matrix products of one LoRA; a router's logits, and the frozen
    start of a block that does not start at zero, are more rows of the first of them.

    Each block's factors are parameters of their own, so that an optimizer can skip those of a task
    that a step did not see. They stay in float32 and are cast to the dtype of ``x``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return y (B, ..., out) for x (B, ..., in)."""
        y = self.base(x)
        blocks = self.gate.blocks(self.route)
        if not blocks:  # every gate is at zero
            return y
        own = self._own(x)
        if own is not None:
            return self._by_row(x, y, blocks, own)
        z, z0, logits = self._down(x, blocks)
        h = self._gated(z, z0, logits)
        return add_update(y, h, self._ups(blocks), self.scale)

    def _own(self, x: Tensor) -> Tensor | None:
        """Return the entries of the rank axis that each row uses, if only these are computed."""
        apart = self.dropout.at == "x" and self.training and self.dropout.p > 0
        if apart or self.route.listens("representation", self.name):
            return None
        return self.gate.own(x, self.route)

    def _by_row(self, x: Tensor, y: Tensor, blocks: Sequence[int], own: Tensor) -> Tensor:
        """Return y + s B h with the entries that each row uses, as products of a batch."""
        A, B = [self.A[k] for k in blocks], [self.B[k].t() for k in blocks]
        a, b, drops = take_rows(A, own), take_rows(B, own), self.training
        if fixed := self._fixed(blocks):
            a = torch.cat([a, take_rows([self.A0[k] for k in fixed], own)], dim=1)
            b = torch.cat([b, -take_rows([self.B0[k].t() for k in fixed], own)], dim=1)
        rows = x.reshape(len(x), -1, self.in_features)
        z = torch.bmm(rows, a.to(x.dtype).transpose(1, 2))
        if drops and self.dropout.p > 0:
            mine, start = z.split([own.shape[1], z.shape[2] - own.shape[1]], dim=2)
            z = torch.cat([self.dropout.drop(mine), start], dim=2)
        flat = y.reshape(len(y), -1, self.out_features)
        return torch.baddbmm(flat, z, b.to(y.dtype), alpha=self.scale).view(y.shape)

    def _down(
        self, x: Tensor, blocks: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return A x, A0 x of the frozen start and the router's logits, in one product."""
        fixed = self._fixed(blocks)
        downs = list(self.A) if self.shared_A else [self.A[block] for block in blocks]
        parts = [torch.cat(downs) if len(downs) > 1 else downs[0]]
        parts += [torch.cat([self.A0[block] for block in fixed])] if fixed else []
        parts += [self.gate.router] if self.gate.router is not None else []
        products: Sequence[Tensor]
        if self.dropout.at == "x" and self.training and self.dropout.p > 0:
            dropped = F.linear(self.dropout.drop(x), parts[0].to(x.dtype))
            products = [dropped, *(F.linear(x, part.to(x.dtype)) for part in parts[1:])]
        elif len(parts) == 1:
            products = [F.linear(x, parts[0].to(x.dtype))]
        else:
            joined = F.linear(x, torch.cat(parts).to(x.dtype))
            products = joined.split([len(part) for part in parts], dim=-1)
        z, *rest = products
        self.route.note("representation", self.name, z)
        return z, rest.pop(0) if fixed else None, rest.pop() if rest else None

    def _gated(self, z: Tensor, z0: Tensor | None, logits: Tensor | None) -> Tensor:
        """Return what B is multiplied with: gated and dropped entries, then those of the start."""
        drops = self.training and self.dropout.at == "z"
        if self.shared_A:
            if drops and not self.dropout.each_head:
                z, drops = self.dropout.drop(z), False
            z = z.repeat(*[1] * (z.dim() - 1), len(self.B))
        gate = self.gate(z, self.route, logits)
        if gate is not None:
            z = z * gate
            if z0 is not None and self.gate.depends_on == "task":
                z0 = z0 * gate
        if drops:
            z = self.dropout.drop(z)
        return z if z0 is None else torch.cat([z, z0], dim=-1)

    def _ups(self, blocks: Sequence[int]) -> Tensor:
        """Return (out, R) the blocks' B side by side, then those of the frozen start negated."""
        ups = [self.B[block] for block in blocks] + [-self.B0[k] for k in self._fixed(blocks)]
        return torch.cat(ups, dim=1) if len(ups) > 1 else ups[0]

    def _fixed(self, blocks: Sequence[int]) -> Sequence[int]:
        """Return which blocks of the frozen start take part; heads have a single one together."""
        if not self.A0:
            return ()
        return (0,) if self.shared_A else blocks

    @torch.no_grad()
    def freeze_offset(self) -> None:
        """Subtract from now on what the current factors add, so that the layer starts as ``base``.

        For inits away from zero. Under a gate on the task the frozen copies are gated alike; where
        the gate looks at the token, they keep its value at zero logits, and the function at start
        is that of ``base`` if the router starts at zero. Cost and fold have rank 2R (heads: R + r).
        """
        ups = list(self.B)
        if self.gate.depends_on == "token":
            gates = self.gate.constants(0)
            ups = [gate * B for gate, B in zip(gates, ups, strict=True)]
        if self.shared_A:
            ups = [torch.stack(ups).sum(dim=0)]
        self.A0 = nn.ParameterList(nn.Parameter(a.clone(), requires_grad=False) for a in self.A)
        self.B0 = nn.ParameterList(nn.Parameter(b.clone(), requires_grad=False) for b in ups)

    @torch.no_grad()
    def fold(self, task: int) -> tuple[Tensor, Tensor]:
        """Return float32 (A, B) with ``B A`` the whole update for rows of ``task``.

        Scale, gate and offset are folded in: A is (r, in), B is (out, r), r the summed rank of the
        blocks that the task uses (of heads over one A: its rank), twice that with an offset.

        Raises:
            ValueError: if the gate depends on the token, so that no such factors exist.
        """
        if self.gate.depends_on == "token":
            raise ValueError("a token-gated layer has no exact LoRA form; keep the run itself")
        gates = self.gate.constants(task)
        used = [block for block, value in enumerate(gates) if value != 0.0]
        B = [self.scale * gates[block] * self.B[block].float() for block in used]
        if self.shared_A:
            A, B = [self.A[0].float()], [torch.stack(B).sum(dim=0)]
        else:
            A = [self.A[block].float() for block in used]
        for block in self._fixed(used):
            value = 1.0 if self.shared_A else gates[block]
            A.append(self.A0[block].float())
            B.append(-self.scale * value * self.B0[block].float())
        return torch.cat(A), torch.cat(B, dim=1)

    @torch.no_grad()
    def fold_block(self, block: int) -> tuple[Tensor, Tensor]:
        """Return float32 (A, B) of one block at a gate of 1, scale and offset folded in.

        Not for heads over one A, of which :meth:`fold` returns the sum.
        """
        assert not self.shared_A
        A, B = [self.A[block].float()], [self.scale * self.B[block].float()]
        if self.A0:
            A.append(self.A0[block].float())
            B.append(-self.scale * self.B0[block].float())
        return torch.cat(A), torch.cat(B, dim=1)

    @torch.no_grad()
    def delta(self, task: int) -> Tensor:
        """Return float32 (out, in) ``B A`` of :meth:`fold`, which raises where there is none."""
        A, B = self.fold(task)
        return B @ A
