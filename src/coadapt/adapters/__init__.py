"""The partitioned-rank layer and what surrounds it."""

from coadapt.adapters.adapted import AbstractAdapted, Dropout, Gated
from coadapt.adapters.block_shares import BlockShares
from coadapt.adapters.dora import DoraLinear
from coadapt.adapters.gate import AbstractGate, ConstantGate, DependsOn, RouterGate, TaskGate
from coadapt.adapters.inject import eject, feed_forward_groups, inject, target_names
from coadapt.adapters.layer import PartitionedLinear
from coadapt.adapters.linear import LinearLike, linear_shape
from coadapt.adapters.prompts import TaskPrompts
from coadapt.adapters.route import Route
from coadapt.adapters.slots import AbstractSlotted, SlotFollower, SlotLinear, SlotRouter, SlotSum
from coadapt.adapters.together import Together, readers_of_one_input

__all__ = [
    "AbstractAdapted",
    "AbstractGate",
    "AbstractSlotted",
    "BlockShares",
    "ConstantGate",
    "DependsOn",
    "DoraLinear",
    "Dropout",
    "Gated",
    "LinearLike",
    "PartitionedLinear",
    "Route",
    "RouterGate",
    "SlotFollower",
    "SlotLinear",
    "SlotRouter",
    "SlotSum",
    "TaskGate",
    "TaskPrompts",
    "Together",
    "eject",
    "feed_forward_groups",
    "inject",
    "linear_shape",
    "readers_of_one_input",
    "target_names",
]
