"""The partitioned-rank layer and what surrounds it."""

from coadapt.adapters.gate import AbstractGate, ConstantGate, DependsOn, Route, RouterGate, TaskGate
from coadapt.adapters.inject import eject, inject, target_names
from coadapt.adapters.layer import Dropout, LinearLike, PartitionedLinear, linear_shape

__all__ = [
    "AbstractGate",
    "ConstantGate",
    "DependsOn",
    "Dropout",
    "LinearLike",
    "PartitionedLinear",
    "Route",
    "RouterGate",
    "TaskGate",
    "eject",
    "inject",
    "linear_shape",
    "target_names",
]
