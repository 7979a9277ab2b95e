"""Full fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coadapt.adapters import DependsOn
from coadapt.structures.base import AbstractStructure, Attached, ShipsAs, Site


@dataclass(frozen=True, kw_only=True)
class Full(AbstractStructure):
    """Every weight of the backbone is trained, for all tasks together: the classic baseline.

    It ships as a merged model only; its update has full rank.
    """

    kind: Literal["full"] = "full"

    depends_on: ClassVar[DependsOn] = "nothing"
    ships_as: ClassVar[ShipsAs] = "merged"
    divides: ClassVar[bool] = False
    trains_backbone: ClassVar[bool] = True

    def attach(self, site: Site) -> Attached:
        """Unfreeze the backbone."""
        site.backbone.requires_grad_(True)
        return Attached()
