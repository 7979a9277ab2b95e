"""Blocks of the rank axis put into a backbone, with any gate."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from coadapt._errors import InputError
from coadapt.adapters import (
    AbstractGate,
    Dropout,
    PartitionedLinear,
    Together,
    inject,
    readers_of_one_input,
)
from coadapt.planning import Block, Plan
from coadapt.structures.base import AbstractStructure, Attached, ShipsAs, Site

# A gate for a module of that name.
GateOf = Callable[[str, nn.Module], AbstractGate]


@dataclass(frozen=True, kw_only=True)
class AbstractPartitioned(AbstractStructure):
    """What the structures on the partitioned rank axis have in common.

    Args:
        scale: s = lora_alpha / r, the same for every block.
        dropout: probability in [0, 1).
        dropout_at: on A x (default, cheaper) or on x (LoRA's and PEFT's place).
    """

    scale: float = 2.0
    dropout: float = 0.0
    dropout_at: Literal["z", "x"] = "z"

    ships_as: ClassVar[ShipsAs] = "lora"
    divides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.scale > 0:
            raise InputError(f"scale (lora_alpha / r) must be positive, not {self.scale}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), not {self.dropout}")

    def _attach_blocks(
        self,
        site: Site,
        blocks: dict[str, Block],
        gate: GateOf,
        *,
        ranks_in: Callable[[str], Sequence[int]] | None = None,
        scale: float | None = None,
        shared_A: bool = False,
        dropout: Dropout | None = None,
    ) -> Attached:
        """Put a partitioned layer around every module of ``site`` and fill its blocks."""

        def make(name: str, base: nn.Module) -> PartitionedLinear:
            return PartitionedLinear(
                base,
                [b.rank for b in blocks.values()] if ranks_in is None else ranks_in(name),
                gate=gate(name, base),
                route=site.route,
                scale=self.scale if scale is None else scale,
                dropout=dropout or Dropout(p=self.dropout, at=self.dropout_at),
                shared_A=shared_A,
                name=name,
            )

        shared = readers_of_one_input(site.backbone, site.names)
        layers = inject(site.backbone, site.names, make)
        for names in shared:
            readers = [layers[name] for name in names]
            together = Together(readers)
            for reader in readers:
                reader.together = together
        for name, layer in layers.items():
            site.fill(layer, name, tuple(blocks))
        owners = tuple(_owners(site.tasks, blocks.values()))
        return Attached(layers=layers, blocks=tuple(blocks), owners=owners)


def _owners(tasks: Sequence[str], blocks: Iterable[Block]) -> list[tuple[int, ...]]:
    return [tuple(i for i, task in enumerate(tasks) if task in block.tasks) for block in blocks]


def copies_of_one_block(
    plan: Plan, site: Site, kind: str, number: int, name: str
) -> dict[str, Block]:
    """Return ``number`` blocks like the plan's only one, for heads or experts.

    Raises:
        InputError: if the plan has several blocks, or one that does not serve every task.
    """
    blocks = list(plan.blocks.values())
    if plan.ranks:
        raise InputError(
            f"structure '{kind}' makes blocks of one rank; drop the plan's ranks by module"
        )
    if len(blocks) != 1 or set(blocks[0].tasks) != set(site.tasks):
        raise InputError(
            f"structure '{kind}' makes its own blocks, used by every task; give it a plan with "
            f"one block for all tasks, not {len(blocks)} (or drop the plan and give a budget)"
        )
    return {f"{name}{index}": blocks[0] for index in range(number)}
