"""One LoRA of the directions of each weight's rows, with their lengths trained apart: DoRA."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from coadapt._errors import InputError
from coadapt.adapters import DependsOn, DoraLinear, Dropout, inject
from coadapt.structures._partition import AbstractPartitioned
from coadapt.structures.base import Attached, ShipsAs, Site


@dataclass(frozen=True, kw_only=True)
class Dora(AbstractPartitioned):
    r"""One LoRA of each row's direction and one number for its length, for all tasks.

    .. math:: W' = m \odot \frac{W + s B A}{\lVert W + s B A \rVert}

    with the norm of each row, over the inputs, and m at the norms of W at start (DoRA, arXiv
    2402.09353, equation 5). The base model's bias stays, and so does its function at start, to the
    bit. m is trained in float32. Weight decay pulls it to zero like the matrices, as with PEFT;
    the authors' scripts train without decay.

    Parameters: R (d_in + d_out) + d_out an adapted map, d_out more than a LoRA of the plan's rank.

    Not for blocks of single tasks: the norm is of the whole sum, so blocks would not stay apart.
    It leaves as a PEFT folder with ``use_dora``, or added to the weights; it has no exact LoRA.

    Args:
        dropout_at: on x (default, the authors' and PEFT's place) or on A x (cheaper: on x the
            frozen weight has a second product).
        detach_norm: take the norm for a constant in the backward pass (section 4.3), as PEFT
            always does; else its gradient is taken too, which costs memory for W A'.

    Example:
        >>> Dora().ships_as, Dora().mergeable
        ('dora', False)
    """

    kind: Literal["dora"] = "dora"
    dropout_at: Literal["z", "x"] = "x"
    detach_norm: bool = True

    depends_on: ClassVar[DependsOn] = "nothing"
    ships_as: ClassVar[ShipsAs] = "dora"
    multiplies: ClassVar[bool] = True

    def attach(self, site: Site) -> Attached:
        """Build the plan's block, always on, and a magnitude a row.

        Raises:
            InputError: if the plan has several blocks or one that leaves out a task, if the init
                is to be subtracted, or a weight is no plain matrix of floats.
        """
        assert site.plan is not None
        blocks = site.plan.blocks
        if len(blocks) != 1 or any(set(b.tasks) != set(site.tasks) for b in blocks.values()):
            number = len(site.tasks)
            found = ", ".join(f"{n} (for {len(b.tasks)} of {number})" for n, b in blocks.items())
            raise InputError(
                "structure 'dora' has one block that serves every task, and the plan has "
                f"{found}; drop the plan and give a budget, or take structure 'bank' (recipe "
                "'clustered')"
            )
        if site.init.offset:
            raise InputError(
                "structure 'dora' starts at the weight's own rows, and this init starts elsewhere "
                "and is subtracted; take init 'default', or structure 'single'"
            )
        dropout, plan = Dropout(p=self.dropout, at=self.dropout_at), site.plan

        def make(name: str, base: nn.Module) -> DoraLinear:
            (rank,) = plan.ranks_in(name)
            return DoraLinear(
                base,
                rank,
                route=site.route,
                scale=self.scale,
                dropout=dropout,
                detach_norm=self.detach_norm,
                name=name,
            )

        layers = inject(site.backbone, site.names, make)
        for name, layer in layers.items():
            site.fill(layer, name, tuple(blocks))
        everyone = tuple(range(len(site.tasks)))
        return Attached(layers=layers, blocks=tuple(blocks), owners=(everyone,))
