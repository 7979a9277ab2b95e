"""A mixture of whole LoRAs at every adapted map: LoRAMoE."""

from dataclasses import dataclass
from typing import Literal

from coadapt._errors import InputError
from coadapt.structures._partition import copies_of_one_block
from coadapt.structures._routing import AbstractRouted, RouterInit, routers
from coadapt.structures.base import Attached, Site


@dataclass(frozen=True, kw_only=True)
class Experts(AbstractRouted):
    r"""N LoRAs, each with factors of its own, weighted by a router a map and token.

    .. math:: y = W x + s \sum_{i=1}^{N} w_i(x) \, B_i \, \mathrm{drop}_i(A_i x), \quad
              w(x) = \mathrm{softmax}(W_r x)

    LoRAMoE (arXiv 2312.09979, equation 5 and the authors' code): dense, router without bias on the
    layer's own input, float32. With ``top_k`` the softmax is over the k largest logits, as "Align,
    Don't Divide" writes the method; the authors' code has no such thing. Dropout is on A_i x here
    and on x there.

    Parameters: N r (d_in + d_out) + N d_in an adapted map.

    Args:
        num_experts: N, at least 2; the plan's rank is that of each.
        top_k: how many experts a token uses, renormalised to sum 1; None for all.
        router_init: uniform in ±1/sqrt(d_in) as published, or zero.
    """

    kind: Literal["experts"] = "experts"
    num_experts: int = 4
    top_k: int | None = None
    router_init: RouterInit = "kaiming"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._check_number("num_experts", self.num_experts)
        check_top_k(self.top_k, self.num_experts)

    def attach(self, site: Site) -> Attached:
        """Build the experts and a router a map.

        Raises:
            InputError: if they are to start away from zero under ``top_k``.
        """
        assert site.plan is not None
        if self.top_k is not None and site.init.offset:
            raise InputError(
                "an init away from zero cannot start as the base model under top_k: no constant "
                "weight of each expert is known; take init 'default' or leave top_k out"
            )
        blocks = copies_of_one_block(site.plan, site, self.kind, self.num_experts, "expert")
        ranks = [block.rank for block in blocks.values()]
        return self._attach_blocks(site, blocks, routers(site, ranks, self.router_init, self.top_k))


def check_top_k(top_k: int | None, num_experts: int) -> None:
    """Raise InputError unless there are as many experts as a token is to use."""
    if top_k is not None and not 1 <= top_k <= num_experts:
        raise InputError(f"top_k is {top_k}, but there are {num_experts} experts; take 1 to that")
