"""A bank of LoRAs, chosen by the row's task: private, clustered, shared + private."""

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

from coadapt.adapters import DependsOn, TaskGate
from coadapt.structures._partition import AbstractPartitioned
from coadapt.structures.base import Attached, Site


@dataclass(frozen=True, kw_only=True)
class Bank(AbstractPartitioned):
    r"""A LoRA a block of the plan, gated by the row's task t.

    .. math:: y = W x + s \sum_{k \in \text{blocks}(t)} B_k A_k x

    The map from task to blocks is the plan's and the same at every layer (Capacity-Redundancy,
    section 6). The scale s is equal for blocks of different rank: with one lora_alpha for all, a
    block of rank 1 would be scaled R times more than one of rank R.

    Parameters: (r_1 + ... + r_K)(d_in + d_out) an adapted map.
    """

    kind: Literal["bank"] = "bank"

    depends_on: ClassVar[DependsOn] = "task"

    def attach(self, site: Site) -> Attached:
        """Build the plan's blocks, gated by task."""
        assert site.plan is not None
        plan, blocks = site.plan, site.plan.blocks
        uses = [
            [index for index, block in enumerate(blocks.values()) if task in block.tasks]
            for task in site.tasks
        ]
        # Layers of the same ranks have one gate, whose values are made once a forward.
        gate_of = functools.cache(functools.partial(TaskGate, uses))
        return self._attach_blocks(
            site,
            blocks,
            lambda name, _: gate_of(plan.ranks_in(name)),
            ranks_in=plan.ranks_in,
        )
