"""A bank of LoRAs, chosen by the row's task: private, clustered, shared + private."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coadapt.adapters import DependsOn, TaskGate
from coadapt.structures._partition import attach_blocks
from coadapt.structures.base import (
    AbstractStructure,
    Attached,
    ShipsAs,
    Site,
    check_scale_and_dropout,
)


@dataclass(frozen=True, kw_only=True)
class Bank(AbstractStructure):
    r"""A LoRA a block of the plan, gated by the row's task t.

    .. math:: y = W x + s \sum_{k \in \text{blocks}(t)} B_k A_k x

    The map from task to blocks is the plan's and the same at every layer (Capacity-Redundancy,
    section 6). The scale s is equal for blocks of different rank: with one lora_alpha for all, a
    block of rank 1 would be scaled R times more than one of rank R.

    Parameters: (r_1 + ... + r_K)(d_in + d_out) an adapted map.

    Args:
        scale: s = lora_alpha_k / r_k of every block.
        dropout: probability in [0, 1).
        dropout_at: on A x (default, cheaper) or on x.
    """

    kind: Literal["bank"] = "bank"
    scale: float = 2.0
    dropout: float = 0.0
    dropout_at: Literal["z", "x"] = "z"

    depends_on: ClassVar[DependsOn] = "task"
    ships_as: ClassVar[ShipsAs] = "lora"
    divides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_scale_and_dropout(self.scale, self.dropout)

    def attach(self, site: Site) -> Attached:
        """Build the plan's blocks, gated by task."""
        assert site.plan is not None
        blocks = site.plan.blocks
        uses = [
            [index for index, block in enumerate(blocks.values()) if task in block.tasks]
            for task in site.tasks
        ]
        gate = TaskGate(uses, [block.rank for block in blocks.values()])
        return attach_blocks(
            site,
            blocks,
            gate,
            scale=self.scale,
            dropout=self.dropout,
            dropout_at=self.dropout_at,
        )
