"""How the losses of several tasks become one step on what they share."""

from coadapt.balancing.base import (
    AbstractBalancing,
    AbstractGradientBalancing,
    AbstractLossBalancing,
)
from coadapt.balancing.grad_norm import GradNorm
from coadapt.balancing.surgery import IMTLG, MGDA, AlignedMTL, CAGrad, PCGrad, UPGrad
from coadapt.balancing.uncertainty import Uncertainty

Balancing = PCGrad | UPGrad | MGDA | CAGrad | AlignedMTL | IMTLG | GradNorm | Uncertainty

__all__ = [
    "IMTLG",
    "MGDA",
    "AbstractBalancing",
    "AbstractGradientBalancing",
    "AbstractLossBalancing",
    "AlignedMTL",
    "Balancing",
    "CAGrad",
    "GradNorm",
    "PCGrad",
    "UPGrad",
    "Uncertainty",
]
