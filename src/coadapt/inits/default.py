"""LoRA's own init."""

from dataclasses import dataclass
from typing import Literal

from coadapt.adapters import AbstractAdapted
from coadapt.inits.base import AbstractInit, BlockStart, fill_default


@dataclass(frozen=True, kw_only=True)
class Default(AbstractInit):
    r"""A Kaiming-uniform with a = sqrt(5), that is U(\pm 1/\sqrt{d_{in}}); B = 0.

    The update is zero at start and its gradient with respect to A too: the first step moves B only.
    What PEFT does for ``init_lora_weights=True`` (LoRA, arXiv 2106.09685, section 4.1: a Gaussian).
    """

    kind: Literal["default"] = "default"

    @property
    def offset(self) -> bool:
        """No: the update is zero."""
        return False

    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        """Draw A, and set B to 0."""
        fill_default(layer, block, start.generator)
