"""How adapters start; one init, one file."""

from coadapt.inits.base import (
    POOLED,
    AbstractInit,
    AbstractStatisticalInit,
    BlockStart,
    Spectra,
    Start,
)
from coadapt.inits.corda import Corda
from coadapt.inits.default import Default
from coadapt.inits.hasi import Hasi, allocate_task_ranks
from coadapt.inits.pissa import Pissa
from coadapt.inits.r_lora import RLora, RLoraCode

Init = Default | RLora | RLoraCode | Pissa | Corda | Hasi

__all__ = [
    "POOLED",
    "AbstractInit",
    "AbstractStatisticalInit",
    "BlockStart",
    "Corda",
    "Default",
    "Hasi",
    "Init",
    "Pissa",
    "RLora",
    "RLoraCode",
    "Spectra",
    "Start",
    "allocate_task_ranks",
]
