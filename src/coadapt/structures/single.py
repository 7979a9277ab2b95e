"""One LoRA for all tasks."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coadapt._errors import InputError
from coadapt.adapters import ConstantGate, DependsOn
from coadapt.structures._partition import AbstractPartitioned
from coadapt.structures.base import Attached, Site


@dataclass(frozen=True, kw_only=True)
class Single(AbstractPartitioned):
    r"""One LoRA that every row goes through: :math:`y = W x + s B A x` (arXiv 2106.09685, eq. 3).

    Parameters: R (d_in + d_out) an adapted map.

    Example:
        >>> Single(scale=1.0).depends_on
        'nothing'
    """

    kind: Literal["single"] = "single"

    depends_on: ClassVar[DependsOn] = "nothing"

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
        return self._attach_blocks(site, site.plan.blocks, ConstantGate(len(site.plan.blocks)))
