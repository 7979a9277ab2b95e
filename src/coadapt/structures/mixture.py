"""A mixture of whole feed-forwards: MixLoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from coadapt._errors import InputError
from coadapt._seeds import named_generator
from coadapt.adapters import (
    AbstractAdapted,
    ConstantGate,
    Dropout,
    Gated,
    PartitionedLinear,
    SlotFollower,
    SlotLinear,
    SlotRouter,
    SlotSum,
    feed_forward_groups,
    inject,
    linear_shape,
)
from coadapt.structures._partition import copies_of_one_block
from coadapt.structures._routing import AbstractRouted
from coadapt.structures.base import Attached, Site
from coadapt.structures.experts import check_top_k

Groups = Sequence[tuple[Sequence[str], str]]

_UNROUTED = "unrouted"  # the block in maps outside of the feed-forwards
_ROUTER_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Mixture(AbstractRouted):
    r"""N experts, each the frozen feed-forward F with LoRAs of its own; a token goes through k.

    .. math:: y = \sum_{e \in \text{top-}k(p)} \frac{p_e}{\sum_{i \in \text{top-}k(p)} p_i}
              F(x;\, W + s B_e A_e), \quad p = \mathrm{softmax}(W_r x)

    MixLoRA (arXiv 2404.15159 and the authors' code): one router a feed-forward, on its input,
    without bias, in float32, :math:`\mathcal{N}(0, 0.02^2)` at start. The weights sum to 1, so the
    base model's function is kept at start. Adapted maps outside of the feed-forwards (attention)
    get one ordinary LoRA of the plan's rank, in a block named ``unrouted``.

    The frozen maps run once a token, the last one too, on the weighted sum of its inputs; the
    authors' code runs that once an expert. Dropout is on A x here and on x there; their noise on
    the router's input, off by default, is left out.

    With ``top_k`` 1 the weight is 1 whatever the router says: only a load balance trains it.

    Parameters: N r (d_in + d_out) a map of a feed-forward, N d a feed-forward, and r (d_in + d_out)
    any other map.

    Args:
        num_experts: N, at least 2; the plan's rank is that of each.
        top_k: k, from 1 to N.
    """

    kind: Literal["mixture"] = "mixture"
    num_experts: int = 8
    top_k: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._check_number("num_experts", self.num_experts)
        check_top_k(self.top_k, self.num_experts)

    def attach(self, site: Site) -> Attached:
        """Build the experts and a router a feed-forward, and a LoRA in each other map.

        Raises:
            InputError: if no feed-forward is to be adapted or only a part of one, or if the
                experts are to start away from zero.
        """
        assert site.plan is not None
        if site.init.offset:
            raise InputError(
                "an init away from zero cannot start as the base model in structure 'mixture': "
                "which experts a token starts with is not known; take init 'default'"
            )
        experts = copies_of_one_block(site.plan, site, self.kind, self.num_experts, "expert")
        groups = feed_forward_groups(site.backbone, site.names)
        if not groups:
            raise InputError(
                "structure 'mixture' makes experts of whole feed-forwards, and target_modules "
                "takes in none; set it to 'mlp' or 'all-linear' (a model without any, such as one "
                "with experts of its own, can take recipe 'lora_moe')"
            )
        layers = self._inject(site, groups, next(iter(experts.values())).rank)
        routed = {name for reading, last in groups for name in (*reading, last)}
        held = {name: tuple(experts) if name in routed else (_UNROUTED,) for name in layers}
        for name, layer in layers.items():
            site.fill(layer, name, held[name])
        blocks = (*experts, *([_UNROUTED] if len(routed) < len(layers) else []))
        everyone = tuple(range(len(site.tasks)))
        return Attached(layers=layers, blocks=blocks, owners=(everyone,) * len(blocks), held=held)

    def _inject(self, site: Site, groups: Groups, rank: int) -> dict[str, AbstractAdapted[Gated]]:
        ranks = (rank,) * self.num_experts
        options: dict[str, Any] = {
            "route": site.route,
            "scale": self.scale,
            "dropout": Dropout(p=self.dropout, at=self.dropout_at),
        }
        gates: dict[str, SlotRouter | SlotFollower] = {}
        for (first, *others), last in groups:
            router = self._router(site, first, ranks)
            gates |= {first: router, **{n: SlotFollower(router) for n in (*others, last)}}
        lasts = {last for _, last in groups}

        def make(name: str, base: nn.Module) -> AbstractAdapted[Gated]:
            if name not in gates:
                gate = ConstantGate(1)
                return PartitionedLinear(base, [rank], gate=gate, name=name, **options)
            kind = SlotSum if name in lasts else SlotLinear
            return kind(base, ranks, gate=gates[name], name=name, **options)

        return inject(site.backbone, site.names, make)

    def _router(self, site: Site, name: str, ranks: Sequence[int]) -> SlotRouter:
        """Return the router of a feed-forward, drawn from the stream of its first map's name."""
        base = site.backbone.get_submodule(name)
        shape = linear_shape(base)
        assert shape is not None
        device = next((p.device for p in base.parameters()), None)
        router = SlotRouter(
            name, shape[0], ranks, top_k=self.top_k, route=site.route, device=device
        )
        generator = named_generator(site.seed, "router", name)
        drawn = torch.empty(router.weight.shape).normal_(std=_ROUTER_STD, generator=generator)
        with torch.no_grad():
            router.weight.copy_(drawn)
        return router
