"""Terms that are added to the loss; one regularizer, one file."""

from coadapt.regularizers.align_kl import AlignKL
from coadapt.regularizers.align_mmd import AlignMMD
from coadapt.regularizers.base import AbstractRegularizer, Captured, Need, Routing, Tokens
from coadapt.regularizers.load_balance import LoadBalance
from coadapt.regularizers.localized_balance import LocalizedBalance

Regularizer = AlignKL | AlignMMD | LoadBalance | LocalizedBalance

__all__ = [
    "AbstractRegularizer",
    "AlignKL",
    "AlignMMD",
    "Captured",
    "LoadBalance",
    "LocalizedBalance",
    "Need",
    "Regularizer",
    "Routing",
    "Tokens",
]
