"""LoRA's own init."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator

from coadapt.adapters import AbstractAdapted
from coadapt.inits.base import AbstractInit


@dataclass(frozen=True, kw_only=True)
class Default(AbstractInit):
    r"""A Kaiming-uniform with a = sqrt(5), that is U(\pm 1/\sqrt{d_{in}}); B = 0.

    The update is zero at start and its gradient with respect to A too: the first step moves B only.
    What PEFT does for ``init_lora_weights=True`` (LoRA, arXiv 2106.09685, section 4.1: a Gaussian).
    """

    kind: Literal["default"] = "default"
    offset: ClassVar[bool] = False

    @torch.no_grad()
    def fill(self, layer: AbstractAdapted, block: int, generator: Generator) -> None:
        """Draw A on the CPU, wherever the layer lies, so that a seed means the same everywhere."""
        bound = layer.in_features**-0.5
        A, B = layer.pair(block)
        A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
        B.zero_()
