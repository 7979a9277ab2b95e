"""R-LoRA's random start of A and of every head, in the paper's reading and in the code's."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from coadapt._errors import InputError
from coadapt.adapters import AbstractAdapted
from coadapt.inits.base import AbstractInit, BlockStart


@dataclass(frozen=True, kw_only=True)
class RLora(AbstractInit):
    r"""Every head starts at a point of its own, and the base model's function is kept.

    .. math:: A = c \, \mathcal{N}(0, 1/d_{in}), \quad B_i = c \, \mathcal{N}(0, 1/d_{out}), \quad
              c = d_{out}^{1/4} / \sqrt{\gamma}

    R-LoRA (arXiv 2502.15455, table 1; c is the stable factor of LoRA-GA, arXiv 2407.05000). What
    the start adds is frozen and subtracted, so that the function is the base model's where the
    gate at start is known: heads without a router, or a router that starts at zero.

    Args:
        gamma: 64 in the paper.
    """

    kind: Literal["r_lora"] = "r_lora"
    gamma: float = 64.0

    def __post_init__(self) -> None:
        """Check the range."""
        _check(self.gamma)

    @property
    def offset(self) -> bool:
        """Yes: both factors are drawn."""
        return True

    @torch.no_grad()
    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        """Draw A, then B, on the CPU."""
        c = layer.out_features**0.25 / math.sqrt(self.gamma)
        A, B = layer.pair(block)
        _normal(A, c * layer.in_features**-0.5, start.generator)
        _normal(B, c * layer.out_features**-0.5, start.generator)


@dataclass(frozen=True, kw_only=True)
class RLoraCode(AbstractInit):
    r"""What the published code of R-LoRA does instead, for comparison.

    Both factors are :math:`\mathcal{N}(0, 1/\max(\text{shape}))`; the factor is
    :math:`c = r^{1/4}/\sqrt\gamma` (it takes the other axis of the weights' shapes) and stands
    inside the loop over heads: A is multiplied by it N times, head i (from 0) N - i times. Heads so
    start with very unequal norms. The code subtracts the start's mean over heads from the base
    weight in that weight's dtype; here it is kept apart in float32, as for :class:`RLora`.

    Args:
        gamma: 64 in the code.
    """

    kind: Literal["r_lora_code"] = "r_lora_code"
    gamma: float = 64.0

    def __post_init__(self) -> None:
        """Check the range."""
        _check(self.gamma)

    @property
    def offset(self) -> bool:
        """Yes: both factors are drawn."""
        return True

    @torch.no_grad()
    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        """Draw A, then B, on the CPU."""
        A, B = layer.pair(block)
        c = len(A) ** 0.25 / math.sqrt(self.gamma)
        num_heads = len(layer.B)
        _normal(A, c**num_heads * max(A.shape) ** -0.5, start.generator)
        _normal(B, c ** (num_heads - block) * max(B.shape) ** -0.5, start.generator)


def _normal(factor: Tensor, std: float, generator: Generator) -> None:
    factor.copy_(torch.randn(factor.shape, generator=generator) * std)


def _check(gamma: float) -> None:
    if not gamma > 0:
        raise InputError(f"gamma must be positive, not {gamma}")
