"""What an init is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Generator

from coadapt.adapters import AbstractAdapted


class AbstractInit(ABC):
    """How the factors of a block start.

    Attributes:
        offset: whether the block starts away from zero, so that its initial factors are frozen and
            subtracted (:meth:`AbstractAdapted.freeze_offset`).
    """

    offset: ClassVar[bool]

    @abstractmethod
    def fill(self, layer: AbstractAdapted, block: int, generator: Generator) -> None:
        """Set both of ``layer.pair(block)`` in place, from ``generator`` only."""
