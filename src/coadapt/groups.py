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
        groups = []
        adapters = list(adapters)
        apart = self.b_rate != 1.0
        ups = [(n, p) for n, p in adapters if apart and _UP.search(n)]
        rest = [(n, p) for n, p in adapters if not (apart and _UP.search(n))]
        for named, rate in ((rest, 1.0), (ups, self.b_rate), (heads, self.head_rate)):
            parameters = [p for _, p in named if p.requires_grad]
            for matrices in (True, False):
                chosen = [p for p in parameters if (p.dim() > 1) == matrices]
                if chosen:
                    decay = weight_decay if matrices else 0.0
                    groups.append(
                        {"params": chosen, "lr": learning_rate * rate, "weight_decay": decay}
                    )
        return groups
