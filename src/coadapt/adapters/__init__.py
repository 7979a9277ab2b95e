"""The partitioned-rank layer and what surrounds it."""

from coadapt.adapters.gate import AbstractGate, ConstantGate, DependsOn, Route, TaskGate
from coadapt.adapters.inject import eject, inject, target_names
from coadapt.adapters.layer import LinearLike, PartitionedLinear, linear_shape

__all__ = [
    "AbstractGate",
    "ConstantGate",
    "DependsOn",
    "LinearLike",
    "PartitionedLinear",
    "Route",
    "TaskGate",
    "eject",
    "inject",
    "linear_shape",
    "target_names",
]
