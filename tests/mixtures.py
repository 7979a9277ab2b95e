"""What the tests of mixtures of feed-forwards build on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coadapt.adapters import Route, target_names
from coadapt.inits import Default
from coadapt.planning import Plan
from coadapt.structures import Attached, Mixture, Site
from tests.small import NAMES

MIXTURE = Mixture(scale=1.5, num_experts=3, top_k=2)


def attach(
    backbone: nn.Module, structure: Mixture, targets: str | Sequence[str], *, rank: int = 2
) -> Attached:
    route = Route()
    route.set(torch.zeros(2, dtype=torch.long))
    site = Site(
        backbone=backbone.requires_grad_(False),
        names=target_names(backbone, targets),
        tasks=NAMES,
        plan=Plan.shared(NAMES, rank),
        init=Default(),
        route=route,
        seed=0,
    )
    return structure.attach(site)


@torch.no_grad()
def scatter(attached: Attached, std: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in attached.tensors().values():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def close(mine: Tensor | None, exact: Tensor | None, tolerance: float, name: str = "") -> None:
    assert mine is not None, name
    assert exact is not None, name
    assert mine.shape == exact.shape, name
    largest = max(float(exact.detach().abs().max()), 1.0)
    assert float((mine.double() - exact).detach().abs().max()) <= tolerance * largest, name


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
