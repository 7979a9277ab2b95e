"""PiSSA: start from the principal part of each weight."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coadapt.adapters import AbstractAdapted
from coadapt.inits.base import AbstractInit, BlockStart, float_weight, projected, put
from coadapt.spectra import leading


@dataclass(frozen=True, kw_only=True)
class Pissa(AbstractInit):
    r"""The largest singular triplets of W are trained, the rest of W is frozen.

    .. math:: W = U S V', \quad s B A = U_r S_r V_r', \quad W_{res} = W - s B A

    PiSSA (arXiv 2404.02948, equations 2 to 4). :math:`B = U_r (S_r/s)^{1/2}` and
    :math:`A = (S_r/s)^{1/2} V_r'` as in PEFT. The base weight is not edited: the frozen start is
    subtracted from the output.

    Blocks that every row uses take the triplets one after the other; a block of single tasks takes
    the largest.
    """

    kind: Literal["pissa"] = "pissa"

    needs_own_A: ClassVar[bool] = True

    @property
    def offset(self) -> bool:
        """Yes: the update at start is a part of W."""
        return True

    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        """Decompose the layer's weight.

        Raises:
            InputError: if the weight is quantised.
        """
        W = float_weight(layer, self.kind)
        ranks = [B.shape[1] for B in layer.B]
        first = sum(ranks[:block]) if layer.gate.depends_on == "nothing" else 0
        found = leading(W, None, first + ranks[block], generator=start.generator)
        kept = slice(first, first + ranks[block])
        put(layer, block, projected(W, found.U[:, kept]), layer.scale**-0.5)
