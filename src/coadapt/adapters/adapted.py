"""What any layer that adapts a frozen linear map has: factors, a gate, dropout, folds."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coadapt.adapters.linear import linear_shape
from coadapt.adapters.route import Route


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
