"""One LoRA for all tasks."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coadapt._errors import InputError
from coadapt.adapters import ConstantGate, DependsOn
from coadapt.structures._partition import attach_blocks
from coadapt.structures.base import (
    AbstractStructure,
    Attached,
    ShipsAs,
    Site,
    check_scale_and_dropout,
)


@dataclass(frozen=True, kw_only=True)
class Single(AbstractStructure):
    r"""One LoRA that every row goes through: :math:`y = W x + s B A x` (arXiv 2106.09685, eq. 3).

    Parameters: R (d_in + d_out) an adapted map.

    Args:
        scale: s = lora_alpha / r.
        dropout: probability in [0, 1).
        dropout_at: on A x (default, cheaper) or on x (the paper's and PEFT's place).

    Example:
        >>> Single(scale=1.0).depends_on
        'nothing'
    """

    kind: Literal["single"] = "single"
    scale: float = 2.0
    dropout: float = 0.0
    dropout_at: Literal["z", "x"] = "z"

    depends_on: ClassVar[DependsOn] = "nothing"
    ships_as: ClassVar[ShipsAs] = "lora"
    divides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_scale_and_dropout(self.scale, self.dropout)

    def attach(self, site: Site) -> Attached:
        """Build the plan's blocks, all of them always on.

        Raises:
            InputError: if a block of the plan does not serve every task.
        """
        assert site.plan is not None
        for name, block in site.plan.blocks.items():
            if set(block.tasks) != set(site.tasks):
                raise InputError(
                    f"block '{name}' serves {len(block.tasks)} of {len(site.tasks)} tasks, but "
                    "structure 'single' has no gate; take structure 'bank' (recipe 'clustered')"
                )
        return attach_blocks(
            site,
            site.plan.blocks,
            ConstantGate(len(site.plan.blocks)),
            scale=self.scale,
            dropout=self.dropout,
            dropout_at=self.dropout_at,
        )
