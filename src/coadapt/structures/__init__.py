"""What is trained; one structure, one file."""

from coadapt.structures._partition import AbstractPartitioned
from coadapt.structures.bank import Bank
from coadapt.structures.base import AbstractStructure, Attached, ShipsAs, Site
from coadapt.structures.composed import Composed
from coadapt.structures.dora import Dora
from coadapt.structures.experts import Experts
from coadapt.structures.frozen import Frozen
from coadapt.structures.full import Full
from coadapt.structures.heads import Heads, RoutedHeads
from coadapt.structures.mixture import Mixture
from coadapt.structures.peft_prompt import (
    AbstractPeftPrompt,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
)
from coadapt.structures.single import Single
from coadapt.structures.task_prompt import TaskPrompt

Structure = (
    Single
    | Bank
    | Composed
    | Heads
    | RoutedHeads
    | Experts
    | Mixture
    | Dora
    | TaskPrompt
    | PromptTuning
    | PrefixTuning
    | MultitaskPromptTuning
    | Frozen
    | Full
)

__all__ = [
    "AbstractPartitioned",
    "AbstractPeftPrompt",
    "AbstractStructure",
    "Attached",
    "Bank",
    "Composed",
    "Dora",
    "Experts",
    "Frozen",
    "Full",
    "Heads",
    "Mixture",
    "MultitaskPromptTuning",
    "PrefixTuning",
    "PromptTuning",
    "RoutedHeads",
    "ShipsAs",
    "Single",
    "Site",
    "Structure",
    "TaskPrompt",
]
