"""What a regularizer is, and what it gets to see of a forward."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from coadapt._errors import InputError

Tokens = Literal["all", "prompt", "answer"]


class Need(StrEnum):
    """What a regularizer looks at in each adapted layer.

    Representations and routing are noted while a forward runs; weights, and those of prompts, are
    there without one.
    """

    REPRESENTATION = "representation"
    ROUTING = "routing"
    WEIGHTS = "weights"
    PROMPTS = "prompts"

    @property
    def lasting(self) -> bool:
        """Whether it is there without a forward."""
        return self in (Need.WEIGHTS, Need.PROMPTS)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What a layer's router said in a forward.

    Attributes:
        probabilities: (B, S, K) softmax over all K blocks, float32, with gradients.
        top_k: how many of them a token uses; None for all.
    """

    probabilities: Tensor
    top_k: int | None = None


@dataclass(frozen=True, kw_only=True)
class LayerFactors:
    """The factors of an adapted layer, without its scale and without a frozen start.

    Attributes:
        A: by block (r, in); of heads over one A the same tensor each time.
        B: by block (out, r).
        base: the frozen map.
        shared_A: whether the blocks are heads over one A.
        common: blocks that are no task's own, such as ThanoRA's cooperative one.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    base: nn.Module
    shared_A: bool = False
    common: frozenset[str] = frozenset()

    @property
    def own(self) -> tuple[str, ...]:
        """The blocks that are not common, in their order."""
        return tuple(block for block in self.B if block not in self.common)


@dataclass(frozen=True, kw_only=True)
class FastWeights:
    """The tasks' own part of a layer's prompts, A_i = U_i V_i'.

    Attributes:
        u: by task (k, q) U_i.
        v: by task (q, d) V_i'.
    """

    u: Sequence[Tensor]
    v: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What the layers kept of a forward, a micro-batch on one rank.

    Attributes:
        task_ids: (B,) the rows' tasks; (1, S) those of a packed row's positions.
        valid: (B, S) true where a token is none of padding.
        learned: (B, S) true where a token is part of an answer; None where labels do not say, as
            those of an encoder.
        representations: by module (B, S, r), the down-projection A x before gate and dropout.
        routing: by module what its router said.
        factors: by module; they do not depend on the batch.
        prompts: by module; nor do they.
    """

    task_ids: Tensor
    valid: Tensor
    learned: Tensor | None = None
    representations: dict[str, Tensor] = field(default_factory=dict)
    routing: dict[str, Routing] = field(default_factory=dict)
    factors: dict[str, LayerFactors] = field(default_factory=dict)
    prompts: dict[str, FastWeights] = field(default_factory=dict)

    @property
    def packed(self) -> bool:
        """Whether the rows stand one after the other in one sequence."""
        return self.task_ids.dim() > 1

    @property
    def position_tasks(self) -> Tensor:
        """The task of every position, (B, S)."""
        if self.packed:
            return self.task_ids
        return self.task_ids[:, None].expand(self.valid.shape)

    def chosen(self, tokens: Tokens) -> Tensor:
        """Return (B, S) true at the positions to look at.

        Raises:
            InputError: if prompts and answers are asked apart where labels are no tokens.
        """
        if tokens == "all":
            return self.valid
        if self.learned is None:
            raise InputError(
                f"tokens: '{tokens}' tells prompts and answers apart, which an encoder, or a model "
                "that learns its prompts too, does not; take 'all'"
            )
        return self.valid & (self.learned if tokens == "answer" else ~self.learned)

    def zero(self) -> Tensor:
        """Return an exact 0 that is attached to the graph of what was captured."""
        parts = [*self.representations.values(), *(r.probabilities for r in self.routing.values())]
        parts += [part for f in self.factors.values() for part in (*f.A.values(), *f.B.values())]
        parts += [part for f in self.prompts.values() for part in (*f.u, *f.v)]
        assert parts, "nothing was captured"
        return torch.stack([0.0 * part.flatten()[:1].float().sum() for part in parts]).sum()


@dataclass(frozen=True, kw_only=True)
class AbstractRegularizer(ABC):
    """A term that is added to the loss of every micro-batch, times its weight.

    Attributes:
        needs: what of each layer it looks at.
        several_tasks: whether it compares tasks, so that a batch of one task gives zero.

    Args:
        weight: lambda, at least 0.
    """

    needs: ClassVar[Need]
    several_tasks: ClassVar[bool] = False

    weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.weight >= 0:
            raise InputError(f"a regularizer's weight must be at least 0, not {self.weight}")

    @abstractmethod
    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        """Refuse, or warn of, a model that the term cannot do anything for.

        Args:
            num_tasks: of the suite.
            layers: by module, those that it may look at; none of prompts.
        """

    @abstractmethod
    def select(self, modules: Sequence[str]) -> tuple[str, ...]:
        """Return those of the adapted modules, in the backbone's order, that it looks at."""

    @abstractmethod
    def loss(self, captured: Captured) -> Tensor:
        """Return the term, a float32 scalar, without its weight."""
