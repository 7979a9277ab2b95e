"""How adapters start; one init, one file."""

from coadapt.inits.base import AbstractInit
from coadapt.inits.default import Default

__all__ = ["AbstractInit", "Default"]
