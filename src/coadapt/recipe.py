"""A published method is a row of parts."""

from dataclasses import dataclass, field

from coadapt._errors import InputError
from coadapt.balancing import Balancing
from coadapt.config import LATER, to_plain
from coadapt.groups import FastSlow, Groups, Uniform
from coadapt.inits import Default, Hasi, Init
from coadapt.lora_hub import LoraHub
from coadapt.merge_methods import Merge
from coadapt.planning import Sharing
from coadapt.regularizers import Need, Regularizer
from coadapt.structures import (
    Structure,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how; who shares is the plan's matter.

    Args:
        structure: the shape of what is trained.
        init: how its factors start.
        groups: how parameters are divided for the optimizer.
        regularizers: terms that are added to the loss.
        balancing: how the tasks' losses become one step; their mean if None.
        compose: after training each task is served by a composition of the tasks' adapters, or all
            by one merged update.
        sharing: the kind of plan made from a rank budget when none is given. ``clustered`` has no
            such default: which tasks belong together is what a plan says.
    """

    structure: Structure
    init: Init = Default()
    groups: Groups = Uniform()
    regularizers: tuple[Regularizer, ...] = field(default=(), metadata=LATER)
    balancing: Balancing | None = field(default=None, metadata=LATER)
    compose: LoraHub | Merge | None = field(default=None, metadata=LATER)
    sharing: Sharing | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        if self.compose is not None and self.structure.kind != "bank":
            raise InputError(
                f"compose: what is composed or merged is one LoRA a task, which structure "
                f"'{self.structure.kind}' does not have; take 'bank'"
            )
        if self.init.needs_own_A and self.structure.kind in ("heads", "routed_heads"):
            kind = to_plain(self.init)["kind"]
            raise InputError(
                f"init '{kind}' gives each block an A of its own, and structure "
                f"'{self.structure.kind}' has heads over one A; take 'single' or 'bank'"
            )
        if isinstance(self.init, Hasi) and self.structure.kind != "single":
            raise InputError(
                "init 'hasi' fills a block a task that every row goes through; take structure "
                f"'single', not '{self.structure.kind}'"
            )
        if isinstance(self.groups, FastSlow) and self.structure.kind != "task_prompt":
            raise InputError(
                f"groups 'fast_slow' has a rate for the tasks' own part of prompts, and structure "
                f"'{self.structure.kind}' has none; take groups 'uniform'"
            )
        kinds = [part.kind for part in self.regularizers]
        for part in self.regularizers:
            if kinds.count(part.kind) > 1:
                raise InputError(f"regularizer '{part.kind}' is given twice")
            if part.needs is Need.PROMPTS:
                if self.structure.kind != "task_prompt":
                    raise InputError(
                        f"regularizer '{part.kind}' looks at the tasks' own part of prompts, and "
                        f"structure '{self.structure.kind}' has none; take 'task_prompt'"
                    )
            elif not self.structure.divides:
                raise InputError(
                    f"regularizer '{part.kind}' looks at adapters, and structure "
                    f"'{self.structure.kind}' has none"
                )
            if part.needs is Need.ROUTING and self.structure.depends_on != "token":
                raise InputError(
                    f"regularizer '{part.kind}' balances a router, and structure "
                    f"'{self.structure.kind}' has none; take 'routed_heads', 'experts' or 'mixture'"
                )
