"""Optimizer groups: which parameter trains at which rate and decay."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from coadapt._errors import InputError
from coadapt.config import LATER

_UP = re.compile(r"\.B\.\d+$")  # as PartitionedLinear names them
_FAST = re.compile(r"\.attention_extension\.[uv]\.\d+$")  # as TaskPrompts names them
_GATE = re.compile(r"\.attention_extension\.g$")

NamedParameters = Iterable[tuple[str, nn.Parameter]]


class AbstractGroups(ABC):
    """How trainable parameters are divided for the optimizer."""

    @abstractmethod
    def split(
        self,
        adapters: NamedParameters,
        heads: NamedParameters,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> list[dict[str, Any]]:
        """Return torch parameter groups."""


@dataclass(frozen=True, kw_only=True)
class Uniform(AbstractGroups):
    """One rate for adapters (or backbone), a multiple of it for heads; vectors do not decay.

    Args:
        head_rate: the heads' learning rate in units of the adapters', positive.
        b_rate: that of the adapters' B, positive (LoRA+, arXiv 2402.12354, takes 16).
    """

    kind: Literal["uniform"] = "uniform"
    head_rate: float = 1.0
    b_rate: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("head_rate", "b_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")

    def split(
        self,
        adapters: NamedParameters,
        heads: NamedParameters,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> list[dict[str, Any]]:
        """Return up to six groups: adapters, their B and heads, matrices and vectors of each."""
        adapters = list(adapters)
        apart = self.b_rate != 1.0
        ups = [(n, p) for n, p in adapters if apart and _UP.search(n)]
        rest = [(n, p) for n, p in adapters if not (apart and _UP.search(n))]
        rated = ((rest, 1.0), (ups, self.b_rate), (heads, self.head_rate))
        return _groups(rated, learning_rate, weight_decay)


@dataclass(frozen=True, kw_only=True)
class FastSlow(AbstractGroups):
    """For ``task_prompt``: the tasks' own u and v at a higher rate than what they share.

    What is shared (theta, B) trains at the learning rate. The ratio means what it says while the
    factors start at fixed norms: under Adam another scale of B and u is another rate. Vectors,
    gates among them, do not decay (TA-LoRA, arXiv 2505.00009, which does not give the rates;
    10 and 1 are ours).

    Args:
        fast_rate: of u and v, in units of the learning rate; positive.
        gate_rate: of the gates.
        head_rate: of the heads.
    """

    kind: Literal["fast_slow"] = "fast_slow"
    fast_rate: float = 10.0
    gate_rate: float = 1.0
    head_rate: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("fast_rate", "gate_rate", "head_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")

    def split(
        self,
        adapters: NamedParameters,
        heads: NamedParameters,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> list[dict[str, Any]]:
        """Return up to seven groups: slow, fast, gates and heads, matrices and vectors of each."""
        adapters = list(adapters)
        fast = [(n, p) for n, p in adapters if _FAST.search(n)]
        gates = [(n, p) for n, p in adapters if _GATE.search(n)]
        apart = {n for n, _ in (*fast, *gates)}
        slow = [(n, p) for n, p in adapters if n not in apart]
        rated = (
            (slow, 1.0),
            (fast, self.fast_rate),
            (gates, self.gate_rate),
            (heads, self.head_rate),
        )
        return _groups(rated, learning_rate, weight_decay)


Groups = Uniform | FastSlow


def _groups(
    rated: Iterable[tuple[NamedParameters, float]], learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return torch's groups of what trains, matrices with decay and vectors without."""
    groups = []
    for named, rate in rated:
        parameters = [p for _, p in named if p.requires_grad]
        for matrices in (True, False):
            chosen = [p for p in parameters if (p.dim() > 1) == matrices]
            if chosen:
                decay = weight_decay if matrices else 0.0
                groups.append({"params": chosen, "lr": learning_rate * rate, "weight_decay": decay})
    return groups
