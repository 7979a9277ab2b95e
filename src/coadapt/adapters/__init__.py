"""The partitioned-rank layer and what surrounds it."""

from coadapt.adapters.block_shares import BlockShares
from coadapt.adapters.dora import DoraLinear
from coadapt.adapters.gate import AbstractGate, ConstantGate, DependsOn, Route, RouterGate, TaskGate
from coadapt.adapters.inject import eject, feed_forward_groups, inject, target_names
from coadapt.adapters.layer import AbstractAdapted, Dropout, Gated, PartitionedLinear
from coadapt.adapters.linear import LinearLike, linear_shape
from coadapt.adapters.prompts import TaskPrompts
from coadapt.adapters.slots import AbstractSlotted, SlotFollower, SlotLinear, SlotRouter, SlotSum

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
    "eject",
    "feed_forward_groups",
    "inject",
    "linear_shape",
    "target_names",
]
