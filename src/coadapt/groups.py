"""Optimizer groups: which parameter trains at which rate and decay."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from coadapt._errors import InputError

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
    """

    kind: Literal["uniform"] = "uniform"
    head_rate: float = 1.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.head_rate > 0:
            raise InputError(f"head_rate must be positive, not {self.head_rate}")

    def split(
        self,
        adapters: NamedParameters,
        heads: NamedParameters,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> list[dict[str, Any]]:
        """Return up to four groups: adapters and heads, matrices and vectors (biases, norms)."""
        groups = []
        for named, rate in ((adapters, 1.0), (heads, self.head_rate)):
            parameters = [p for _, p in named if p.requires_grad]
            for matrices in (True, False):
                chosen = [p for p in parameters if (p.dim() > 1) == matrices]
                if chosen:
                    decay = weight_decay if matrices else 0.0
                    groups.append(
                        {"params": chosen, "lr": learning_rate * rate, "weight_decay": decay}
                    )
        return groups
