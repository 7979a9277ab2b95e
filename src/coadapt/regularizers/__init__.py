"""Terms that are added to the loss; one regularizer, one file."""

from coadapt.regularizers.align_kl import AlignKL
from coadapt.regularizers.align_mmd import AlignMMD
from coadapt.regularizers.base import (
    AbstractRegularizer,
    Captured,
    FastWeights,
    LayerFactors,
    Need,
    Routing,
    Tokens,
)
from coadapt.regularizers.load_balance import LoadBalance
from coadapt.regularizers.localized_balance import LocalizedBalance
from coadapt.regularizers.o_lora import OLora
from coadapt.regularizers.pego import Pego
from coadapt.regularizers.spr import Spr
from coadapt.regularizers.task_orthogonality import TaskOrthogonality

Regularizer = (
    AlignKL | AlignMMD | LoadBalance | LocalizedBalance | OLora | Pego | Spr | TaskOrthogonality
)

__all__ = [
    "AbstractRegularizer",
    "AlignKL",
    "AlignMMD",
    "Captured",
    "FastWeights",
    "LayerFactors",
    "LoadBalance",
    "LocalizedBalance",
    "Need",
    "OLora",
    "Pego",
    "Regularizer",
    "Routing",
    "Spr",
    "TaskOrthogonality",
    "Tokens",
]
