"""Routers: a softmax over blocks for every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from coadapt._errors import InputError
from coadapt._seeds import named_generator
from coadapt.adapters import DependsOn, RouterGate, linear_shape
from coadapt.structures._partition import AbstractPartitioned, GateOf
from coadapt.structures.base import ShipsAs, Site

RouterInit = Literal["kaiming", "zero"]


@dataclass(frozen=True, kw_only=True)
class AbstractRouted(AbstractPartitioned):
    """What the structures with a router have in common: no exact LoRA exists."""

    ships_as: ClassVar[ShipsAs] = "runtime"
    depends_on: ClassVar[DependsOn] = "token"
    multiplies: ClassVar[bool] = True

    def _check_number(self, name: str, number: int) -> None:
        if number < 2:
            raise InputError(
                f"{name} is {number}: a router over one block has nothing to choose; "
                "take at least 2, or recipe 'lora'"
            )


def routers(site: Site, ranks: Sequence[int], init: RouterInit, top_k: int | None = None) -> GateOf:
    """Return what makes a router for each map, drawn from the stream of its module's name."""

    def make(name: str, base: nn.Module) -> RouterGate:
        shape = linear_shape(base)
        assert shape is not None
        device = next((p.device for p in base.parameters()), None)
        gate = RouterGate(name, shape[0], ranks, top_k=top_k, device=device)
        if init == "kaiming":
            bound = shape[0] ** -0.5
            generator = named_generator(site.seed, "router", name)
            drawn = torch.empty(gate.weight.shape).uniform_(-bound, bound, generator=generator)
            with torch.no_grad():
                gate.weight.copy_(drawn)
        return gate

    return make
