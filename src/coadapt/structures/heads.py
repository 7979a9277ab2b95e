"""Heads over one shared A: M-LoRA without a router, HydraLoRA and R-LoRA with one."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coadapt._errors import InputError
from coadapt.adapters import ConstantGate, DependsOn, Dropout
from coadapt.structures._partition import AbstractPartitioned, copies_of_one_block
from coadapt.structures._routing import AbstractRouted, RouterInit, routers
from coadapt.structures.base import Attached, Site


@dataclass(frozen=True, kw_only=True)
class Heads(AbstractPartitioned):
    r"""N heads B_i over one A, added up or averaged: M-LoRA (arXiv 2508.05078, section 3.1).

    .. math:: y = W x + s \, c \sum_{i=1}^{N} B_i \, \mathrm{drop}_i(A x)

    with c = 1 or 1/N and a dropout mask a head and token. The paper says "simple summation" in its
    definition and "simple averaging" in section 3.3, and has no code; under Adam the sum moves the
    function N times as fast at equal rate. The update has the rank of A: at inference it is one
    LoRA, of twice that rank where a random start is subtracted.

    **Symmetric case.** Without a router every head's gradient is the same up to its mask. Heads
    that start alike (B = 0) and share one mask stay equal forever: a LoRA with N times the step.

    A head is not a task's: every row uses all.

    Parameters: r d_in + N r d_out an adapted map.

    Args:
        num_heads: N, at least 1.
        reduction: the sum of the heads' outputs, or their mean.
        common_mask: one dropout mask for all heads instead of one each.
    """

    kind: Literal["heads"] = "heads"
    num_heads: int = 3
    reduction: Literal["sum", "mean"] = "sum"
    common_mask: bool = False

    depends_on: ClassVar[DependsOn] = "nothing"
    multiplies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.num_heads < 1:
            raise InputError(f"num_heads must be at least 1, not {self.num_heads}")

    def attach(self, site: Site) -> Attached:
        """Build the heads over the plan's one block."""
        assert site.plan is not None
        blocks = copies_of_one_block(site.plan, site, self.kind, self.num_heads, "head")
        gate = ConstantGate(self.num_heads)
        return self._attach_blocks(
            site,
            blocks,
            lambda *_: gate,
            scale=self.scale / (self.num_heads if self.reduction == "mean" else 1),
            shared_A=True,
            dropout=Dropout(p=self.dropout, at=self.dropout_at, each_head=not self.common_mask),
        )


@dataclass(frozen=True, kw_only=True)
class RoutedHeads(AbstractRouted):
    r"""N heads B_i over one A, weighted by a router a map and token.

    .. math:: y = W x + s \sum_{i=1}^{N} w_i(x) \, B_i \, \mathrm{drop}_i(A x), \quad
              w(x) = \mathrm{softmax}(W_r x)

    HydraLoRA (arXiv 2404.19245, equation 5) and R-LoRA (arXiv 2502.15455, equation 17). The router
    is linear without bias, dense, in float32, on the layer's own input before dropout; there is no
    balance loss (HydraLoRA's code adds a constant 0). Dropout is on A x with a mask a head, which
    is R-LoRA's place; HydraLoRA's code drops x once a head and so computes A x N times.

    A head is not a task's: the number of heads is a choice, and every row may use all.

    Parameters: r d_in + N r d_out + N d_in an adapted map.

    Args:
        num_heads: N, at least 2.
        router_init: ``kaiming`` is uniform in ±1/sqrt(d_in), as published; ``zero`` weights every
            head by 1/N at start, which keeps the base model's function under R-LoRA's start.
    """

    kind: Literal["routed_heads"] = "routed_heads"
    num_heads: int = 3
    router_init: RouterInit = "kaiming"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._check_number("num_heads", self.num_heads)

    def attach(self, site: Site) -> Attached:
        """Build the heads over the plan's one block, and a router a map."""
        assert site.plan is not None
        blocks = copies_of_one_block(site.plan, site, self.kind, self.num_heads, "head")
        gate = routers(site, [b.rank for b in blocks.values()], self.router_init)
        return self._attach_blocks(site, blocks, gate, shared_A=True)
