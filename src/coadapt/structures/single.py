"""One LoRA for all tasks."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from coadapt._errors import InputError
from coadapt.adapters import ConstantGate, DependsOn, Dropout
from coadapt.config import LATER
from coadapt.structures._partition import AbstractPartitioned
from coadapt.structures.base import Attached, Site


@dataclass(frozen=True, kw_only=True)
class Single(AbstractPartitioned):
    r"""One LoRA that every row goes through: :math:`y = W x + s B A x` (arXiv 2106.09685, eq. 3).

    Parameters: R (d_in + d_out) an adapted map.

    Args:
        dropout_samples: masks of A x whose mean is taken (multi-sample dropout, arXiv 1905.09788).

    Example:
        >>> Single(scale=1.0).depends_on
        'nothing'
    """

    kind: Literal["single"] = "single"
    dropout_samples: int = field(default=1, metadata=LATER)

    depends_on: ClassVar[DependsOn] = "nothing"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.dropout_samples < 1:
            raise InputError(f"dropout_samples must be at least 1, not {self.dropout_samples}")
        if self.dropout_samples > 1 and self.dropout_at == "x":
            raise InputError("dropout_samples are masks of A x; take dropout_at: z")

    def attach(self, site: Site) -> Attached:
        """Build the plan's blocks, all of them always on.

        Raises:
            InputError: if a block of the plan does not serve every task.
        """
        assert site.plan is not None
        blocks = site.plan.blocks
        for name, block in blocks.items():
            if set(block.tasks) != set(site.tasks):
                raise InputError(
                    f"block '{name}' serves {len(block.tasks)} of {len(site.tasks)} tasks, but "
                    "structure 'single' has no gate; take structure 'bank' (recipe 'clustered')"
                )
        gate = ConstantGate(len(blocks))
        dropout = Dropout(p=self.dropout, at=self.dropout_at, samples=self.dropout_samples)
        return self._attach_blocks(
            site, blocks, lambda *_: gate, ranks_in=site.plan.ranks_in, dropout=dropout
        )
