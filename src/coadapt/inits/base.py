"""What an init is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from coadapt._errors import InputError
from coadapt.adapters import AbstractAdapted
from coadapt.adapters.linear import linear_weight
from coadapt.planning import Plan
from coadapt.spectra import Spectrum

Statistics = Literal["none", "tasks", "pooled"]
POOLED = "all tasks"  # no task can have this name

# By module, and in it by task or POOLED.
Spectra = Mapping[str, Mapping[str, Spectrum]]


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the blocks of a model begin.

    Attributes:
        spectra: what an init with statistics fills them from.
        fills: whether they are filled; not where tensors are copied in afterwards.
    """

    spectra: Spectra = field(default_factory=dict)
    fills: bool = True


@dataclass(frozen=True, kw_only=True)
class BlockStart:
    """What one block of one layer is filled from.

    Attributes:
        block: its name.
        generator: the only randomness.
        spectra: of the layer's map, by task or POOLED; empty without statistics.
    """

    block: str
    generator: Generator
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)


class AbstractInit(ABC):
    """How the factors of a block start.

    Attributes:
        statistics: whose inputs it has to know beforehand: each task's, all tasks' pooled, none.
        needs_own_A: whether each block needs an A of its own, which heads over one A do not have.
    """

    statistics: ClassVar[Statistics] = "none"
    needs_own_A: ClassVar[bool] = False

    @property
    @abstractmethod
    def offset(self) -> bool:
        """Whether the initial factors are frozen and subtracted.

        See :meth:`AbstractAdapted.freeze_offset`; for blocks that start away from zero.
        """

    @abstractmethod
    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        """Set both of ``layer.pair(block)`` in place."""


@dataclass(frozen=True, kw_only=True)
class AbstractStatisticalInit(AbstractInit):
    """An init that looks at the second moments of each map's inputs before it fills a block.

    Args:
        rows: training rows a task to gather them from, drawn without replacement; at least 1.
    """

    rows: int = 500

    needs_own_A: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the range."""
        if self.rows < 1:
            raise InputError(f"rows must be at least 1, not {self.rows}")

    def identity(self) -> dict[str, Any]:
        """Return the settings that the spectra depend on."""
        return {"statistics": self.statistics, "rows": self.rows}

    @abstractmethod
    def decompose(
        self, W: Tensor, C: Tensor, rank: int, generator: Generator, near: Tensor | None = None
    ) -> Spectrum:
        """Return what is kept of a map's weight (out, in) and its inputs' moment E x x'.

        Args:
            W: the weight.
            C: (in, in) over the valid tokens of a task, or of all.
            rank: the plan's summed rank.
            generator: of a randomised decomposition.
            near: another task's U of the same map, if one is known.
        """

    def refine(self, plan: Plan, spectra: Spectra) -> Plan:
        """Return the plan with what the spectra say about ranks; as it is, by default."""
        return plan


def projected(W: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
    """Return balanced factors (A, B) of U U' W.

    With the thin decomposition U' W = P S Q' they are A = S^1/2 Q' and B = U P S^1/2. Both have the
    same norm and do not depend on how U was turned within its span.

    Args:
        W: (out, in).
        U: (out, r) with orthonormal columns.
    """
    U = U.to(W.dtype)
    P, S, Qh = torch.linalg.svd(U.T @ W, full_matrices=False)
    root = S.sqrt()
    return root[:, None] * Qh, U @ P * root


def whitened(W: Tensor, U: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors B = U S^1/2, A = S^-1/2 U' W of the same product, as papers write them.

    With W C = U S V' the published A = S^1/2 V' C^-1 is this one, without an inverse of C. Their
    norms depend on the unit of C. Singular values of 0 are lifted to 1e-6 of the largest.

    Args:
        W: (out, in).
        U: (out, r) left singular vectors of W C.
        sigma: (r,) its singular values.
    """
    U, sigma = U.to(W.dtype), sigma.to(W.dtype)
    root = sigma.clamp_min(max(1e-6 * float(sigma.max()), 1e-12)).sqrt()
    return U.T @ W / root[:, None], U * root


def float_weight(layer: AbstractAdapted, kind: str) -> Tensor:
    """Return the (out, in) weight of a layer's map, in float32 or wider.

    Raises:
        InputError: if it is quantised.
    """
    weight = linear_weight(layer.base)
    if not weight.is_floating_point() or weight.shape != (layer.out_features, layer.in_features):
        raise InputError(
            f"init '{kind}' reads the weight of '{layer.name}', which is quantised "
            f"({weight.dtype}); take a base model in full precision, or init 'default'"
        )
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def put(layer: AbstractAdapted, block: int, factors: tuple[Tensor, Tensor], by: float) -> None:
    """Copy (A, B) into a block, each times ``by``; ranks that a narrow map lacks stay zero."""
    A, B = layer.pair(block)
    for mine, new in ((A, factors[0]), (B.T, factors[1].T)):
        mine.zero_()
        mine[: len(new)].copy_(by * new)


def fill_default(layer: AbstractAdapted, block: int, generator: Generator, by: float = 1.0) -> None:
    r"""Draw A from U(\pm 1/\sqrt{d_{in}}) on the CPU, times ``by``, and set B to 0.

    On the CPU wherever the layer lies, so that a seed means the same everywhere.
    """
    bound = by * layer.in_features**-0.5
    with torch.no_grad():
        A, B = layer.pair(block)
        A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
        B.zero_()
