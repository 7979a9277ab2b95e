"""Blocks of the rank axis put into a backbone, with any gate."""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import nn

from coadapt.adapters import AbstractGate, PartitionedLinear, inject
from coadapt.planning import Block
from coadapt.structures.base import Attached, Site


def attach_blocks(
    site: Site,
    blocks: dict[str, Block],
    gate: AbstractGate,
    *,
    scale: float,
    dropout: float,
    dropout_at: Literal["z", "x"],
) -> Attached:
    """Put a partitioned layer around every module of ``site`` and fill its blocks."""
    ranks = [block.rank for block in blocks.values()]

    def make(base: nn.Module) -> PartitionedLinear:
        return PartitionedLinear(
            base,
            ranks,
            gate=gate,
            route=site.route,
            scale=scale,
            dropout=dropout,
            dropout_at=dropout_at,
        )

    layers = inject(site.backbone, site.names, make)
    for name, layer in layers.items():
        for index, block in enumerate(blocks):
            site.init.fill(layer, index, site.generator(block, name))
        if site.init.offset:
            layer.freeze_offset()
    return Attached(
        layers=layers, blocks=tuple(blocks), owners=tuple(_owners(site.tasks, blocks.values()))
    )


def _owners(tasks: Sequence[str], blocks: Iterable[Block]) -> list[tuple[int, ...]]:
    return [tuple(i for i, task in enumerate(tasks) if task in block.tasks) for block in blocks]
