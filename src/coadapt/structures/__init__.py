"""What is trained; one structure, one file."""

from coadapt.structures.bank import Bank
from coadapt.structures.base import AbstractStructure, Attached, ShipsAs, Site
from coadapt.structures.frozen import Frozen
from coadapt.structures.full import Full
from coadapt.structures.single import Single

Structure = Single | Bank | Frozen | Full

__all__ = [
    "AbstractStructure",
    "Attached",
    "Bank",
    "Frozen",
    "Full",
    "ShipsAs",
    "Single",
    "Site",
    "Structure",
]
